"""Gradient descent as the supervised stages share it (PPO's own is ``ppo_core.update``), and activation checkpointing."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ppo_core import ALONE, Sharing, add_gradients
from ppo_core.clipping import scale_gradients, total_norm
from ppo_core.errors import NonFiniteError
from ppo_core.randomness import derive_seed
from ppo_core.update import require_finite
from tasks.errors import ModelError


def adamw(groups: Iterable[dict[str, Any]], *, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW with PPO's usual settings: a small epsilon hides no gradient, decay is off unless asked for.

    Each group has ``params`` and their learning rate ``lr``.
    """
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay, fused=True)


def learning_rate_factor(step: int, num_steps: int, *, warmup_share: float) -> float:
    """Linear warm-up over the first share of the steps, then cosine decay to a tenth; ``step`` counts from 0."""
    num_warmup = math.ceil(warmup_share * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def shuffled(num_items: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation that is a function of the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "epoch", epoch))
    return torch.randperm(num_items, generator=generator).tolist()


def descend(
    parameters: Sequence[nn.Parameter],
    batches: Callable[[int], list[list[int]]],
    passes: Callable[[Sequence[int]], Sequence[Callable[[float], float]]],
    *,
    sharing: Sharing = ALONE,
    epochs: int,
    learning_rate: float,
    warmup_share: float,
    max_grad_norm: float,
    on_step: Callable[[int, int, float], None],
) -> list[float]:
    """Minimise a loss over the batches of each epoch; the losses, one a step.

    ``batches`` gives the rows of each batch of an epoch, ``passes`` what computes a batch: each adds its part of the
    gradient, times a factor, and returns its part of the loss. Processes share them as ``sharing`` says.
    Raises ``NonFiniteError`` before a bad step is taken, and where the last one spoiled the weights.
    """
    optimizer = adamw([{"params": list(parameters), "lr": learning_rate}])
    num_steps = sum(len(batches(epoch)) for epoch in range(epochs))
    losses: list[float] = []
    for epoch in range(epochs):
        for batch in batches(epoch):
            factor = learning_rate_factor(len(losses), num_steps, warmup_share=warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor
            optimizer.zero_grad(set_to_none=True)
            loss = sum(add_gradients(parameters, passes(batch), sharing))
            of_all = total_norm([x.grad for x in parameters if x.grad is not None], sharing)
            norm = float(of_all)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteError(
                    f"step {len(losses)}: loss {loss}, gradient norm {norm}; lower the learning rate ({learning_rate:g})"
                )
            if norm > max_grad_norm:
                scale_gradients(parameters, max_grad_norm, of_all)
            optimizer.step()
            losses.append(loss)
            on_step(len(losses), num_steps, loss)
    require_finite(
        parameters, f"the weights after the last of {num_steps} steps at a learning rate of {learning_rate:g}"
    )
    return losses


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformer, one after the other."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_gradients(model: nn.Module) -> None:
    """Have each layer keep its input alone for the backward pass, which then computes the layer again.

    Chen et al. 2016, arXiv:1604.06174. Not by the library's own switch: that works in training mode alone, where dropout
    is on. Doing it twice changes nothing.
    """
    layers = layers_of(model)
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
