"""A model in training: its gradient and its statistics, from micro-batch to minibatch to update."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ppo_core.batch import PaddedBatch
from ppo_core.clipping import scale_gradients, total_norm
from ppo_core.errors import NonFiniteError
from ppo_core.losses import Stats
from ppo_core.objectives import Counts
from ppo_core.shares import Sharing

# Statistics of micro-batches that do not add up.
_MAXIMA = ("ratio_max_deviation",)


@dataclass(eq=False, kw_only=True)
class Training:
    """A model in training: its gradient, and its statistics from micro-batch to minibatch to update."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    max_grad_norm: float
    objective: Callable[[PaddedBatch, Counts], tuple[Tensor, Stats]]
    minibatches: list[dict[str, float]] = field(default_factory=list)

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def close_minibatch(self, where: str, parts: Iterable[Stats], sharing: Sharing) -> dict[str, float]:
        """The minibatch as numbers, from those of its micro-batches; its gradient is scaled down to its limit."""
        parameters = self.parameters
        stats = {name: float(value) for name, value in _added(parts).items()}
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = total_norm(gradients, sharing)
        stats["grad_norm"] = float(norm)
        if not (math.isfinite(stats["loss"]) and math.isfinite(stats["grad_norm"])):
            raise NonFiniteError(
                f"loss {stats['loss']}, gradient norm {stats['grad_norm']} of the {where}; its step was not taken. "
                "Look at the advantages and returns of these rows, or lower the learning rate"
            )
        if stats["grad_norm"] > self.max_grad_norm:
            scale_gradients(parameters, self.max_grad_norm, norm)
        self.minibatches.append(stats)
        return stats

    def mean(self, name: str) -> float | None:
        """Of a statistic over the minibatches; None where the loss has no such term."""
        values = [stats[name] for stats in self.minibatches if name in stats]
        return mean_of(values) if values else None


def _added(parts: Iterable[Stats]) -> Stats:
    """Statistics of parts as those of the whole: sums, but for the maximum."""
    whole: Stats = {}
    for stats in parts:
        for name, value in stats.items():
            if name not in whole:
                whole[name] = value
            else:
                whole[name] = torch.maximum(whole[name], value) if name in _MAXIMA else whole[name] + value
    return whole


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)
