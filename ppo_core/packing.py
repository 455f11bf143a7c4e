"""Which rows go together: minibatches of a step, micro-batches of a pass, rows that are packed into one."""

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


def pack_rows(lengths: Sequence[int], packed_length: int) -> list[list[int]]:
    """Row indices of packed rows, which hold rows end to end: each at most ``packed_length`` tokens, or as the longest row.

    Best fit, longest rows first; fuller packed rows first.
    """
    if not lengths:
        return []
    room = max(packed_length, *lengths)
    packed_rows: list[list[int]] = []
    # What is free on each packed row, and which packed row it is, in rising order.
    free: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(free, (lengths[row], 0))
        if place == len(free):
            left, packed_row = room, len(packed_rows)
            packed_rows.append([])
        else:
            left, packed_row = free.pop(place)
        packed_rows[packed_row].append(row)
        insort(free, (left - lengths[row], packed_row))
    return [packed_rows[packed_row] for _, packed_row in free]


def minibatches(num_rows: int, num_minibatches: int, seed: int) -> list[Tensor]:
    """A random partition of the rows into parts whose sizes differ by at most one; a function of ``seed`` alone."""
    if not 1 <= num_minibatches <= num_rows:
        raise ConfigError(
            f"num_minibatches={num_minibatches} cannot split {num_rows} rows; take at least 1 and at most one per row"
        )
    # Sorting our own uniforms instead of torch.randperm: the permutation then survives a change of torch version.
    permutation = torch.argsort(row_uniforms([seed], num_rows)[0], stable=True)
    return list(permutation.tensor_split(num_minibatches))
