"""The losses of policy and critic, and how terms of tokens become one number.

A loss is a **sum** over response tokens divided by a stated ``num_tokens``, the response tokens of the whole minibatch.
Losses, gradients and statistics of its micro-batches then add up to those of the minibatch, however it is cut.
With ``num_responses``, the rows of the whole minibatch, each response weighs the same instead of each token; a
micro-batch holds its responses whole. Statistics are means over tokens in either case.
Entries outside the mask are replaced before the maths: NaN there reaches neither the value nor the gradient.
"""

import torch
from torch import Tensor

from ppo_core.config import KLDirection, ratio_clip_widths
from ppo_core.errors import ConfigError, EmptyMaskError
from ppo_core.kl import KLEstimator, kl_estimate, kl_loss_terms
from ppo_core.shapes import Bool, Float, require_same_shape

Stats = dict[str, Tensor]


def aggregate_loss(
    terms: Float[Tensor, "*S"], response_mask: Bool[Tensor, "*S"], *, num_tokens: int, num_responses: int | None = None
) -> Float[Tensor, ""]:
    """One number from one term per token.

        token_mean    sum of terms / num_tokens
        seq_mean      sum over responses of (mean over its tokens) / num_responses        with num_responses

    Tokens of a response lie along the last dimension. ``seq_mean`` is the 1/|o| form of Shao et al. 2024,
    arXiv:2402.03300, eq. 3; ``token_mean`` that of Yu et al. 2025, arXiv:2503.14476, eq. 8.
    """
    require_same_shape(response_mask=response_mask, terms=terms)
    _require_positive("num_tokens", num_tokens, "the response tokens")
    terms = torch.where(response_mask, terms, 0.0)
    if num_responses is None:
        return terms.sum() / num_tokens
    _require_positive("num_responses", num_responses, "the responses")
    # A row without a token has terms of 0: dividing them by 1 leaves it out.
    lengths = response_mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return (terms / lengths).sum() / num_responses


def policy_loss(
    new_logprobs: Float[Tensor, "*S"],
    logprobs: Float[Tensor, "*S"],
    advantages: Float[Tensor, "*S"],
    response_mask: Bool[Tensor, "*S"],
    *,
    cliprange: float | tuple[float, float],
    num_tokens: int,
    num_responses: int | None = None,
    dual_clip: float | None = None,
    weights: Float[Tensor, "*S"] | None = None,
) -> tuple[Float[Tensor, ""], Stats]:
    """PPO's clipped surrogate, to be minimised.

        ratio     = exp(new_logprobs - logprobs)
        objective = min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)
        objective = max(objective, dual_clip * A) where A < 0        only with dual_clip
        loss      = -sum(weights * objective) / num_tokens           or as aggregate_loss says; weights 1 unless given

    Schulman et al. 2017, arXiv:1707.06347, eq. 7; two widths: Yu et al. 2025, arXiv:2503.14476; dual clip: Ye et al.
    2020, arXiv:1912.09729, eq. 5; for tokens of another sampler ``weights`` are those of ``importance_weights``.
    Statistics, unweighted and without gradient:

    - ``clipfrac``: share of tokens whose objective the clip lowers (the dual clip does not count);
    - ``approx_kl`` (k3) and ``k1_kl``: estimates of KL(rollout policy || new policy), whose sampler drew the tokens;
    - ``approx_kl_variance``: that of ``approx_kl`` from above, ``sum over responses of (sum of its k3)^2 / num_tokens^2``:
      responses are drawn independently, the tokens of one are not;
    - ``ratio_mean``: mean ratio;
    - ``ratio_max_deviation``: largest ``|ratio - 1|``. A maximum: unlike the others it does not add up.
    """
    require_same_shape(response_mask=response_mask, new_logprobs=new_logprobs, logprobs=logprobs, advantages=advantages)
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
    objective = _weighted(objective, weights, response_mask)
    loss = -aggregate_loss(objective, response_mask, num_tokens=num_tokens, num_responses=num_responses)
    with torch.no_grad():
        binds = (clipped < unclipped).to(loss.dtype)
        stats = {
            "clipfrac": aggregate_loss(binds, response_mask, num_tokens=num_tokens),
            **_ratio_stats(new_logprobs, logprobs, response_mask, num_tokens),
        }
    return loss, stats


