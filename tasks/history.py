"""The metrics of a run, iteration by iteration, out of the manifests of its stages."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.standard_errors import SUFFIX

COUNTS = ("health/warnings",)
"""Metrics of which several outputs have the sum."""


def merged(parts: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """The metrics of several outputs, shards or stages, as one; each comes with its number of rows.

    A mean is weighted by rows, so that it is that of all rows together; its standard error is then
    ``sqrt(sum of (rows * stderr)^2) / rows of all``. Counts add up.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for rows, metrics in parts:
        for name, value in metrics.items():
            found.setdefault(name, []).append((rows, value))

    def together(name: str, own: list[tuple[int, float]]) -> float:
        if name in COUNTS:
            return sum(value for _, value in own)
        if len(own) == 1:
            return own[0][1]
        total = max(1, sum(rows for rows, _ in own))
        if name.endswith(SUFFIX):
            return math.sqrt(sum((rows * value) ** 2 for rows, value in own)) / total
        return sum(rows * value for rows, value in own) / total

    return {name: together(name, own) for name, own in found.items()}


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
