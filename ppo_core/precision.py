"""A model whose calls run in a precision of their own, head and all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppo_core.logprobs import at_least_float32, linear_in_float32

PROBE_TOKENS = 4
"""On so many tokens it is tried what a model can do."""


class InPrecision(nn.Module):
    """A model whose every call runs in ``dtype`` over its own weights, but for the vocabulary's head, whose logits are
    computed in ``head_dtype`` where that is wider.

    Rounded to bfloat16, logits are off by up to half a percent, and log-probabilities by 0.01 and more; with the head in
    float32 by what the body rounds alone: MiniMax 2025, arXiv:2506.13585; Khatri et al. 2025, arXiv:2510.13786.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, head_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.head_dtype = torch.promote_types(dtype, head_dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The context closes with the call, since autocast keeps its low-precision copies of the weights until then, and an
        # optimizer step in between would leave them stale.
        with self.opened():
            return self.model(*args, **kwargs)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The numerics of a call, the same for sampling, scoring and training: ratio 1 needs that."""
        with torch.autocast(device_of(self.model).type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            if self.head_dtype == self.dtype:
                yield
            else:
                with _head_in_float32(self.model):
                    yield


@contextmanager
def _head_in_float32(model: nn.Module) -> Iterator[None]:
    """The layer that makes the logits leaves the autocast around it: a model's own forward pass calls it within."""
    head = output_layer(model)
    if head is None or isinstance(own := head.forward, _Float32Forward):
        yield
        return
    was_replaced = "forward" in vars(head)
    head.forward = _Float32Forward(head, own)
    try:
        yield
    finally:
        if was_replaced:
            head.forward = own
        else:
            del head.forward


class _Float32Forward:
    """The forward pass of a layer in float32: what it is while ``_head_in_float32`` is open."""

    def __init__(self, layer: nn.Module, own: Callable[..., Tensor]) -> None:
        self.layer, self.own = layer, own

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if type(self.layer) is nn.Linear:
            return linear_in_float32(self.layer, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.own(at_least_float32(hidden), *args, **kwargs)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def output_layer(model: Any) -> nn.Module | None:
    """What makes a language model's logits of hidden states; None for a model without such a layer."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return layer if isinstance(layer, nn.Module) else None
