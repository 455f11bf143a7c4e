"""From one score per response to one reward per token."""

import torch
from torch import Tensor

from ppo_core.errors import EmptyMaskError, ShapeError
from ppo_core.shapes import Bool, Float, require_same_shape


def token_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, kl_coef: float
) -> Float[Tensor, "B T"]:
    """The KL penalty at every response token, and the score at the last one.

        r_t = -kl_coef * kl_t + [t = last] * score

    0 outside the mask, where ``kl`` is never read. A row without a token has nowhere to put its score and is refused.
    """
    require_same_shape(response_mask=response_mask, kl=kl)
    if scores.shape != response_mask.shape[:1]:
        raise ShapeError(f"scores is {tuple(scores.shape)} for {len(response_mask)} responses; give one per response")
    has_token = response_mask.any(dim=1)
    if not has_token.all():
        row = int((~has_token).nonzero()[0])
        raise EmptyMaskError(f"response_mask selects no token in row {row}; drop empty responses before batching")
    columns = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, columns, -1).max(dim=1, keepdim=True).values
    penalty = -kl_coef * torch.where(response_mask, kl, 0.0)
    return penalty + torch.where(columns == last, scores[:, None].to(penalty.dtype), 0.0)
