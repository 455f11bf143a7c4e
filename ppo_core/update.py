"""One PPO update: passes over the rollouts, split into minibatches (steps), split into micro-batches (memory)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppo_core.batch import RolloutBatch
from ppo_core.config import PPOConfig
from ppo_core.errors import ConfigError, NonFiniteError, ShapeError
from ppo_core.forward import forward_groups
from ppo_core.heads import shares_trunk
from ppo_core.losses import Stats
from ppo_core.masking import explained_variance
from ppo_core.objectives import Counts, critic_objective, policy_objective
from ppo_core.packing import minibatches
from ppo_core.randomness import derive_seed
from ppo_core.sharded import inside, own_part
from ppo_core.shares import ALONE, Sharing, add_gradients
from ppo_core.training import Training, mean_of


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
    """k3 estimate of KL(policy before the update || policy before the minibatch's step), per token."""
    approx_kl_stderr: float | None = None
    """Its standard error, from responses, which alone are independent: k3 has a heavy tail, and one token can make it."""
    k1_kl: float | None = None
    """The same by k1, which may be negative."""
    clipfrac: float | None = None
    """Share of response tokens where the ratio clip binds."""
    ratio_mean: float | None = None
    first_minibatch_ratio_deviation: float | None = None
    """Largest |ratio - 1| before the first step, when the policy has the weights that ``logprobs`` are of."""
    importance_mean: float | None = None
    """Mean weight of the tokens in the surrogate, where another engine or an older policy sampled them."""
    importance_capped: float | None = None
    """Share of tokens whose weight is cut down to ``importance_cap``."""
    sampling_approx_kl: float | None = None
    """k3 estimate of KL(what sampled || policy before the update), per token, where the two are not the same."""
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
    policy: nn.Module | None,
    critic: nn.Module | None,
    optimizers: Optimizers,
    batch: RolloutBatch,
    config: PPOConfig,
    *,
    seed: int,
    temperature: float = 1.0,
    reference: nn.Module | None = None,
    micro_batch_tokens: int = 8192,
    sharing: Sharing = ALONE,
    before_step: Callable[[MinibatchStats], None] | None = None,
    on_tokens: Callable[[int], None] | None = None,
    on_trained: Callable[[str], None] | None = None,
) -> UpdateStats:
    """Train ``policy`` and ``critic`` in place on ``batch``; either may be None and is then left out.

    A ``TrunkCritic`` learns with the policy: one loss, one optimizer, which is the policy's and has the head too.

    Schulman et al. 2017, arXiv:1707.06347, algorithm 1, with a critic of its own. The policy needs the token columns
    logprobs, which are its own as it is given, and advantages, for a KL loss by an estimator ref_logprobs too; the critic
    values and returns. An exact KL loss needs the ``reference`` model itself. A column sampling_logprobs, of tokens that
    another engine or an older policy drew, corrects the surrogate as ``importance_weights`` says. Each epoch visits the rows
    in an order that is a function of ``seed`` and the epoch. The models stay in train or eval mode as they are given;
    dropout must be off. ``temperature`` is the one that the logprobs were stored at.

    ``micro_batch_tokens`` bounds the tokens of one forward pass, padding included, and with it memory. The processes of
    ``sharing.group``, each with the same models and the same batch, share the micro-batches of every minibatch and add up
    their gradients. Results depend on neither but by rounding, and on the processes not even by that where
    ``sharing.shares`` says in which order gradients are added.

    ``before_step`` is told of each minibatch of the policy before its optimizer steps, and may raise. ``on_tokens`` is
    told the response tokens of each micro-batch when a model has learned from it, ``on_trained`` the name of a model,
    ``policy`` or ``critic``, that will not change any more. A loss or gradient that is not finite raises
    ``NonFiniteError`` before the step it would have spoiled, and so does what the last step made of the weights.
    """
    _require_inputs(batch, config, policy, critic, optimizers, reference)
    in_training = _in_training(policy, critic, optimizers, config, temperature=temperature, reference=reference)
    # One after the other: there is memory for one gradient, and what the first has become can be written meanwhile.
    for name, training in in_training.items():
        for epoch in range(training.epochs):
            for number, rows in enumerate(minibatches(len(batch), config.num_minibatches, derive_seed(seed, epoch))):
                parts = _add_gradient(training, batch.select(rows), config, sharing, micro_batch_tokens, on_tokens)
                stats = training.close_minibatch(f"{name}, epoch {epoch}, minibatch {number}", parts, sharing)
                if before_step is not None and name == "policy":
                    before_step(MinibatchStats(epoch=epoch, minibatch=number, values=stats))
                training.optimizer.step()
            if name == "policy" and config.target_kl is not None:
                latest = training.minibatches[-config.num_minibatches :]
                if mean_of([stats["approx_kl"] for stats in latest]) > config.target_kl:
                    training.epochs = epoch + 1
                    break
        training.optimizer.zero_grad()
        require_finite(training.parameters, f"the {name}'s weights after the update")
        if on_trained is not None:
            on_trained(name)
    return _summary(batch, in_training)


