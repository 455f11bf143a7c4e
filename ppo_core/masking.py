"""Statistics over the response tokens of a batch. Entries outside the mask are never read: they may be NaN."""

import torch
from torch import Tensor

from ppo_core.errors import EmptyMaskError
from ppo_core.shapes import Bool, Float, require_same_shape


def masked_mean(x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Mean over the entries that the mask selects; a mask that selects none has no mean and is refused."""
    require_same_shape(mask=mask, x=x)
    count = mask.sum()
    if count == 0:
        raise EmptyMaskError(
            f"mask of shape {tuple(mask.shape)} selects no token; drop empty responses before batching"
        )
    # where, not x * mask: NaN times 0 is NaN, in the value and in the gradient.
    return torch.where(mask, x, 0.0).sum() / count


def masked_whiten(x: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], *, center: bool = True) -> Float[Tensor, "*S"]:
    """Scale to standard deviation 1 over the mask; ``center=True`` takes the mean away, ``center=False`` keeps it.

        (x - mean) / sqrt(var + 1e-8)  [+ mean]        var with ddof 1

    Results are 0 outside the mask. Fewer than two entries have no variance and stay as they are.
    """
    require_same_shape(mask=mask, x=x)
    x = torch.where(mask, x, 0.0)
    count = int(mask.sum())
    if count < 2:
        return x
    mean = x.sum() / count
    deviations = torch.where(mask, x - mean, 0.0)
    scaled = deviations * (deviations.square().sum() / (count - 1) + 1e-8).rsqrt()
    return scaled if center else torch.where(mask, scaled + mean, 0.0)


def explained_variance(
    values: Float[Tensor, "*S"], returns: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]
) -> Float[Tensor, ""]:
    """``1 - Var(returns - values) / Var(returns)`` over the mask: 1 is a perfect critic, 0 one that knows the mean.

    0 as well where the returns do not vary: there is nothing to explain. A constant error of the critic is not seen.
    """
    require_same_shape(mask=mask, values=values, returns=returns)
    # float64, so that equal returns have exactly no variance and do not turn rounding into a ratio.
    selected_returns, errors = returns[mask].double(), (returns[mask] - values[mask]).double()
    if len(selected_returns) == 0:
        raise EmptyMaskError(
            f"mask of shape {tuple(mask.shape)} selects no token; drop empty responses before batching"
        )
    if (selected_returns == selected_returns[0]).all():
        return torch.zeros((), dtype=returns.dtype, device=returns.device)
    return (1 - errors.var(correction=0) / selected_returns.var(correction=0)).to(returns.dtype)
