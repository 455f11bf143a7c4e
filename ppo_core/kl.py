"""Kullback-Leibler divergence: estimates from sampled tokens, the exact sum over a vocabulary, the adaptive weight."""

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppo_core.config import KLDirection
from ppo_core.errors import ConfigError
from ppo_core.logprobs import at_least_float32
from ppo_core.shapes import Float, require_same_shape

KLEstimator = Literal["k1", "k2", "k3"]

# Entries of (tokens, vocabulary) that exact_kl holds at a time: 64 MiB in float32.
_CHUNK_ENTRIES = 2**24


def kl_estimate(
    logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"], estimator: KLEstimator
) -> Float[Tensor, "*S"]:
    """Estimates of ``KL(policy || ref)`` at tokens that the policy sampled, with ``d = logprobs - ref_logprobs``.

        k1 = d    k2 = d^2 / 2    k3 = exp(-d) - 1 + d

    k1 and k3 have the right mean, k3 is never negative, k2 is biased with little variance. Schulman 2020,
    "Approximating KL Divergence". As a reward take k1: only its policy gradient is that of the divergence.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    d = logprobs - ref_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        # expm1: for d near 0, exp(-d) - 1 rounds away all that is left of k3. Its last bit may still fall below 0.
        return (torch.expm1(-d) + d).clamp(min=0)
    raise ConfigError(f"estimator={estimator!r} is none of k1, k2, k3; k1 is the usual one for a penalty")


def exact_kl(logits: Float[Tensor, "*B V"], ref_logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """``KL(p || q) = sum_v p_v (log p_v - log q_v)`` of ``p = softmax(logits)`` and ``q = softmax(ref_logits)``.

    Divide both by a temperature beforehand. Works through the tokens in chunks, so that the sum's terms never exist for
    all of them, not even for the gradient, which computes them again. A token that cannot occur under ``p`` contributes
    nothing.
    """
    require_same_shape(logits=logits, ref_logits=ref_logits)
    num_classes = logits.shape[-1]
    chunk = max(1, _CHUNK_ENTRIES // num_classes)
    pairs = zip(
        logits.reshape(-1, num_classes).split(chunk), ref_logits.reshape(-1, num_classes).split(chunk), strict=True
    )
    sums = [
        checkpoint(_exact_kl_of_chunk, z, ref_z, use_reentrant=False, preserve_rng_state=False) for z, ref_z in pairs
    ]
    return torch.cat(sums).view(logits.shape[:-1])


def _exact_kl_of_chunk(logits: Tensor, ref_logits: Tensor) -> Tensor:
    log_p = at_least_float32(logits).log_softmax(dim=-1)
    log_q = at_least_float32(ref_logits).log_softmax(dim=-1)
    # Both may be minus infinity; their difference would be NaN and spoil the whole sum.
    return (log_p.exp() * torch.where(log_p == -torch.inf, 0.0, log_p - log_q)).sum(dim=-1)


def kl_loss_terms(
    new_logprobs: Float[Tensor, "*S"],
    logprobs: Float[Tensor, "*S"],
    ref_logprobs: Float[Tensor, "*S"],
    *,
    estimator: KLEstimator,
    direction: KLDirection,
) -> Float[Tensor, "*S"]:
    """A KL divergence between the policy in training and the reference at tokens that the rollout policy sampled.

    With ``d = new_logprobs - ref_logprobs``, ``ratio = exp(new_logprobs - logprobs)``, ``k`` from ``kl_estimate``:

        reverse, KL(policy || reference):    value ratio * k(d)            gradient ratio * d * grad new_logprobs
        forward, KL(reference || policy):    value ratio * exp(-d) * k(-d)
                                             gradient ratio * (1 - exp(-d)) * grad new_logprobs

    Value and gradient are importance-weighted from the rollout policy to whichever distribution the divergence is a
    mean under. The gradient is that of the divergence, whichever estimator gives the value: the derivative of k1's own
    expression has mean zero, and that of k3's is the gradient of the other direction. Tang and Munos 2025,
    arXiv:2506.09477.
    """
    require_same_shape(new_logprobs=new_logprobs, logprobs=logprobs, ref_logprobs=ref_logprobs)
    new = new_logprobs.detach()
    d = new - ref_logprobs
    ratio = (new - logprobs).exp()
    if direction == "reverse":
        value, slope = ratio * kl_estimate(new, ref_logprobs, estimator), ratio * d
    elif direction == "forward":
        value = (ref_logprobs - logprobs).exp() * kl_estimate(ref_logprobs, new, estimator)
        slope = -ratio * torch.expm1(-d)
    else:
        raise ConfigError(f"direction={direction!r} is neither reverse nor forward; reverse is the usual one")
    # Zero in value, one in slope.
    return value + slope * (new_logprobs - new)


def next_kl_coef(kl_coef: float, mean_kl: float, num_responses: int, *, target: float, horizon: float) -> float:
    """The penalty's weight after a batch whose **summed** KL per response has the mean ``mean_kl``.

        e = clip(mean_kl / target - 1, -0.2, 0.2)        kl_coef * (1 + e * num_responses / horizon)

    A proportional controller in log space: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    if not target > 0:
        raise ConfigError(f"target={target} must be positive; 6 nats per response is usual")
    if not num_responses < 5 * horizon:
        raise ConfigError(
            f"horizon={horizon} must exceed num_responses/5={num_responses / 5}, or one batch below target would make "
            "the coefficient zero or negative; 10000 is usual"
        )
    error = min(max(mean_kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)
