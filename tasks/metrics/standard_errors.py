"""How far a number that was measured on a sample may lie from the true one: standard errors.

The responses to one prompt are alike, so what counts as independent is the prompt: ``groups`` names that of each value.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from tasks.config import SUFFIX

if TYPE_CHECKING:
    import torch


def mean_stderr(xs: Sequence[float], groups: Sequence[Hashable] | None = None) -> float | None:
    """Of the mean of ``xs``; None where fewer than two values, or a single group, leave it unknown.

        sqrt( G / (G - 1) * sum over groups of (sum of (x - mean))^2 ) / N

    The cluster-robust estimate (Liang and Zeger 1986); with every value a group of its own it is std / sqrt(N).
    """
    mean = sum(xs) / max(1, len(xs))
    sums: dict[Hashable, float] = {}
    for x, group in zip(xs, range(len(xs)) if groups is None else groups, strict=True):
        sums[group] = sums.get(group, 0.0) + x - mean
    if len(sums) < 2:
        return None
    return math.sqrt(len(sums) / (len(sums) - 1) * sum(own * own for own in sums.values())) / len(xs)


def correlation_stderr(correlation: float, groups: Sequence[Hashable]) -> float | None:
    """Of Pearson's correlation, ``(1 - r^2) / sqrt(G - 1)``: 0.126 near 0 with 64 prompts; None with fewer than two."""
    independent = len(set(groups))
    return (1 - correlation**2) / math.sqrt(independent - 1) if independent > 1 else None


def explained_variance_stderr(
    values: "torch.Tensor", returns: "torch.Tensor", lengths: "torch.Tensor", groups: Sequence[Hashable]
) -> float | None:
    """Of ``1 - Var(R - V) / Var(R)`` over the tokens of B responses; None where it cannot be known.

    ``values`` and ``returns`` hold the tokens of one response after the other, ``lengths`` and ``groups`` have an entry for
    each. By leaving out one group at a time (Tukey's jackknife): the tokens of a response all tell of one outcome.
    """
    import torch

    number = {group: position for position, group in enumerate(dict.fromkeys(groups))}
    if len(number) < 2:
        return None
    of_token = torch.tensor([number[group] for group in groups]).repeat_interleave(lengths.cpu())
    targets, errors = returns.double().cpu(), (returns.double() - values.double()).cpu()
    # Around their means, so that squares lose no digits.
    targets, errors = targets - targets.mean(), errors - errors.mean()
    terms = torch.stack([torch.ones_like(targets), targets, targets.square(), errors, errors.square()])
    own = torch.zeros(5, len(number), dtype=torch.float64).index_add(1, of_token, terms)
    count, target, target_squared, error, error_squared = own.sum(1, keepdim=True) - own
    spread = target_squared - target.square() / count
    if not bool((spread > 1e-12 * terms[2].sum()).all()):
        return None
    without = 1 - (error_squared - error.square() / count) / spread
    return float(((len(number) - 1) * without.var(correction=0)).sqrt())


def with_stderr(name: str, value: float, stderr: float | None) -> dict[str, float]:
    """A metric, and beside it its standard error where that is known."""
    return {name: value} if stderr is None else {name: value, f"{name}{SUFFIX}": stderr}


def mean_metric(name: str, xs: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """The mean of ``xs`` as a metric, with its standard error."""
    return with_stderr(name, sum(xs) / len(xs), mean_stderr(xs, groups))
