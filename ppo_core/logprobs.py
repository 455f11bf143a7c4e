"""Log-probabilities of tokens and the entropy of next-token distributions, from logits or from hidden states."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, overload

import torch
from torch import Tensor, nn

from ppo_core.errors import ConfigError, ShapeError
from ppo_core.shapes import Float, Int

P = ParamSpec("P")
R = TypeVar("R")

_CHUNK_ELEMENTS = 2**25
# Stands for the logarithm of a probability of 0: its product with 0 is 0, where that of minus infinity is not a number.
_LOG_OF_ZERO = -1e4


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision inputs as float32, others unchanged: sums over a vocabulary do not survive 8 bits of mantissa."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def gather_logprobs(
    logits: Float[Tensor, "*B V"], token_ids: Int[Tensor, "*B"], *, temperature: float = 1.0
) -> Float[Tensor, "*B"]:
    """``log softmax(logits / temperature)`` at the given tokens.

    Computed as ``z[token] - logsumexp(z)``, which does not hold a second tensor of vocabulary size. float32 or wider.
    """
    z = at_least_float32(logits) / temperature
    return z.gather(-1, token_ids[..., None])[..., 0] - z.logsumexp(dim=-1)


def entropy(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """``H = logsumexp(z) - sum_v p_v z_v`` of ``p = softmax(z)``; divide the logits by a temperature beforehand.

    There is no ``log p_v`` in it, which is minus infinity where a probability underflows. A logit of minus infinity is
    a token that cannot occur and contributes nothing.
    """
    z = at_least_float32(logits)
    expected = torch.where(z == -torch.inf, 0.0, z).mul(z.softmax(dim=-1)).sum(dim=-1)
    return z.logsumexp(dim=-1) - expected


@overload
def linear_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    dtype: torch.dtype | None = None,
    with_entropy: Literal[False] = False,
) -> Tensor: ...


@overload
def linear_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    dtype: torch.dtype | None = None,
    with_entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def linear_logprobs(
    hidden: Float[Tensor, "*B D"],
    lm_head_weight: Float[Tensor, "V D"],
    token_ids: Int[Tensor, "*B"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    dtype: torch.dtype | None = None,
    with_entropy: bool = False,
) -> Float[Tensor, "*B"] | tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """``gather_logprobs`` of ``logits = hidden @ lm_head_weight.T + bias``, and the ``entropy`` of ``logits /
    temperature`` if asked for.

    Works through ``chunk`` tokens at a time, by default so many that their logits take 128 MiB: logits of all tokens never
    exist, neither forward nor backward, where all chunks but the first are computed again. The product and its
    gradient are computed in ``dtype``, by default float32 or wider whatever ``hidden`` is, also within autocast; what
    follows always in float32 or wider. Can be differentiated once.
    """
    if chunk is None:
        chunk = max(1, _CHUNK_ELEMENTS // len(lm_head_weight))
    if chunk < 1:
        raise ConfigError(f"chunk={chunk} must be at least 1; leave it out for one that suits the vocabulary")
    if token_ids.shape != hidden.shape[:-1]:
        raise ShapeError(
            f"token_ids is {tuple(token_ids.shape)} but hidden is {tuple(hidden.shape)}; give one id per row"
        )
    flat = hidden.reshape(-1, hidden.shape[-1])
    dtype = dtype or torch.promote_types(hidden.dtype, torch.float32)
    logprobs, entropies = _LinearLogprobs.apply(
        flat, lm_head_weight, bias, token_ids.reshape(-1), temperature, chunk, dtype, with_entropy
    )
    logprobs = logprobs.view(token_ids.shape)
    return (logprobs, entropies.view(token_ids.shape)) if with_entropy else logprobs


def linear_in_float32(layer: nn.Linear, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B O"]:
    """``layer(hidden)``, computed in float32 or wider whatever the dtype of either is, also within autocast.

    bfloat16 has 8 bits of mantissa: of 4096 values around 12 with a standard deviation of 1, about a hundred stay apart.
    """
    bias = None if layer.bias is None else at_least_float32(layer.bias)
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(at_least_float32(hidden), at_least_float32(layer.weight), bias)


def _without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """A step of an autograd function in the types of its tensors, whatever the caller's context would cast them to."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(x.device for x in args if isinstance(x, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


