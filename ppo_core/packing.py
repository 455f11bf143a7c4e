"""Which rows go together: minibatches of a step, micro-batches of a pass, lines of a packed batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from ppo_core.errors import ConfigError
from ppo_core.randomness import row_uniforms


def micro_batches(lengths: Tensor, token_budget: int, *, group_cost: int = 0) -> list[Tensor]:
    """Row indices in groups of similar length whose rows times longest row stays within ``token_budget``.

    Of all such groupings by length the cheapest, where a group costs its rows times its longest row and ``group_cost``
    tokens for itself. Longest rows first, so that memory runs out in the first group or never. A row beyond the budget is
    a group alone.
    """
    if token_budget < 1:
        raise ConfigError(f"token_budget={token_budget} must be at least 1; 8192 suits a small model")
    order = torch.argsort(lengths, descending=True, stable=True)
    longest = lengths[order].double()
    # cost[i] of the first i rows; the last group among them begins at first[i].
    cost = torch.zeros(len(order) + 1, dtype=torch.float64)
    first = [0] * (len(order) + 1)
    for i in range(1, len(order) + 1):
        area = torch.arange(i, 0, -1) * longest[:i]
        allowed = area <= token_budget
        allowed[i - 1] = True
        total = torch.where(allowed, cost[:i] + area + group_cost, torch.inf)
        first[i] = int(total.argmin())
        cost[i] = total[first[i]]
    ends = []
    end = len(order)
    while end > 0:
        ends.append(end)
        end = first[end]
    return [order[first[end] : end] for end in reversed(ends)]


def packed_lines(lengths: Sequence[int], line_tokens: int) -> list[list[int]]:
    """Row indices of lines that hold rows end to end: no more tokens than ``line_tokens``, or than the longest row has.

    Best fit, longest rows first; fuller lines first.
    """
    if not lengths:
        return []
    room = max(line_tokens, *lengths)
    lines: list[list[int]] = []
    # What is free on each line, and which line it is, in rising order.
    free: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(free, (lengths[row], 0))
        if place == len(free):
            left, line = room, len(lines)
            lines.append([])
        else:
            left, line = free.pop(place)
        lines[line].append(row)
        insort(free, (left - lengths[row], line))
    return [lines[line] for _, line in free]


def minibatches(num_rows: int, num_minibatches: int, seed: int) -> list[Tensor]:
    """A random partition of the rows into parts whose sizes differ by at most one; a function of ``seed`` alone."""
    if not 1 <= num_minibatches <= num_rows:
        raise ConfigError(
            f"num_minibatches={num_minibatches} cannot split {num_rows} rows; take at least 1 and at most one per row"
        )
    # Sorting our own uniforms instead of torch.randperm: the permutation then survives a change of torch version.
    permutation = torch.argsort(row_uniforms([seed], num_rows)[0], stable=True)
    return list(permutation.tensor_split(num_minibatches))
