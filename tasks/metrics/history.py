"""The metrics of a run, iteration by iteration, out of the manifests of its stages."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from tasks.config import SUFFIX

COMBINES: Mapping[str, Literal["sum", "max", "std", "mean of tokens"]] = {
    "health/warnings": "sum",
    "rollouts/engine_logprob_difference": "mean of tokens",
    "rollouts/engine_logprob_max_difference": "max",
    "score/std": "std",
}
"""How a metric of several outputs, shards or stages, is that of all their rows; one that is not here is a mean over rows."""
LENGTH = "rollouts/response_length"
Part = tuple[int, Mapping[str, float]]
"""An output's number of rows, and its metrics."""


def merged(parts: Iterable[Part]) -> dict[str, float]:
    """The metrics of several outputs as one: what each would be, had one output had all the rows.

    A mean is weighted by rows; its standard error is then ``sqrt(sum of (rows * stderr)^2) / rows of all``. A standard
    deviation comes from the moments: ``sqrt(mean of std^2 + mean of (mean - mean of all)^2)``.
    """
    found: dict[str, list[Part]] = {}
    for part in parts:
        for name in part[1]:
            found.setdefault(name, []).append(part)
    return {name: own[0][1][name] if len(own) == 1 else together(name, own) for name, own in found.items()}


def together(name: str, parts: Sequence[Part]) -> float:
    """A metric that each of these outputs has."""
    values = [metrics[name] for _, metrics in parts]
    how = COMBINES.get(name)
    if how == "sum":
        return sum(values)
    if how == "max":
        # Not max(): what is no number must not be passed over.
        return math.nan if any(map(math.isnan, values)) else max(values)
    weights = [float(rows) for rows, _ in parts]
    if how == "mean of tokens":
        weights = [rows * metrics[LENGTH] for rows, metrics in parts]
    total = sum(weights) or 1.0

    def mean(xs: Iterable[float]) -> float:
        return sum(weight * x for weight, x in zip(weights, xs, strict=True)) / total

    if name.endswith(SUFFIX):
        return math.sqrt(sum((weight * x) ** 2 for weight, x in zip(weights, values, strict=True))) / total
    if how == "std":
        means = [metrics[name.removesuffix("std") + "mean"] for _, metrics in parts]
        return math.sqrt(mean(x * x for x in values) + mean((x - mean(means)) ** 2 for x in means))
    return mean(values)


def rows_of(
    parts: Mapping[tuple[int, int], Sequence[tuple[int, Mapping[str, float]]]],
) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """A row of metrics for each (round, iteration), in order, and what was measured once in each round, iteration 0."""
    rows = [
        {"round": round, "iteration": iteration, **merged(own)}
        for (round, iteration), own in sorted(parts.items())
        if iteration and own
    ]
    return rows, {round: merged(own) for (round, iteration), own in parts.items() if not iteration and own}
