"""The metrics of several outputs as one, each as it is declared to combine."""

import math
from collections.abc import Iterable, Mapping, Sequence

from tasks.metrics.declared import combination

Part = tuple[int, Mapping[str, float]]
"""An output's number of rows, and its metrics."""


def combine(parts: Iterable[Part]) -> dict[str, float]:
    """What each metric would be, had one output had all the rows: of shards, of an iteration's stages, of iterations.

    ``parts`` are in the order in which they were made. A retry needs no more: an attempt that failed has committed
    nothing, so each output is there once.
    """
    found: dict[str, list[Part]] = {}
    for part in parts:
        for name in part[1]:
            found.setdefault(name, []).append(part)
    return {name: own[0][1][name] if len(own) == 1 else combined(name, own) for name, own in found.items()}


def combined(name: str, parts: Sequence[Part]) -> float:
    """A metric that each of these outputs has.

    mean by rows, w = rows; by tokens, w = rows * tokens a row     sum of w * x / sum of w
    std from moments       sqrt(mean of std^2 + mean of (mean - mean of all)^2)
    independent errors     sqrt(sum of (w * stderr)^2) / sum of w
    """
    how = combination(name)
    values = [metrics[name] for _, metrics in parts]
    if how.way == "sum":
        return sum(values)
    if how.way == "max":
        # Not max(): what is no number must not be passed over.
        return math.nan if any(map(math.isnan, values)) else max(values)
    if how.way == "last":
        return values[-1]
    weights = [float(rows) for rows, _ in parts]
    if how.way == "mean by tokens":
        weights = [rows * metrics[how.beside] for rows, metrics in parts]
    total = sum(weights) or 1.0

    def mean(xs: Iterable[float]) -> float:
        return sum(weight * x for weight, x in zip(weights, xs, strict=True)) / total

    if how.way == "independent errors":
        return math.sqrt(sum((weight * x) ** 2 for weight, x in zip(weights, values, strict=True))) / total
    if how.way == "std from moments":
        means = [metrics[how.beside] for _, metrics in parts]
        return math.sqrt(mean(x * x for x in values) + mean((x - mean(means)) ** 2 for x in means))
    return mean(values)
