"""The difference of two groups' means, and how far it can be believed."""

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of the mean of those inside a group and those outside it."""

    inside: float
    outside: float
    difference: float
    stderr: float | None
    """None where all are of one prompt, so that nothing is independent."""


def difference_of_means(values: Array, is_inside: Array, groups: Array) -> Difference | None:
    """The mean of ``values`` inside less that outside; None where one of the two has none. NaN is left out.

        stderr = sqrt( G / (G - 1) * sum over groups of (sum of ±(x - its mean) / its N)^2 )

    ``groups`` are the prompts, whose responses are alike: the cluster-robust estimate, as for a mean in
    ``tasks.metrics.standard_errors`` (Liang and Zeger 1986).
    """
    known = np.isfinite(values)
    values, is_inside, groups = values[known], is_inside[known], groups[known]
    num_inside = int(is_inside.sum())
    num_outside = len(values) - num_inside
    if not num_inside or not num_outside:
        return None
    inside, outside = float(values[is_inside].mean()), float(values[~is_inside].mean())
    influence = np.where(is_inside, (values - inside) / num_inside, -(values - outside) / num_outside)
    _, number = np.unique(groups, return_inverse=True)
    sums = np.bincount(number, weights=influence)
    stderr = math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) if len(sums) > 1 else None
    return Difference(inside=inside, outside=outside, difference=inside - outside, stderr=stderr)
