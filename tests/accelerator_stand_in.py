"""An accelerator that is none: tensors "on" it lie in the processor's memory, but know that they are elsewhere.

An operation over tensors of both places fails, as it does where they are far apart; an operation for which a real device
would have to stop and say something is written down. Numbers are those of the processor. The device goes by the name
``meta``, which this PyTorch lets be one without an accelerator's library.
"""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

DEVICE = torch.device("meta")
PROCESSOR = torch.device("cpu")
# What takes tensors from both places.
CROSSING = {"to", "copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
# What cannot go on before the device has answered.
ASKING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}


class Elsewhere(torch.Tensor):
    """A tensor on the device."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )

    def __init__(self, here):
        assert here.device == PROCESSOR
        self.here = here

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {}, [])


def compute(operation, args, kwargs, questions):
    """What an operation gives, elsewhere if its tensors or the device that it names are."""
    leaves = tree_leaves((args, kwargs))
    name = operation._schema.name.removeprefix("aten::")
    target = next((x for x in leaves if isinstance(x, torch.device)), None)
    far = any(isinstance(x, Elsewhere) for x in leaves)
    near = any(isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) and x.dim() > 0 for x in leaves)
    if far and near and name not in CROSSING:
        raise RuntimeError(f"{operation}: tensors here and elsewhere")
    by_mask = name.startswith("index") and any(
        isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
    )
    if far and (name in ASKING or by_mask or target == PROCESSOR):
        questions.append(name)

    def brought_here(x):
        if isinstance(x, Elsewhere):
            return x.here
        return PROCESSOR if isinstance(x, torch.device) else x

    found = operation(*tree_map(brought_here, args), **tree_map(brought_here, kwargs))
    for argument, given in zip(operation._schema.arguments, args, strict=False):
        if argument.is_write and len(operation._schema.returns) == 1:
            return given
    if target == PROCESSOR or not (far or target == DEVICE):
        return found
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, found)


class _Operations(TorchDispatchMode):
    def __init__(self, questions):
        super().__init__()
        self.questions = questions

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {}, self.questions)


class _Functions(TorchFunctionMode):
    """``torch.tensor`` makes its tensor out of every mode's sight."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return function(*args, **{**kwargs, "device": PROCESSOR}).to(DEVICE)
        return function(*args, **kwargs)


@contextmanager
def stand_in():
    """The device is there; yields the list of what it was asked for."""
    questions = []
    with pytest.MonkeyPatch.context() as patched:
        # What knows the real devices by name.
        patched.setattr("torch.autocast", lambda *_, enabled=False, **__: _no_autocast(enabled))
        optimizers = sys.modules["torch.optim.optimizer"]
        patched.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
        # The library makes models on the device of the same name before it loads them.
        from_pretrained = PreTrainedModel.from_pretrained.__func__

        def loaded_here(cls, *args, **kwargs):
            with _disable_current_modes():
                return from_pretrained(cls, *args, **kwargs)

        patched.setattr(PreTrainedModel, "from_pretrained", classmethod(loaded_here))
        # Parameters then stay the same objects when a module moves.
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            with _Functions(), _Operations(questions):
                yield questions
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)


@contextmanager
def _no_autocast(enabled):
    assert not enabled, "the stand-in computes in float32 alone"
    yield
