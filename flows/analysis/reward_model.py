"""How a reward model judges pairs that it was never trained on, and where it is wrong."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from flows.query import DataSet, Order

MOST_WRONG = 50
LENGTH_STEPS = (-30, -10, -3, 0, 3, 10, 30)
"""Where the bins of the difference in tokens begin and end."""
NUM_MARGIN_BINS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Some of the pairs, and how many of them the model ranks as people did."""

    label: str
    pairs: int
    accuracy: float
    stderr: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All pairs of a round's reward model."""

    by_length: list[Bin]
    by_margin: list[Bin]
    """By what people said of how much better one is; empty where they did not."""
    by_source: list[Bin]
    """By where the pairs are from; empty where they are all from one source, or older than that was kept."""
    wrong: list[dict[str, Any]]
    """The pairs with the lowest margin between the scores, the worst first."""
    num_wrong: int
    chosen: list[float]
    rejected: list[float]


def judgement_of(pairs: DataSet, sources: Sequence[str]) -> Judgement:
    """Read the data set ``held_out_pairs``; ``sources`` are the names of the sources that its preferences are from.

    Scores are those of training: their zero means nothing.
    """
    numbers = pairs.search().table(["chosen_score", "rejected_score", "score_margin", "longer_by", "margin", "source"])
    margin, longer_by, people = (
        _numbers(numbers[name].to_pylist()) for name in ("score_margin", "longer_by", "margin")
    )
    worst = pairs.search().sorted_by([Order(column="score_margin", largest_first=False)], MOST_WRONG)
    return Judgement(
        by_length=length_bins(longer_by, margin),
        by_margin=margin_bins(people, margin),
        by_source=source_bins(_numbers(numbers["source"].to_pylist()), sources, margin)
        if "source" in numbers.column_names
        else [],
        wrong=[row for row in worst.dicts() if row["score_margin"] <= 0],
        num_wrong=int((margin <= 0).sum()),
        chosen=numbers["chosen_score"].to_pylist(),
        rejected=numbers["rejected_score"].to_pylist(),
    )


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def length_bins(longer_by: np.ndarray, margin: np.ndarray) -> list[Bin]:
    """By the tokens of the chosen response less those of the rejected one; pairs of one length are a bin of their own."""
    edges = [-math.inf, *LENGTH_STEPS, math.inf]
    bins: list[tuple[str, np.ndarray]] = []
    for low, high in pairwise(edges):
        if high <= 0:
            label = (
                f"shorter by {-high + 1:g} and more" if low == -math.inf else f"shorter by {-high + 1:g} to {-low:g}"
            )
            bins.append((label, (longer_by >= low) & (longer_by < high)))
        else:
            label = f"longer by {low + 1:g} and more" if high == math.inf else f"longer by {low + 1:g} to {high:g}"
            bins.append((label, (longer_by > low) & (longer_by <= high)))
        if high == 0:
            bins.append(("as long", longer_by == 0))
    return _binned(bins, margin)


def margin_bins(people: np.ndarray, margin: np.ndarray) -> list[Bin]:
    """By the margin that people gave, in bins of as many pairs."""
    known = people[np.isfinite(people)]
    if not len(known):
        return []
    edges = np.unique(np.quantile(known, np.linspace(0, 1, NUM_MARGIN_BINS + 1)))
    if len(edges) == 1:
        return _binned([(f"{edges[0]:.3g}", people == edges[0])], margin)
    # The last bin has both its ends.
    edges[-1] = np.nextafter(edges[-1], math.inf)
    bins = [(f"{low:.3g} to {high:.3g}", (people >= low) & (people < high)) for low, high in pairwise(edges)]
    return _binned(bins, margin)


def source_bins(source: np.ndarray, sources: Sequence[str], margin: np.ndarray) -> list[Bin]:
    """By the source of the preferences, in their order; nothing where there is but one."""
    if len(sources) < 2:
        return []
    return _binned([(name, source == position) for position, name in enumerate(sources)], margin)


def _binned(bins: Sequence[tuple[str, np.ndarray]], margin: np.ndarray) -> list[Bin]:
    """The bins that have pairs. The standard error is that of a share: pairs of one preference count as independent."""
    found = []
    for label, own in bins:
        if n := int(own.sum()):
            accuracy = float((margin[own] > 0).mean())
            found.append(Bin(label=label, pairs=n, accuracy=accuracy, stderr=math.sqrt(accuracy * (1 - accuracy) / n)))
    return found