def pg_loss(
    new_logprobs: Float[Tensor, "*S"],
    logprobs: Float[Tensor, "*S"],
    advantages: Float[Tensor, "*S"],
    response_mask: Bool[Tensor, "*S"],
    *,
    num_tokens: int,
    num_responses: int | None = None,
    weights: Float[Tensor, "*S"] | None = None,
) -> tuple[Float[Tensor, ""], Stats]:
    """The policy gradient's loss, to be minimised: without a ratio it is right only for tokens of the policy itself.

        loss = -sum(weights * new_logprobs * A) / num_tokens        or as aggregate_loss says; weights 1 unless given

    Williams 1992. ``logprobs`` are read for the statistics alone: those of ``policy_loss``, but for ``clipfrac``.
    For tokens of another sampler ``weights`` are those of ``importance_weights``.
    """
    require_same_shape(response_mask=response_mask, new_logprobs=new_logprobs, logprobs=logprobs, advantages=advantages)
    new_logprobs, logprobs, advantages = (
        torch.where(response_mask, x, 0.0) for x in (new_logprobs, logprobs, advantages)
    )
    objective = new_logprobs * advantages
    objective = _weighted(objective, weights, response_mask)
    loss = -aggregate_loss(objective, response_mask, num_tokens=num_tokens, num_responses=num_responses)
    with torch.no_grad():
        stats = _ratio_stats(new_logprobs, logprobs, response_mask, num_tokens)
    return loss, stats


def importance_weights(
    logprobs: Float[Tensor, "*S"],
    sampling_logprobs: Float[Tensor, "*S"],
    response_mask: Bool[Tensor, "*S"],
    *,
    cap: float,
    num_tokens: int,
) -> tuple[Float[Tensor, "*S"], Stats]:
    """Weights of the policy's loss for tokens that were not drawn from the policy that the update starts from.

        weight = min(exp(logprobs - sampling_logprobs), cap)

    They were drawn from a mu that is not pi_old: an engine with the same weights but kernels of its own, or a policy some
    updates older. E_pi_old[f] = E_mu[pi_old / mu * f], and the ratio is truncated so that its variance stays bounded,

        E_mu[ min(pi_old / mu, cap) * grad min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) ],    ratio = pi_new / pi_old

    so that only the surrogate is weighted; the terms for KL, entropy and value are not. For an engine: Yao et al. 2025,
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training". For an older policy it is decoupled PPO, whose
    pi_old is the proximal and mu the behaviour policy: Hilton et al. 2022, arXiv:2110.00641, without a cap; Fu et al. 2025,
    arXiv:2505.24298.

    The result is data, without gradient, and 1 outside the mask. Statistics: ``importance_mean``, the mean weight;
    ``importance_capped``, the share of tokens whose weight the cap lowers; ``sampling_approx_kl``, the k3 estimate of
    KL(mu || pi_old).
    """
    require_same_shape(response_mask=response_mask, logprobs=logprobs, sampling_logprobs=sampling_logprobs)
    if not cap >= 1:
        raise ConfigError(f"cap={cap} must be at least 1, 2 is usual; inf does not truncate")
    with torch.no_grad():
        logprobs, sampling_logprobs = (torch.where(response_mask, x, 0.0) for x in (logprobs, sampling_logprobs))
        ratio = (logprobs - sampling_logprobs).exp()
        weights = ratio.clamp(max=cap)
        k3 = kl_estimate(sampling_logprobs, logprobs, "k3")
        stats = {
            "importance_mean": aggregate_loss(weights, response_mask, num_tokens=num_tokens),
            "importance_capped": aggregate_loss(
                (weights < ratio).to(ratio.dtype), response_mask, num_tokens=num_tokens
            ),
            "sampling_approx_kl": aggregate_loss(k3, response_mask, num_tokens=num_tokens),
        }
    return weights, stats


