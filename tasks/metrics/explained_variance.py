"""How far the explained variance of a batch may lie from the true one. Apart from the room's door, which needs no torch."""

from collections.abc import Hashable, Sequence

import torch


def explained_variance_stderr(
    values: torch.Tensor, returns: torch.Tensor, lengths: torch.Tensor, groups: Sequence[Hashable]
) -> float | None:
    """Of ``1 - Var(R - V) / Var(R)`` over the tokens of B responses; None where it cannot be known.

    ``values`` and ``returns`` hold the tokens of one response after the other, ``lengths`` and ``groups`` have an entry for
    each. By leaving out one group at a time (Tukey's jackknife): the tokens of a response all tell of one outcome.
    """
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
