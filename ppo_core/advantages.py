"""How much better a token, or a response, was than expected: by a critic, or by the other samples of a prompt."""

from typing import get_args

import torch
from torch import Tensor

from ppo_core.config import COMPARES_SAMPLES, GroupEstimator
from ppo_core.errors import ConfigError, ShapeError
from ppo_core.shapes import Bool, Float, Int, require_same_shape


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    lam: float | Float[Tensor, " B"],
    critic_lam: float | None = None,
    horizon: int | None = None,
    bootstrap_values: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages and value targets for each response token.

        delta_t = r_t + gamma * V_{t+1} - V_t        V after the last token: bootstrap_values, 0 without them
        A_t     = sum of (gamma * lam)^k * delta_{t+k} over 0 <= k < horizon
        R_t     = A_t + V_t                         with critic_lam instead of lam, where that is given

    Schulman et al. 2016, arXiv:1506.02438, eq. 16; without a horizon, as the recursion
    ``A_t = delta_t + gamma * lam * A_{t+1}``. ``lam`` may be one number per response. Two lambdas, for policy and critic:
    Yuan et al. 2025, arXiv:2503.01491; with ``critic_lam=1`` the targets are what was received, whatever V says. Give a
    bootstrap value of 0 to a response that stopped by itself. Advantages are not whitened here. Results are 0 outside
    ``response_mask``; inputs there are never read, so they may be NaN, and a row with a gap in its mask gets what the row
    without the gap would get.
    """
    require_same_shape(response_mask=response_mask, rewards=rewards, values=values)
    if horizon is not None and horizon < 1:
        raise ConfigError(f"horizon={horizon} must be at least 1; None sums to the end of the response")
    if bootstrap_values is not None and bootstrap_values.shape != response_mask.shape[:1]:
        raise ShapeError(
            f"bootstrap_values is {tuple(bootstrap_values.shape)} for {len(response_mask)} responses; "
            "give one per response, 0 where it stopped"
        )
    # A stable sort moves the real tokens of each row to its front in their order: from here on there are no gaps.
    order = response_mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    mask = response_mask.gather(1, order)
    packed_rewards = torch.where(response_mask, rewards, 0.0).gather(1, order)
    packed_values = torch.where(response_mask, values, 0.0).gather(1, order)

    next_values = _shifted(packed_values)
    if bootstrap_values is not None:
        is_last = mask & ~_shifted(mask)
        next_values = torch.where(is_last, bootstrap_values[:, None], next_values)
    # Beyond the last token delta is 0, so that sums may run into the padding.
    deltas = torch.where(mask, packed_rewards + gamma * next_values - packed_values, 0.0)

    def advantages_by(discount: float | Tensor) -> Tensor:
        packed = _discounted_sums(deltas, discount, horizon)
        return torch.zeros_like(packed).scatter(1, order, torch.where(mask, packed, 0.0))

    advantages = advantages_by(gamma * lam)
    of_critic = advantages if critic_lam is None else advantages_by(gamma * critic_lam)
    return advantages, torch.where(response_mask, of_critic + torch.where(response_mask, values, 0.0), 0.0)


def length_adaptive_lam(response_mask: Bool[Tensor, "B T"], *, alpha: float) -> Float[Tensor, " B"]:
    """A lambda for each response that grows with its length T: ``max(0, 1 - 1 / (alpha * T))``.

    The sum of the weights ``lam^k`` is then ``alpha * T`` in every response, where a fixed lambda lets the final score reach
    no more than some ``1 / (1 - lam)`` tokens back. Yue et al. 2025, arXiv:2504.05118.
    """
    if not alpha > 0:
        raise ConfigError(f"alpha={alpha} must be positive; 0.05 is that of the paper")
    lengths = response_mask.sum(dim=1).clamp(min=1)
    return (1 - 1 / (alpha * lengths)).clamp(min=0)


def rewards_to_go(
    rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, gamma: float
) -> Float[Tensor, "B T"]:
    """What was received from each token on: ``R_t = sum of gamma^k * r_{t+k}``, without a critic. 0 outside the mask.

    Williams 1992; that of a token leaves out what came before it, which the token could not change.
    """
    nothing = torch.zeros_like(rewards)
    return gae(rewards, nothing, response_mask, gamma=gamma, lam=1.0)[0]


def _shifted(x: Tensor) -> Tensor:
    """Each row's entries one step later in time, 0 (or False) after the last."""
    return torch.nn.functional.pad(x[:, 1:], (0, 1)) if x.shape[1] else x


