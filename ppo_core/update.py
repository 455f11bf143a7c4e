"""One PPO update: passes over the rollouts, split into minibatches (steps), split into micro-batches (memory)."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppo_core.batch import PaddedBatch, RolloutBatch, micro_batches, minibatches
from ppo_core.config import PPOConfig
from ppo_core.errors import NonFiniteError, ShapeError
from ppo_core.forward import device_of, response_logprobs_and_entropy, response_values
from ppo_core.losses import Stats, policy_loss, value_loss
from ppo_core.masking import explained_variance
from ppo_core.randomness import derive_seed

_COLUMNS = ("logprobs", "values", "advantages", "returns")


@dataclass(frozen=True, eq=False)
class Optimizers:
    """One each, so that policy and critic have learning rates of their own. Both already carry those rates."""

    policy: torch.optim.Optimizer
    critic: torch.optim.Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """What happened in an update; means over its minibatches unless the name or the description says otherwise."""

    policy_loss: float
    value_loss: float
    approx_kl: float
    """k3 estimate of KL(rollout policy || policy before the minibatch's step), per token."""
    k1_kl: float
    """The same by k1, which may be negative."""
    clipfrac: float
    """Share of response tokens where the ratio clip binds."""
    value_clipfrac: float
    entropy: float
    """Entropy of the policy's next-token distribution at response tokens, at the sampling temperature."""
    ratio_mean: float
    first_minibatch_ratio_deviation: float
    """Largest |ratio - 1| before the first step, when policy and rollout policy have the same weights."""
    grad_norm: float
    """Norm of the policy's gradient before it was scaled down."""
    critic_grad_norm: float
    explained_variance: float
    """Of the returns by the values stored with the rollouts."""
    num_optimizer_steps: int
    """Steps of the policy's optimizer; a count, not a mean."""
    num_tokens: int
    """Response tokens in the rollouts; a count, not a mean."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def ppo_update(
    policy: Any,
    critic: Any,
    optimizers: Optimizers,
    batch: RolloutBatch,
    config: PPOConfig,
    *,
    seed: int,
    temperature: float = 1.0,
    micro_batch_tokens: int = 8192,
    on_tokens: Callable[[int], None] | None = None,
) -> UpdateStats:
    """Train ``policy`` and ``critic`` in place on ``batch``, which needs columns logprobs, values, advantages, returns.

    Schulman et al. 2017, arXiv:1707.06347, algorithm 1, with a critic of its own. Each epoch visits the rows in an
    order that is a function of ``seed`` and the epoch. The models stay in train or eval mode as they are given; dropout
    must be off. ``temperature`` is the one that the logprobs were stored at. ``micro_batch_tokens`` bounds rows times
    longest row of one forward pass, and with it memory; results do not depend on it. ``on_tokens`` is told the response
    tokens of each micro-batch when it is done. A loss or gradient that is not finite raises ``NonFiniteError`` before
    the step it would have spoiled.
    """
    _require_columns(batch)
    policy_epochs, critic_epochs = config.epochs, config.critic_epochs or config.epochs
    policy_tally, critic_tally = _Tally(), _Tally()
    first_ratio_deviation = 0.0

    for epoch in range(max(policy_epochs, critic_epochs)):
        trains_policy, trains_critic = epoch < policy_epochs, epoch < critic_epochs
        for number, rows in enumerate(minibatches(len(batch), config.num_minibatches, derive_seed(seed, epoch))):
            minibatch = batch.select(rows)
            num_tokens = len(minibatch.responses.values)
            where = f"epoch {epoch}, minibatch {number}"
            optimizers.policy.zero_grad()
            optimizers.critic.zero_grad()

            for micro_rows in micro_batches(minibatch.lengths, micro_batch_tokens):
                padded = minibatch.padded(micro_rows)
                if trains_policy:
                    policy_tally.add(_backward_policy(policy, padded, config, num_tokens, temperature))
                if trains_critic:
                    critic_tally.add(_backward_critic(critic, padded, config, num_tokens))
                if on_tokens is not None:
                    on_tokens(int(padded.response_mask.sum()))

            if trains_policy:
                stats = policy_tally.close_minibatch()
                if epoch == number == 0:
                    first_ratio_deviation = stats["ratio_max_deviation"]
                stats["grad_norm"] = _step(optimizers.policy, config.max_grad_norm, stats["loss"], f"policy, {where}")
            if trains_critic:
                stats = critic_tally.close_minibatch()
                stats["grad_norm"] = _step(
                    optimizers.critic, config.critic_max_grad_norm, stats["loss"], f"critic, {where}"
                )

    policy_means, critic_means = policy_tally.means(), critic_tally.means()
    columns = batch.token_columns
    return UpdateStats(
        policy_loss=policy_means["loss"],
        value_loss=critic_means["loss"],
        approx_kl=policy_means["approx_kl"],
        k1_kl=policy_means["k1_kl"],
        clipfrac=policy_means["clipfrac"],
        value_clipfrac=critic_means["clipfrac"],
        entropy=policy_means["entropy"],
        ratio_mean=policy_means["ratio_mean"],
        first_minibatch_ratio_deviation=first_ratio_deviation,
        grad_norm=policy_means["grad_norm"],
        critic_grad_norm=critic_means["grad_norm"],
        explained_variance=float(
            explained_variance(
                columns["values"], columns["returns"], torch.ones_like(columns["values"], dtype=torch.bool)
            )
        ),
        num_optimizer_steps=len(policy_tally.minibatches),
        num_tokens=len(batch.responses.values),
    )


def _backward_policy(policy: Any, padded: PaddedBatch, config: PPOConfig, num_tokens: int, temperature: float) -> Stats:
    """Add this micro-batch's share to the policy's gradient; its shares of loss and statistics."""
    padded = padded.to(device_of(policy))
    new_logprobs, entropies = response_logprobs_and_entropy(policy, padded, temperature=temperature)
    loss, stats = policy_loss(
        new_logprobs,
        padded.token_columns["logprobs"],
        padded.token_columns["advantages"],
        padded.response_mask,
        cliprange=config.cliprange,
        dual_clip=config.dual_clip,
        num_tokens=num_tokens,
    )
    loss.backward()
    return {"loss": loss.detach(), "entropy": entropies.sum() / num_tokens, **stats}


def _backward_critic(critic: Any, padded: PaddedBatch, config: PPOConfig, num_tokens: int) -> Stats:
    """Add this micro-batch's share to the critic's gradient; its shares of loss and statistics."""
    padded = padded.to(device_of(critic))
    loss, stats = value_loss(
        response_values(critic, padded),
        padded.token_columns["values"],
        padded.token_columns["returns"],
        padded.response_mask,
        cliprange_value=config.cliprange_value,
        num_tokens=num_tokens,
    )
    loss.backward()
    return {"loss": loss.detach(), **stats}


def _step(optimizer: torch.optim.Optimizer, max_grad_norm: float, loss: float, where: str) -> float:
    """Scale the gradient down to ``max_grad_norm`` and step, unless that would destroy the weights; the norm before."""
    parameters: Iterable[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise NonFiniteError(
            f"loss {loss}, gradient norm {grad_norm} of the {where}; no step was taken. "
            "Look at the advantages and returns of these rows, or lower the learning rate"
        )
    optimizer.step()
    return grad_norm


@dataclass
class _Tally:
    """Statistics of the micro-batches added up to those of a minibatch, and their means over minibatches."""

    minibatches: list[dict[str, float]] = field(default_factory=list)
    open_stats: Stats = field(default_factory=dict)

    def add(self, stats: Stats) -> None:
        for name, value in stats.items():
            if name not in self.open_stats:
                self.open_stats[name] = value
            elif name == "ratio_max_deviation":
                self.open_stats[name] = torch.maximum(self.open_stats[name], value)
            else:
                self.open_stats[name] = self.open_stats[name] + value

    def close_minibatch(self) -> dict[str, float]:
        """The finished minibatch as numbers; entries added to the result later count in ``means``."""
        self.minibatches.append({name: float(value) for name, value in self.open_stats.items()})
        self.open_stats = {}
        return self.minibatches[-1]

    def means(self) -> dict[str, float]:
        values: defaultdict[str, list[float]] = defaultdict(list)
        for stats in self.minibatches:
            for name, value in stats.items():
                values[name].append(value)
        return {name: sum(column) / len(column) for name, column in values.items()}


def _require_columns(batch: RolloutBatch) -> None:
    missing = [name for name in _COLUMNS if name not in batch.token_columns]
    if missing:
        raise ShapeError(f"the batch lacks the token columns {missing}; add them with batch.with_columns(...)")