def kl_loss(
    new_logprobs: Float[Tensor, "*S"],
    logprobs: Float[Tensor, "*S"],
    ref_logprobs: Float[Tensor, "*S"],
    response_mask: Bool[Tensor, "*S"],
    *,
    estimator: KLEstimator,
    direction: KLDirection,
    num_tokens: int,
    num_responses: int | None = None,
) -> Float[Tensor, ""]:
    """``kl_loss_terms`` of the response tokens as one number, for a policy's loss. Multiply it by its weight."""
    require_same_shape(
        response_mask=response_mask, new_logprobs=new_logprobs, logprobs=logprobs, ref_logprobs=ref_logprobs
    )
    new_logprobs, logprobs, ref_logprobs = (
        torch.where(response_mask, x, 0.0) for x in (new_logprobs, logprobs, ref_logprobs)
    )
    terms = kl_loss_terms(new_logprobs, logprobs, ref_logprobs, estimator=estimator, direction=direction)
    return aggregate_loss(terms, response_mask, num_tokens=num_tokens, num_responses=num_responses)


def value_loss(
    new_values: Float[Tensor, "*S"],
    values: Float[Tensor, "*S"],
    returns: Float[Tensor, "*S"],
    response_mask: Bool[Tensor, "*S"],
    *,
    cliprange_value: float | None,
    num_tokens: int,
    num_responses: int | None = None,
) -> tuple[Float[Tensor, ""], Stats]:
    """Squared error of the critic, which must also be small for a value kept near the one stored with the rollouts.

        near = clip(new_values, values - cliprange_value, values + cliprange_value)
        loss = 0.5 * sum(max((new_values - returns)^2, (near - returns)^2)) / num_tokens        or as aggregate_loss says

    The maximum stops the gradient where a value has moved past its range towards the return, never where it moved away.
    Not in a paper; from the code that accompanied Schulman et al. 2017. ``cliprange_value=None`` leaves the plain
    squared error. ``clipfrac`` is the share of tokens where the clipped error is the larger one.
    """
    require_same_shape(response_mask=response_mask, new_values=new_values, values=values, returns=returns)
    new_values, values, returns = (torch.where(response_mask, x, 0.0) for x in (new_values, values, returns))
    errors = worse_errors = (new_values - returns).square()
    if cliprange_value is not None:
        near = new_values.clamp(values - cliprange_value, values + cliprange_value)
        worse_errors = torch.maximum(errors, (near - returns).square())
    loss = 0.5 * aggregate_loss(worse_errors, response_mask, num_tokens=num_tokens, num_responses=num_responses)
    with torch.no_grad():
        binds = (worse_errors > errors).to(loss.dtype)
        stats = {"clipfrac": aggregate_loss(binds, response_mask, num_tokens=num_tokens)}
    return loss, stats


def _weighted(objective: Tensor, weights: Tensor | None, response_mask: Tensor) -> Tensor:
    """The terms of the tokens times their weights, which are data."""
    if weights is None:
        return objective
    require_same_shape(response_mask=response_mask, weights=weights)
    return torch.where(response_mask, weights.detach(), 1.0) * objective


def _ratio_stats(new_logprobs: Tensor, logprobs: Tensor, response_mask: Tensor, num_tokens: int) -> Stats:
    """How far the policy has moved from the one that sampled; both logprobs are 0 outside the mask."""
    deviations = torch.expm1(new_logprobs - logprobs)

    def mean(terms: Tensor) -> Tensor:
        return aggregate_loss(terms, response_mask, num_tokens=num_tokens)

    k3 = kl_estimate(logprobs, new_logprobs, "k3")
    return {
        "approx_kl": mean(k3),
        "approx_kl_variance": k3.sum(dim=-1).square().sum() / num_tokens**2,
        "k1_kl": mean(kl_estimate(logprobs, new_logprobs, "k1")),
        "ratio_mean": mean(deviations + 1),
        "ratio_max_deviation": deviations.abs().max(),
    }


def _require_positive(name: str, count: int, what: str) -> None:
    if count < 1:
        raise EmptyMaskError(f"{name}={count} must be {what} of the minibatch, at least 1")
