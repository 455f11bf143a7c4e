"""One PPO update: passes over the rollouts, split into minibatches (steps), split into micro-batches (memory)."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed

from ppo_core.batch import PaddedBatch, RolloutBatch, minibatches
from ppo_core.config import PPOConfig
from ppo_core.errors import ConfigError, NonFiniteError, ShapeError
from ppo_core.forward import device_of, forward_groups, response_values, spread, token_logits, token_logprobs
from ppo_core.kl import exact_kl
from ppo_core.logprobs import entropy, gather_logprobs
from ppo_core.losses import (
    Stats,
    aggregate_loss,
    importance_weights,
    kl_loss,
    pg_loss,
    policy_loss,
    value_loss,
)
from ppo_core.masking import explained_variance
from ppo_core.randomness import derive_seed

# Statistics of micro-batches that do not add up.
_MAXIMA = ("ratio_max_deviation",)


@dataclass(frozen=True, eq=False)
class Optimizers:
    """One each, so that policy and critic have learning rates of their own. Both already carry those rates."""

    policy: torch.optim.Optimizer | None
    critic: torch.optim.Optimizer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """What happened in an update; means over its minibatches unless the name or the description says otherwise.

    What was not trained, or is no part of the loss, is None.
    """

    policy_loss: float | None = None
    """The surrogate alone, without the terms for KL and entropy."""
    kl_loss: float | None = None
    """The divergence from the reference in the loss, before its weight."""
    entropy: float | None = None
    """Entropy of the policy's next-token distribution at response tokens, at the sampling temperature."""
    approx_kl: float | None = None
    """k3 estimate of KL(rollout policy || policy before the minibatch's step), per token."""
    k1_kl: float | None = None
    """The same by k1, which may be negative."""
    clipfrac: float | None = None
    """Share of response tokens where the ratio clip binds."""
    ratio_mean: float | None = None
    first_minibatch_ratio_deviation: float | None = None
    """Largest |ratio - 1| before the first step, when policy and rollout policy have the same weights."""
    importance_mean: float | None = None
    """Mean weight of the tokens in the surrogate, where another engine than the trainer sampled them."""
    importance_capped: float | None = None
    """Share of tokens whose weight is cut down to ``importance_cap``."""
    grad_norm: float | None = None
    """Norm of the policy's gradient before it was scaled down."""
    policy_epochs: int = 0
    """Passes that the policy made, fewer than asked for where ``target_kl`` stopped it; a count."""
    num_optimizer_steps: int = 0
    """Steps of the policy's optimizer; a count."""
    value_loss: float | None = None
    value_clipfrac: float | None = None
    critic_grad_norm: float | None = None
    explained_variance: float | None = None
    """Of the returns by the values stored with the rollouts."""
    num_tokens: int
    """Response tokens in the rollouts; a count."""

    def as_dict(self) -> dict[str, float]:
        """The numbers that there are, by name."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class MinibatchStats:
    """What a minibatch of the policy came to, before its step."""

    epoch: int
    minibatch: int
    values: dict[str, float]
    """loss, approx_kl, ratio_max_deviation, entropy and what else the loss reports."""


def ppo_update(
    policy: Any | None,
    critic: Any | None,
    optimizers: Optimizers,
    batch: RolloutBatch,
    config: PPOConfig,
    *,
    seed: int,
    temperature: float = 1.0,
    reference: Any | None = None,
    micro_batch_tokens: int = 8192,
    group: "distributed.ProcessGroup | None" = None,
    before_step: Callable[[MinibatchStats], None] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> UpdateStats:
    """Train ``policy`` and ``critic`` in place on ``batch``; either may be None and is then left out.

    Schulman et al. 2017, arXiv:1707.06347, algorithm 1, with a critic of its own. The policy needs the token columns
    logprobs and advantages, for a KL loss by an estimator ref_logprobs too; the critic values and returns. An exact KL
    loss needs the ``reference`` model itself. A column sampling_logprobs, of tokens that another engine drew, corrects the
    surrogate as ``importance_weights`` says. Each epoch visits the rows in an order that is a function of ``seed`` and
    the epoch. The models stay in train or eval mode as they are given; dropout must be off. ``temperature`` is the one
    that the logprobs were stored at.

    ``micro_batch_tokens`` bounds the tokens of one forward pass, padding included, and with it memory. The processes of
    ``group``, each with the same models and the same batch, share the rows of every minibatch and add up their
    gradients. Results depend on neither.

    ``before_step`` is told of each minibatch of the policy before its optimizer steps, and may raise. ``on_tokens`` is
    told the response tokens of each micro-batch when the policy, or the critic alone, has seen it. A loss or gradient
    that is not finite raises ``NonFiniteError`` before the step it would have spoiled.
    """
    _require_inputs(batch, config, policy, critic, optimizers, reference)
    learning_models = [model for model in (policy, critic) if model is not None]
    learners: dict[str, _Learner] = {}
    if policy is not None:
        learners["policy"] = _Learner(
            optimizers.policy,
            config.epochs,
            config.max_grad_norm,
            lambda padded, counts: _backward_policy(policy, padded, config, counts, temperature, reference),
        )
    if critic is not None:
        learners["critic"] = _Learner(
            optimizers.critic,
            config.critic_epochs or config.epochs,
            config.critic_max_grad_norm,
            lambda padded, counts: _backward_critic(critic, padded, config, counts),
        )
    epoch = 0
    while learning := {name: learner for name, learner in learners.items() if epoch < learner.epochs}:
        for number, rows in enumerate(minibatches(len(batch), config.num_minibatches, derive_seed(seed, epoch))):
            minibatch = batch.select(rows)
            counts = _Counts(
                num_tokens=len(minibatch.responses.values),
                num_responses=len(minibatch) if config.aggregation == "seq_mean" else None,
            )
            share = minibatch.select(_share_of(minibatch.lengths, group))
            parts = [share.padded(x) for x in forward_groups(learning_models, share.lengths, micro_batch_tokens)]
            # One after the other, each with its gradient gone before the next begins: there is memory for one.
            for name, learner in learning.items():
                learner.optimizer.zero_grad()
                for padded in parts:
                    learner.add(learner.backward(padded, counts))
                    if on_tokens is not None and name == next(iter(learning)):
                        on_tokens(len(padded.response_ids))
                stats = learner.close_minibatch(f"{name}, epoch {epoch}, minibatch {number}", group)
                if before_step is not None and name == "policy":
                    before_step(MinibatchStats(epoch=epoch, minibatch=number, values=stats))
                learner.optimizer.step()
                learner.optimizer.zero_grad()

        epoch += 1
        if "policy" in learning and config.target_kl is not None:
            latest = learners["policy"].minibatches[-config.num_minibatches :]
            if _mean([stats["approx_kl"] for stats in latest]) > config.target_kl:
                learners["policy"].epochs = epoch
    return _summary(batch, learners)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """What the sums of a minibatch's losses are divided by."""

    num_tokens: int
    num_responses: int | None


