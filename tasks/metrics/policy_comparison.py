"""Two samples of responses held against each other: gains, gaps, and what the responses look like."""

import statistics
from collections.abc import Hashable, Mapping, Sequence

from tasks.metrics.standard_errors import mean_metric

Moments = Mapping[str, float]


def distinct_share(tokens: Sequence[int], n: int) -> float | None:
    """Distinct n-grams of a response as a share of its n-grams: 1 where nothing repeats; None where there is none.

    Li et al. 2016, arXiv:1510.03055, section 5.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_metric(
    name: str, responses: Sequence[Sequence[int]], n: int, groups: Sequence[Hashable]
) -> dict[str, float]:
    """The mean share of distinct n-grams over the responses that have any, with its standard error; else nothing."""
    shares = [(distinct_share(response, n), group) for response, group in zip(responses, groups, strict=True)]
    known = [(share, group) for share, group in shares if share is not None]
    return mean_metric(name, [share for share, _ in known], [group for _, group in known]) if known else {}


def empty_metric(name: str, responses: Sequence[str], groups: Sequence[Hashable]) -> dict[str, float]:
    """The share of responses that say nothing: white space at most, before whatever ended them."""
    return mean_metric(name, [float(not response.strip()) for response in responses], groups)


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's; 0 where one of the two does not vary, since nothing then follows the other."""
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return 0.0
    return statistics.correlation(xs, ys)


def moments(xs: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(xs), "std": statistics.stdev(xs) if len(xs) > 1 else 0.0}


def gain(now: Moments, start: Moments) -> float:
    """How far a mean has moved, in the standard deviations over responses that it started with; 0 where there was none."""
    return (now["mean"] - start["mean"]) / start["std"] if start["std"] > 0 else 0.0


def lead(scores: Sequence[float], others: Sequence[float], *, score: Moments, other: Moments) -> list[float]:
    """How far each response's score is ahead of another reward, each in its standard deviations of the start.

    The gap between two gains is the difference of two means of it, so its standard errors are those of the gap.
    """
    return [
        ((a - score["mean"]) / score["std"] if score["std"] > 0 else 0.0)
        - ((b - other["mean"]) / other["std"] if other["std"] > 0 else 0.0)
        for a, b in zip(scores, others, strict=True)
    ]