def _in_training(
    policy: nn.Module | None,
    critic: nn.Module | None,
    optimizers: Optimizers,
    config: PPOConfig,
    *,
    temperature: float,
    reference: nn.Module | None,
) -> dict[str, Training]:
    """What is trained, by name; a critic on the policy's body is part of the policy."""
    in_training: dict[str, Training] = {}
    if policy is not None:
        assert optimizers.policy is not None
        trunk_critic = critic if shares_trunk(critic) else None
        in_training["policy"] = Training(
            model=policy,
            optimizer=optimizers.policy,
            epochs=config.epochs,
            max_grad_norm=config.max_grad_norm,
            objective=lambda padded, counts: policy_objective(
                policy, padded, config, counts, temperature=temperature, reference=reference, critic=trunk_critic
            ),
        )
    if critic is not None and not shares_trunk(critic):
        assert optimizers.critic is not None
        in_training["critic"] = Training(
            model=critic,
            optimizer=optimizers.critic,
            epochs=config.critic_epochs or config.epochs,
            max_grad_norm=config.critic_max_grad_norm,
            objective=lambda padded, counts: critic_objective(critic, padded, config, counts),
        )
    return in_training


def _add_gradient(
    training: Training,
    minibatch: RolloutBatch,
    config: PPOConfig,
    sharing: Sharing,
    micro_batch_tokens: int,
    on_tokens: Callable[[int], None] | None,
) -> list[Stats]:
    """The gradient of a minibatch, in passes that fit into memory; what each pass says of its own."""
    counts = Counts(
        num_tokens=len(minibatch.responses.values),
        num_responses=len(minibatch) if config.aggregation == "seq_mean" else None,
    )

    def backward(packed_rows: list[Tensor], factor: float) -> Stats:
        padded = minibatch.padded(packed_rows)
        loss, shares = inside(training.model, lambda: training.objective(padded, counts))
        (loss * factor).backward()
        if on_tokens is not None and factor:
            on_tokens(len(padded.response_ids))
        stats = {"loss": loss.detach(), **shares}
        # Alone, nothing waits for a device before the minibatch ends.
        return stats if sharing.group is None else {name: value.cpu() for name, value in stats.items()}

    training.optimizer.zero_grad()
    groups = forward_groups([training.model], minibatch.lengths, micro_batch_tokens)
    return add_gradients(training.parameters, [partial(backward, packed_rows) for packed_rows in groups], sharing)


def require_finite(parameters: Iterable[Tensor], what: str) -> None:
    """Refuse weights of which one is infinite or no number: ``what`` says whose they are.

    A loss shows such a weight one step later, which the last step of a training does not have.
    """
    if not all(bool(torch.isfinite(own_part(parameter)).all()) for parameter in parameters):
        raise NonFiniteError(f"{what} are not all finite numbers; lower the learning rate")


def _summary(batch: RolloutBatch, in_training: dict[str, Training]) -> UpdateStats:
    found: dict[str, Any] = {}
    if (policy := in_training.get("policy")) is not None:
        names = ["policy_loss", "kl_loss", "entropy", "approx_kl", "k1_kl", "clipfrac", "ratio_mean", "grad_norm"]
        names += ["importance_mean", "importance_capped", "sampling_approx_kl"]
        found |= {name: policy.mean(name) for name in names}
        # The minibatches of an epoch have different responses, and each epoch has the same ones again.
        num_apart = len(policy.minibatches) / policy.epochs
        found["approx_kl_stderr"] = math.sqrt((policy.mean("approx_kl_variance") or 0.0) / num_apart)
        found["first_minibatch_ratio_deviation"] = policy.minibatches[0]["ratio_max_deviation"]
        found["policy_epochs"] = policy.epochs
        found["num_optimizer_steps"] = len(policy.minibatches)
    if (critic := in_training.get("critic")) is not None:
        found["critic_grad_norm"] = critic.mean("grad_norm")
    # A critic on the policy's body learns with the policy.
    values = critic or policy
    if values is not None and values.mean("value_loss") is not None:
        columns = batch.token_columns
        everywhere = torch.ones_like(columns["values"], dtype=torch.bool)
        found |= {name: values.mean(name) for name in ("value_loss", "value_clipfrac")}
        found["explained_variance"] = float(explained_variance(columns["values"], columns["returns"], everywhere))
    return UpdateStats(num_tokens=len(batch.responses.values), **found)


def _require_inputs(
    batch: RolloutBatch,
    config: PPOConfig,
    policy: nn.Module | None,
    critic: nn.Module | None,
    optimizers: Optimizers,
    reference: nn.Module | None,
) -> None:
    """Refuse an update that lacks something that its configuration uses."""
    if policy is None and critic is None:
        raise ConfigError("policy and critic are both None; give at least one model to train")
    if shares_trunk(critic):
        if policy is None:
            raise ConfigError("a critic on the policy's body learns with the policy; give the policy too")
        if config.kl_loss_coef > 0 and config.kl_loss_estimator == "exact":
            raise ConfigError(
                "kl_loss_estimator=exact needs all logits, which a policy that shares its body with the critic never "
                "makes; take k3, or give the critic a body of its own"
            )
    own_critic = None if shares_trunk(critic) else critic
    for name, model, optimizer in (("policy", policy, optimizers.policy), ("critic", own_critic, optimizers.critic)):
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