def _backward_policy(
    policy: Any, padded: PaddedBatch, config: PPOConfig, counts: _Counts, temperature: float, reference: Any | None
) -> Stats:
    """Add this micro-batch's share to the policy's gradient; its shares of loss and statistics."""
    padded = padded.to(device_of(policy))
    mask, columns = padded.response_mask, padded.token_columns
    num_tokens, num_responses = counts.num_tokens, counts.num_responses
    kl_estimator = config.kl_loss_estimator if config.kl_loss_coef > 0 else None
    if kl_estimator == "exact":
        # The whole distributions are compared, so their logits have to exist.
        logits = token_logits(policy, padded, temperature=temperature)
        tokens = gather_logprobs(logits, padded.response_ids), entropy(logits)
    else:
        tokens = token_logprobs(policy, padded, temperature=temperature, with_entropy=True)
    new_logprobs, entropies = (spread(x, mask) for x in tokens)

    weights, weight_stats = None, Stats()
    if "sampling_logprobs" in columns:
        weights, weight_stats = importance_weights(
            columns["logprobs"], columns["sampling_logprobs"], mask, cap=config.importance_cap, num_tokens=num_tokens
        )
    given = (new_logprobs, columns["logprobs"], columns["advantages"], mask)
    if config.loss == "ppo":
        loss, stats = policy_loss(
            *given,
            cliprange=config.cliprange,
            dual_clip=config.dual_clip,
            num_tokens=num_tokens,
            num_responses=num_responses,
            weights=weights,
        )
    else:
        loss, stats = pg_loss(*given, num_tokens=num_tokens, num_responses=num_responses, weights=weights)
    stats |= weight_stats
    stats["policy_loss"] = loss.detach()
    stats["entropy"] = aggregate_loss(entropies.detach(), mask, num_tokens=num_tokens)
    if config.entropy_coef > 0:
        loss = loss - config.entropy_coef * aggregate_loss(
            entropies, mask, num_tokens=num_tokens, num_responses=num_responses
        )
    if kl_estimator is not None:
        if kl_estimator == "exact":
            with torch.no_grad():
                ref_logits = token_logits(reference, padded, temperature=temperature)
            ordered = (logits, ref_logits) if config.kl_loss_direction == "reverse" else (ref_logits, logits)
            divergence = aggregate_loss(
                spread(exact_kl(*ordered), mask), mask, num_tokens=num_tokens, num_responses=num_responses
            )
        else:
            divergence = kl_loss(
                new_logprobs,
                columns["logprobs"],
                columns["ref_logprobs"],
                mask,
                estimator=kl_estimator,
                direction=config.kl_loss_direction,
                num_tokens=num_tokens,
                num_responses=num_responses,
            )
        stats["kl_loss"] = divergence.detach()
        loss = loss + config.kl_loss_coef * divergence
    loss.backward()
    return {"loss": loss.detach(), **stats}


