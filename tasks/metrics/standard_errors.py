"""How far a number that was measured on a sample may lie from the true one: standard errors.

The responses to one prompt are alike, so what counts as independent is the prompt: ``groups`` names that of each value.
"""

import math
from collections.abc import Hashable, Sequence

from tasks.metrics.declared import STDERR


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


def with_stderr(name: str, value: float, stderr: float | None) -> dict[str, float]:
    """A metric, and beside it its standard error where that is known."""
    return {name: value} if stderr is None else {name: value, f"{name}{STDERR}": stderr}


def mean_metric(name: str, xs: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """The mean of ``xs`` as a metric, with its standard error."""
    return with_stderr(name, sum(xs) / len(xs), mean_stderr(xs, groups))
