"""A model whose weights lie in parts on several processes, by FSDP2; what is called inside it sees whole tensors."""

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from ppo_core.heads import HeadCritic
from ppo_core.precision import InPrecision
from ppo_core.tree import Tree

T = TypeVar("T")


class _Root(nn.Module):
    """Whose call brings the weights together that belong to no layer, such as embedding and head, which may be tied."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, function: Callable[[], T]) -> T:
        return function()


# Of each module of a model in parts; for as long as the process lives, which is one training.
_roots: dict[nn.Module, _Root] = {}
# Parameters in parts that a gradient came to since that was last asked.
_reached: set[Tensor] = set()


def shard(
    model: nn.Module,
    layers: Sequence[nn.Module],
    device: torch.device,
    *,
    left_whole: Collection[nn.Parameter] = (),
    in_order: bool = False,
) -> None:
    """Have each process of the default group keep its part of every parameter, of its gradient and of its moments.

    Weights and buffers are those that the first process has, whatever the others have. A model on the processor comes to
    ``device`` layer by layer, so that it is nowhere whole there. The weights of a layer are whole while the layer computes,
    the others while something is called ``inside`` the model. Gradients are sums over the processes, ``in_order`` along a
    tree over them, but for those of what is ``left_whole``: each process has all of that, and its own.
    """
    # Here, since these imports take a second that a model which is whole has no use for.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    ignored = set(left_whole)
    # What parting leaves as it is.
    whole_ones = [parameter.detach() for parameter in model.parameters() if parameter not in ignored]
    for parameter in left_whole:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=ignored or None)
    root = _Root(model)
    fully_shard(root, mesh=mesh, ignored_params=ignored or None)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Gloo has no division within a sum, which is made of a factor otherwise.
            module.set_force_sum_reduction_for_comms(True)
            if in_order:
                summing: Any = _InOrder()
                module.set_custom_reduce_scatter(summing)
            if hasattr(module, "set_reduce_scatter_unused_params"):
                # A process adds up zeros where its tokens reach no weight that those of another reach, as experts. Without
                # it, before torch 2.13, processes would wait for each other.
                module.set_reduce_scatter_unused_params(True)
    _notice_what_is_reached(root)
    _take_from_first(model, whole_ones, device)
    _roots.update(dict.fromkeys(model.modules(), root))


class _InOrder:
    """A reduce-scatter that adds up along a tree; a library's order depends on the number of processes and on more."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any) -> None:
        assert op == distributed.ReduceOp.SUM
        of_all = torch.empty_like(input_tensor)
        distributed.all_to_all_single(of_all, input_tensor, group=group)
        tree = Tree()
        for own in of_all.view(group.size(), -1):
            tree.add([own])
        (total,) = tree.sum()
        assert total is not None
        output_tensor.copy_(total.view_as(output_tensor))


def _take_from_first(model: nn.Module, whole_ones: list[Tensor], device: torch.device) -> None:
    """Give each process its part of the first one's weights, tensor by tensor, and the first one's buffers."""
    from torch.distributed.tensor import distribute_tensor

    kinds: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(kinds, [(tensor.shape, tensor.dtype) for tensor in whole_ones])
    assert all(own == kinds[0] for own in kinds), "the processes have different models"
    parted: list[Any] = [parameter for parameter in model.parameters() if is_in_parts(parameter)]
    with torch.no_grad():
        for parameter in parted:
            given: Any = distribute_tensor(whole_ones.pop(0).to(device), parameter.device_mesh, parameter.placements)
            parameter.to_local().copy_(given.to_local())
        for buffer in model.buffers():
            values = buffer.contiguous()
            distributed.broadcast(values, 0)
            buffer.data = values


def _notice_what_is_reached(root: nn.Module) -> None:
    """Have ``take_reached`` know: zeros that were added up for a weight do not say whether a gradient came to it."""
    from torch.distributed.fsdp import FSDPModule

    parted = {
        (owner, name): parameter
        for owner in root.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if is_in_parts(parameter) and parameter.requires_grad
    }

    def watch(module: nn.Module, _: Any) -> None:
        # Once: what is whole during a pass are the same tensors in each.
        hooks.pop(module).remove()
        for owner in module.modules():
            for name, weights in owner.named_parameters(recurse=False):
                if not is_in_parts(weights) and (own := parted.pop((owner, name), None)) is not None:
                    weights.register_post_accumulate_grad_hook(lambda _, own=own: _reached.add(own))

    hooks: dict[nn.Module, Any] = {
        module: module.register_forward_pre_hook(watch) for module in root.modules() if isinstance(module, FSDPModule)
    }


def take_reached(parameters: Sequence[Tensor]) -> list[bool]:
    """Whether a gradient came to each of these, in parts, in this process since the last call."""
    found = [parameter in _reached for parameter in parameters]
    _reached.clear()
    return found


def inside(model: nn.Module, function: Callable[[], T]) -> T:
    """Call a function that uses the model. It is a plain call where the model is whole."""
    root: Any = _root_of(model)
    if root is None:
        return function()
    found: T = root(function)
    if not torch.is_grad_enabled():
        # Else the weights that belong to no layer stay whole until a backward pass that does not come.
        root.reshard()
    return found


def _root_of(model: nn.Module) -> _Root | None:
    """Of a model, of what is over one, or of what a critic's body is over."""
    inner: Any = model.model if isinstance(model, InPrecision) else model
    if isinstance(inner, HeadCritic):
        inner = inner.body
    if not _roots or not isinstance(inner, nn.Module):
        return None
    return next((_roots[module] for module in inner.modules() if module in _roots), None)


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
    """A whole tensor, which every process has, in parts as the parameter is that it belongs to."""
    if not is_in_parts(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    own: Any = parameter
    return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None)