def _backward_critic(critic: Any, padded: PaddedBatch, config: PPOConfig, counts: _Counts) -> Stats:
    """Add this micro-batch's share to the critic's gradient; its shares of loss and statistics."""
    padded = padded.to(device_of(critic))
    loss, stats = value_loss(
        response_values(critic, padded),
        padded.token_columns["values"],
        padded.token_columns["returns"],
        padded.response_mask,
        cliprange_value=config.cliprange_value,
        num_tokens=counts.num_tokens,
        num_responses=counts.num_responses,
    )
    loss.backward()
    return {"loss": loss.detach(), **stats}


def _share_of(lengths: Tensor, group: "distributed.ProcessGroup | None") -> Tensor:
    """The rows of a minibatch that this process computes: all, or every n-th by length, so that all have as much to do."""
    if group is None:
        return torch.arange(len(lengths))
    return torch.argsort(lengths, stable=True)[group.rank() :: group.size()]


@dataclass(eq=False)
class _Learner:
    """A model in training: its gradient, and its statistics from micro-batch to minibatch to update."""

    optimizer: Any
    epochs: int
    max_grad_norm: float
    backward: Callable[[PaddedBatch, _Counts], Stats]
    minibatches: list[dict[str, float]] = field(default_factory=list)
    open_stats: Stats = field(default_factory=dict)

    def add(self, stats: Stats) -> None:
        """Add a micro-batch's statistics to those of its minibatch."""
        self.open_stats = _added([self.open_stats, stats])

    def close_minibatch(self, where: str, group: "distributed.ProcessGroup | None") -> dict[str, float]:
        """The finished minibatch as numbers; its gradient is summed over processes and scaled down to its limit."""
        parameters = [p for param_group in self.optimizer.param_groups for p in param_group["params"]]
        if group is not None:
            self.open_stats = _sum_over_processes(parameters, self.open_stats, group)
        stats = {name: float(value) for name, value in self.open_stats.items()}
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        stats["grad_norm"] = float(norm)
        if not (math.isfinite(stats["loss"]) and math.isfinite(stats["grad_norm"])):
            raise NonFiniteError(
                f"loss {stats['loss']}, gradient norm {stats['grad_norm']} of the {where}; its step was not taken. "
                "Look at the advantages and returns of these rows, or lower the learning rate"
            )
        if stats["grad_norm"] > self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self.open_stats = {}
        self.minibatches.append(stats)
        return stats

    def mean(self, name: str) -> float | None:
        """Of a statistic over the minibatches; None where the loss has no such term."""
        values = [stats[name] for stats in self.minibatches if name in stats]
        return _mean(values) if values else None