class _LinearLogprobs(torch.autograd.Function):
    """With ``z`` the logits and ``p = softmax(z)``,

    d logprob / d z_v = [v = token] - p_v,    d entropy / d z_v = -p_v (z_v - E_p[z]) = -p_v (log p_v + entropy).

    Kept for the backward pass are three numbers a token, and the first chunk's ``exp(z - max z)``; the others' logits are
    computed again.
    """

    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        temperature: float,
        chunk: int,
        dtype: torch.dtype,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        logprobs, entropies, logsumexps = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(3))
        own_weight = weight.to(dtype)
        ctx.first_weights = None
        for part in _chunks(len(hidden), chunk):
            z = _scaled_logits(hidden[part], own_weight, bias, temperature)
            largest = z.amax(dim=-1, keepdim=True)
            chosen = z.gather(-1, token_ids[part, None])
            weights = z.sub_(largest).exp() if with_entropy else z.sub_(largest).exp_()
            total = weights.sum(dim=-1)
            logsumexps[part] = largest[:, 0] + total.log()
            logprobs[part] = (chosen - largest)[:, 0] - total.log()
            if with_entropy:
                if bias is not None:
                    # Only a bias can bring in minus infinity, whose product with a probability of 0 is no number.
                    z.clamp_(min=_LOG_OF_ZERO)
                entropies[part] = total.log() - z.mul_(weights).sum(dim=-1) / total
            if part.start == 0 and any(ctx.needs_input_grad[:3]):
                ctx.first_weights = weights, total
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, token_ids, logsumexps, entropies)
        ctx.settings = (temperature, chunk, dtype)
        return logprobs, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_without_autocast
    def backward(ctx: Any, d_logprobs: Tensor | None, d_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token_ids, logsumexps, entropies = ctx.saved_tensors
        temperature, chunk, dtype = ctx.settings
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        d_weight = None
        d_bias = torch.zeros_like(bias) if needs_bias else None
        if d_logprobs is None:
            d_logprobs = torch.zeros_like(logsumexps)
        own_weight = weight.to(dtype)
        for part in _chunks(len(hidden), chunk):
            first, ctx.first_weights = ctx.first_weights, None
            if first is not None:
                weights, total = first
                p = weights.div_(total[:, None])
                log_p = None if d_entropies is None else p.log()
            else:
                log_p = _scaled_logits(hidden[part], own_weight, bias, temperature).sub_(logsumexps[part, None])
                p = log_p.exp_() if d_entropies is None else log_p.exp()
            if d_entropies is None:
                d_z = p.mul_(-d_logprobs[part, None])
            else:
                assert log_p is not None
                factor = log_p.clamp_(min=_LOG_OF_ZERO).add_(entropies[part, None])
                factor.mul_(-d_entropies[part, None]).sub_(d_logprobs[part, None])
                d_z = p.mul_(factor)
            d_z.scatter_add_(-1, token_ids[part, None], d_logprobs[part, None])
            d_z = (d_z.div_(temperature) if temperature != 1 else d_z).to(dtype)
            if d_hidden is not None:
                d_hidden[part] = d_z @ own_weight
            if needs_weight:
                d_weight = _with_product(
                    d_weight, d_z.T, hidden[part].to(dtype), torch.promote_types(dtype, weight.dtype)
                )
            if d_bias is not None:
                d_bias += d_z.sum(dim=0)
        if needs_weight:
            # Rounded once, if at all, and not with each chunk.
            d_weight = torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, d_bias, *(None,) * 5


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, length, chunk)]


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """``(hidden @ weight.T + bias) / temperature`` in a tensor of its own, float32 or wider."""
    logits = at_least_float32(hidden.to(weight.dtype) @ weight.T)
    if bias is not None:
        logits += bias
    return logits if temperature == 1 else logits.div_(temperature)


def _with_product(total: Tensor | None, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``total + a @ b``, in place where there is a total yet, without a third tensor where the types allow it."""
    if total is None:
        return (a @ b).to(dtype)
    return total.addmm_(a, b) if dtype == a.dtype else total.add_(a @ b)
