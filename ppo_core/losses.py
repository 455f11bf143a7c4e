"""The clipped losses of policy and critic.

A loss is a **sum** over response tokens divided by a stated ``num_tokens``, the response tokens of the whole minibatch.
Losses, gradients and statistics of its micro-batches then add up to those of the minibatch, however it is cut.
Entries outside the mask are replaced before the maths: NaN there reaches neither the value nor the gradient.
"""

import torch
from torch import Tensor

from ppo_core.config import ratio_clip_widths
from ppo_core.errors import ConfigError, EmptyMaskError
from ppo_core.kl import kl_estimate
from ppo_core.shapes import Bool, Float, require_same_shape

Stats = dict[str, Tensor]


def policy_loss(
    new_logprobs: Float[Tensor, "*S"],
    logprobs: Float[Tensor, "*S"],
    advantages: Float[Tensor, "*S"],
    response_mask: Bool[Tensor, "*S"],
    *,
    cliprange: float | tuple[float, float],
    num_tokens: int,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, ""], Stats]:
    """PPO's clipped surrogate, to be minimised.

        ratio     = exp(new_logprobs - logprobs)
        objective = min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)
        objective = max(objective, dual_clip * A) where A < 0        only with dual_clip
        loss      = -sum(objective) / num_tokens

    Schulman et al. 2017, arXiv:1707.06347, eq. 7; two widths: Yu et al. 2025, arXiv:2503.14476; dual clip: Ye et al.
    2020, arXiv:1912.09729, eq. 5. Statistics, without gradient:

    - ``clipfrac``: share of tokens whose objective the clip lowers (the dual clip does not count);
    - ``approx_kl`` (k3) and ``k1_kl``: estimates of KL(rollout policy || new policy), whose sampler drew the tokens;
    - ``ratio_mean``: mean ratio;
    - ``ratio_max_deviation``: largest ``|ratio - 1|``. A maximum: unlike the others it does not add up.
    """
    require_same_shape(response_mask=response_mask, new_logprobs=new_logprobs, logprobs=logprobs, advantages=advantages)
    _require_tokens(num_tokens)
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"dual_clip={dual_clip} must be above 1, 3 is usual; None does not bound the loss")
    low, high = ratio_clip_widths(cliprange)
    new_logprobs, logprobs, advantages = (
        torch.where(response_mask, x, 0.0) for x in (new_logprobs, logprobs, advantages)
    )
    ratio = (new_logprobs - logprobs).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - low, 1 + high) * advantages
    objective = torch.minimum(unclipped, clipped)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    # Replaced inputs give an advantage of 0, hence an objective of 0: nothing is left to mask.
    loss = -objective.sum() / num_tokens

    with torch.no_grad():
        # Masked entries now have logratio 0: both estimates and the deviation are 0 there, only the ratio is not.
        stats = {
            "clipfrac": (clipped < unclipped).to(loss.dtype).sum() / num_tokens,
            "approx_kl": kl_estimate(logprobs, new_logprobs, "k3").sum() / num_tokens,
            "k1_kl": kl_estimate(logprobs, new_logprobs, "k1").sum() / num_tokens,
            "ratio_mean": torch.where(response_mask, ratio, 0.0).sum() / num_tokens,
            "ratio_max_deviation": (ratio - 1).abs().max(),
        }
    return loss, stats


def value_loss(
    new_values: Float[Tensor, "*S"],
    values: Float[Tensor, "*S"],
    returns: Float[Tensor, "*S"],
    response_mask: Bool[Tensor, "*S"],
    *,
    cliprange_value: float | None,
    num_tokens: int,
) -> tuple[Float[Tensor, ""], Stats]:
    """Squared error of the critic, which must also be small for a value kept near the one stored with the rollouts.

        near = clip(new_values, values - cliprange_value, values + cliprange_value)
        loss = 0.5 * sum(max((new_values - returns)^2, (near - returns)^2)) / num_tokens

    The maximum stops the gradient where a value has moved past its range towards the return, never where it moved away.
    Not in a paper; from the code that accompanied Schulman et al. 2017. ``cliprange_value=None`` leaves the plain
    squared error. ``clipfrac`` is the share of tokens where the clipped error is the larger one.
    """
    require_same_shape(response_mask=response_mask, new_values=new_values, values=values, returns=returns)
    _require_tokens(num_tokens)
    new_values, values, returns = (torch.where(response_mask, x, 0.0) for x in (new_values, values, returns))
    errors = (new_values - returns).square()
    if cliprange_value is None:
        return 0.5 * errors.sum() / num_tokens, {"clipfrac": torch.zeros_like(errors.detach().sum())}
    near = new_values.clamp(values - cliprange_value, values + cliprange_value)
    clipped_errors = (near - returns).square()
    loss = 0.5 * torch.maximum(errors, clipped_errors).sum() / num_tokens
    return loss, {"clipfrac": (clipped_errors > errors).to(loss.dtype).sum() / num_tokens}


def _require_tokens(num_tokens: int) -> None:
    if num_tokens < 1:
        raise EmptyMaskError(f"num_tokens={num_tokens} must be the response tokens of the minibatch, at least 1")