def _sum_over_processes(parameters: list[Tensor], stats: Stats, group: "distributed.ProcessGroup") -> Stats:
    """Gradients are summed in place. Every process computes the same sums, hence takes the same step."""
    own = ({name: value.cpu() for name, value in stats.items()}, [p.grad is not None for p in parameters])
    gathered: list[Any] = [None] * group.size()
    distributed.all_gather_object(gathered, own, group=group)
    for parameter, *has_gradient in zip(parameters, *(flags for _, flags in gathered), strict=True):
        # An optimizer leaves a parameter without a gradient alone; with one of zeros it would decay it.
        if not any(has_gradient):
            continue
        # A process without a row has no gradient, but has to take part.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad, group=group)
    return _added([stats for stats, _ in gathered])


def _added(parts: list[Stats]) -> Stats:
    """Statistics of parts as those of the whole: sums, but for the maximum."""
    whole: Stats = {}
    for stats in parts:
        for name, value in stats.items():
            if name not in whole:
                whole[name] = value
            else:
                whole[name] = torch.maximum(whole[name], value) if name in _MAXIMA else whole[name] + value
    return whole


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _summary(batch: RolloutBatch, learners: dict[str, _Learner]) -> UpdateStats:
    found: dict[str, Any] = {}
    if (policy := learners.get("policy")) is not None:
        names = ["policy_loss", "kl_loss", "entropy", "approx_kl", "k1_kl", "clipfrac", "ratio_mean", "grad_norm"]
        names += ["importance_mean", "importance_capped"]
        found |= {name: policy.mean(name) for name in names}
        found["first_minibatch_ratio_deviation"] = policy.minibatches[0]["ratio_max_deviation"]
        found["policy_epochs"] = policy.epochs
        found["num_optimizer_steps"] = len(policy.minibatches)
    if (critic := learners.get("critic")) is not None:
        columns = batch.token_columns
        everywhere = torch.ones_like(columns["values"], dtype=torch.bool)
        found["value_loss"] = critic.mean("loss")
        found["value_clipfrac"] = critic.mean("clipfrac")
        found["critic_grad_norm"] = critic.mean("grad_norm")
        found["explained_variance"] = float(explained_variance(columns["values"], columns["returns"], everywhere))
    return UpdateStats(num_tokens=len(batch.responses.values), **found)


def _require_inputs(
    batch: RolloutBatch,
    config: PPOConfig,
    policy: Any | None,
    critic: Any | None,
    optimizers: Optimizers,
    reference: Any | None,
) -> None:
    """Refuse an update that lacks something that its configuration uses."""
    if policy is None and critic is None:
        raise ConfigError("policy and critic are both None; give at least one model to train")
    for name, model, optimizer in (("policy", policy, optimizers.policy), ("critic", critic, optimizers.critic)):
        if model is not None and optimizer is None:
            raise ConfigError(f"the {name} has no optimizer; give it one, or leave the {name} out")
    needed: list[str] = []
    if policy is not None:
        needed += ["logprobs", "advantages"]
        if config.kl_loss_coef > 0 and config.kl_loss_estimator == "exact" and reference is None:
            raise ConfigError("kl_loss_estimator=exact needs the reference model; give it, or take an estimator")
        if config.kl_loss_coef > 0 and config.kl_loss_estimator != "exact":
            needed.append("ref_logprobs")
    if critic is not None:
        needed += ["values", "returns"]
    if missing := [name for name in needed if name not in batch.token_columns]:
        raise ShapeError(f"the batch lacks the token columns {missing}; add them with batch.with_columns(...)")
