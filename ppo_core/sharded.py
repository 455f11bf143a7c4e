"""A model whose weights lie in parts on several processes, by FSDP2; what is called inside it sees whole tensors."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from ppo_core.precision import InPrecision, device_of

T = TypeVar("T")


class _Root(nn.Module):
    """Whose call brings the weights together that belong to no layer, such as embedding and head, which may be tied."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, function: Callable[[], T]) -> T:
        return function()


# For as long as the process lives, which is one training.
_roots: dict[int, _Root] = {}


def shard(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Have each process of the default group keep its part of every parameter, of its gradient and of its moments.

    The weights of a layer are whole while the layer computes, the others while something is called ``inside`` the model.
    Gradients are sums over the processes. What is tried of a model once has to be tried before.
    """
    # Here, since these imports take a second that a model which is whole has no use for.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device_of(model).type, (distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    root = _Root(model)
    fully_shard(root, mesh=mesh)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo has no division within a sum, which is made of a factor otherwise.
            module.set_force_sum_reduction_for_comms(True)
    _roots[id(model)] = root


def inside(model: nn.Module, function: Callable[[], T]) -> T:
    """Call a function that uses the model. It is a plain call where the model is whole."""
    root = _roots.get(id(model.model if isinstance(model, InPrecision) else model))
    return function() if root is None else root(function)


def is_in_parts(tensor: Tensor | None) -> bool:
    # Nothing is in parts before what parts it was imported.
    loaded: Any = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process has to ask for it, in the same order."""
    parted: Any = tensor
    found: Tensor = parted.full_tensor() if is_in_parts(tensor) else tensor
    return found


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor this process has."""
    parted: Any = tensor
    found: Tensor = parted.to_local() if is_in_parts(tensor) else tensor
    return found


def parted_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor in parts, as the parameter is that it belongs to."""
    if not is_in_parts(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    own: Any = parameter
    return distribute_tensor(tensor, own.device_mesh, own.placements)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together."""
    parts = [gradient for gradient in gradients if is_in_parts(gradient)]
    plain = [gradient for gradient in gradients if not is_in_parts(gradient)]
    if not parts:
        return torch.nn.utils.get_total_norm(plain)
    norms = [whole(torch.nn.utils.get_total_norm(own)) for own in (parts, plain) if own]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def scale_gradients(parameters: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients of this norm down to another one."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(map(is_in_parts, gradients)):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return
    factor = min(1.0, max_norm / (float(norm) + 1e-6))
    for gradient in gradients:
        gradient.mul_(factor)