def _discounted_sums(
    x: Float[Tensor, "B T"], discount: float | Float[Tensor, " B"], horizon: int | None
) -> Float[Tensor, "B T"]:
    """``sum of discount^k * x_{t+k}`` over ``0 <= k < horizon``; the discount is that of all rows, or one per row."""
    num_columns = x.shape[1]
    if horizon is not None and horizon < num_columns:
        # Horner's rule, all columns at once; subtracting the tail from the unlimited sum would cancel digits.
        sums, of_row = x, discount[:, None] if isinstance(discount, Tensor) else discount
        for _ in range(horizon - 1):
            sums = x + of_row * _shifted(sums)
        return sums
    columns: list[Tensor] = []
    running = x.new_zeros(len(x))
    for t in reversed(range(num_columns)):
        running = x[:, t] + discount * running
        columns.append(running)
    return torch.stack(columns[::-1], dim=1) if columns else x


def group_advantages(
    scores: Float[Tensor, " B"], group_ids: Int[Tensor, " B"], *, estimator: GroupEstimator
) -> Float[Tensor, " B"]:
    """One advantage per response without a critic; responses with one group id answer one prompt.

    - ``vanilla_pg``: the score itself, without a baseline. Williams 1992.
    - ``reinforce``: score minus the mean of the batch (groups do not matter). Williams 1992.
    - ``rloo``: score minus the mean of the **other** samples of the prompt. Ahmadian et al. 2024, arXiv:2402.14740.
    - ``grpo``: (score - group mean) / (group std + 1e-6), std with ddof 1. Shao et al. 2024, arXiv:2402.03300.
    - ``dr_grpo``: score minus the group mean, undivided. Liu et al. 2025, arXiv:2503.20783.

    ``rloo`` and ``grpo`` need two samples per prompt.
    """
    require_same_shape(scores=scores, group_ids=group_ids)
    # float64: in float32 the mean of equal scores may miss them by a rounding, which grpo would multiply by a million.
    exact = scores.double()
    if estimator == "vanilla_pg":
        return scores
    if estimator == "reinforce":
        return (exact - exact.mean()).to(scores.dtype)
    if estimator not in COMPARES_SAMPLES:
        raise ConfigError(
            f"estimator={estimator!r} is none of {', '.join(get_args(GroupEstimator))}; rloo is a good first one"
        )

    ids, group = group_ids.unique(return_inverse=True)
    sizes = torch.bincount(group, minlength=len(ids)).double()
    if estimator != "dr_grpo" and (sizes < 2).any():
        raise ShapeError(
            f"group {int(ids[sizes < 2][0])} has one response; {estimator} needs two samples per prompt or more"
        )
    deviations = exact - (_sum_by_group(exact, group, len(ids)) / sizes)[group]
    if estimator == "rloo":
        # score - (sum - score) / (n - 1), rewritten with the group mean
        deviations = deviations * (sizes / (sizes - 1))[group]
    elif estimator == "grpo":
        std = (_sum_by_group(deviations.square(), group, len(ids)) / (sizes - 1)).sqrt()
        deviations = deviations / (std + 1e-6)[group]
    return deviations.to(scores.dtype)


def _sum_by_group(x: Tensor, group: Tensor, num_groups: int) -> Tensor:
    return x.new_zeros(num_groups).index_add(0, group, x)
