"""What policy and critic minimise on a micro-batch: its shares of the minibatch's loss and statistics."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppo_core.batch import PaddedBatch
from ppo_core.config import PPOConfig
from ppo_core.forward import response_values, spread, token_logits, token_logprobs, token_logprobs_and_values
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
from ppo_core.precision import device_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the sums of a minibatch's losses are divided by."""

    num_tokens: int
    num_responses: int | None


def policy_objective(
    policy: nn.Module,
    padded: PaddedBatch,
    config: PPOConfig,
    counts: Counts,
    *,
    temperature: float,
    reference: nn.Module | None = None,
    critic: nn.Module | None = None,
) -> tuple[Tensor, Stats]:
    """The surrogate, and what the configuration adds to it: KL from the reference, entropy; the value loss of a ``critic``
    on the policy's body."""
    padded = padded.to(device_of(policy))
    mask, columns = padded.response_mask, padded.token_columns
    kl_estimator = config.kl_loss_estimator if config.kl_loss_coef > 0 else None
    new_values: Tensor | None = None
    if kl_estimator == "exact":
        assert reference is not None
        *tokens, divergence = _tokens_and_exact_kl(policy, reference, padded, config, temperature=temperature)
    elif critic is not None:
        *tokens, new_values = token_logprobs_and_values(policy, critic, padded, temperature=temperature)
    else:
        tokens = list(token_logprobs(policy, padded, temperature=temperature, with_entropy=True))
    new_logprobs, entropies = (spread(x, mask) for x in tokens)

    loss, stats = _surrogate(new_logprobs, padded, config, counts)
    stats["policy_loss"] = loss.detach()
    stats["entropy"] = aggregate_loss(entropies.detach(), mask, num_tokens=counts.num_tokens)
    num_tokens, num_responses = counts.num_tokens, counts.num_responses
    if config.entropy_coef > 0:
        loss = loss - config.entropy_coef * aggregate_loss(
            entropies, mask, num_tokens=num_tokens, num_responses=num_responses
        )
    if kl_estimator is not None:
        if kl_estimator == "exact":
            of_tokens = spread(divergence, mask)
            of_minibatch = aggregate_loss(of_tokens, mask, num_tokens=num_tokens, num_responses=num_responses)
        else:
            of_minibatch = kl_loss(
                new_logprobs,
                columns["logprobs"],
                columns["ref_logprobs"],
                mask,
                estimator=kl_estimator,
                direction=config.kl_loss_direction,
                num_tokens=num_tokens,
                num_responses=num_responses,
            )
        stats["kl_loss"] = of_minibatch.detach()
        loss = loss + config.kl_loss_coef * of_minibatch
    if new_values is not None:
        own_loss, own_stats = _value_objective(spread(new_values, mask), padded, config, counts)
        stats |= own_stats
        loss = loss + config.vf_coef * own_loss
    return loss, stats


def _tokens_and_exact_kl(
    policy: nn.Module, reference: nn.Module, padded: PaddedBatch, config: PPOConfig, *, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) log-probabilities, entropies and divergences: whole distributions are compared, so their logits have to exist."""
    # The policy comes last: it may be an adapter on the reference, and the backward pass may compute its layers again.
    with torch.no_grad():
        ref_logits = token_logits(reference, padded, temperature=temperature)
    logits = token_logits(policy, padded, temperature=temperature)
    ordered = (logits, ref_logits) if config.kl_loss_direction == "reverse" else (ref_logits, logits)
    return gather_logprobs(logits, padded.response_ids), entropy(logits), exact_kl(*ordered)


def _surrogate(new_logprobs: Tensor, padded: PaddedBatch, config: PPOConfig, counts: Counts) -> tuple[Tensor, Stats]:
    """The loss of the policy gradient alone; tokens that another engine or an older policy drew have weights."""
    mask, columns = padded.response_mask, padded.token_columns
    weights, weight_stats = None, Stats()
    if "sampling_logprobs" in columns:
        weights, weight_stats = importance_weights(
            columns["logprobs"],
            columns["sampling_logprobs"],
            mask,
            cap=config.importance_cap,
            num_tokens=counts.num_tokens,
        )
    given = (new_logprobs, columns["logprobs"], columns["advantages"], mask)
    num_tokens, num_responses = counts.num_tokens, counts.num_responses
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
    return loss, stats | weight_stats


def critic_objective(critic: nn.Module, padded: PaddedBatch, config: PPOConfig, counts: Counts) -> tuple[Tensor, Stats]:
    """The value loss of a critic with a body of its own."""
    padded = padded.to(device_of(critic))
    return _value_objective(response_values(critic, padded), padded, config, counts)


def _value_objective(
    new_values: Tensor, padded: PaddedBatch, config: PPOConfig, counts: Counts
) -> tuple[Tensor, Stats]:
    loss, stats = value_loss(
        new_values,
        padded.token_columns["values"],
        padded.token_columns["returns"],
        padded.response_mask,
        cliprange_value=config.cliprange_value,
        num_tokens=counts.num_tokens,
        num_responses=counts.num_responses,
    )
    return loss, {"value_loss": loss.detach(), "value_clipfrac": stats["clipfrac"]}
