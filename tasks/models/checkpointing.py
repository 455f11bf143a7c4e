"""Activation checkpointing: each layer's input is kept alone, and the backward pass computes the layer again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.errors import ModelError


def checkpoint_gradients(model: nn.Module) -> None:
    """Have each layer keep its input alone for the backward pass, which then computes the layer again.

    Chen et al. 2016, arXiv:1604.06174. Not by the library's own switch: that works in training mode alone, where dropout
    is on. Doing it twice changes nothing.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"execution.gradient_checkpointing=true: {type(model).__name__} has no layers that can be computed again; "
            "set it to false"
        )
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = _recomputing(layer.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return wrapped
