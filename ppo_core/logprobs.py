"""Log-probabilities of tokens and the entropy of next-token distributions, from logits."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppo_core.errors import ConfigError, ShapeError
from ppo_core.shapes import Float, Int


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


def linear_logprobs(
    hidden: Float[Tensor, "*B D"],
    lm_head_weight: Float[Tensor, "V D"],
    token_ids: Int[Tensor, "*B"],
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
    with_entropy: bool = False,
) -> Float[Tensor, "*B"] | tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """``gather_logprobs`` of ``logits = hidden @ lm_head_weight.T``, and ``entropy`` of them if asked for.

    Works through ``chunk`` tokens at a time: logits of all tokens never exist, neither forward nor backward, where each
    chunk is computed again. float32 or wider.
    """
    if chunk < 1:
        raise ConfigError(f"chunk={chunk} must be at least 1; 1024 suits most vocabularies")
    if token_ids.shape != hidden.shape[:-1]:
        raise ShapeError(
            f"token_ids is {tuple(token_ids.shape)} but hidden is {tuple(hidden.shape)}; give one id per row"
        )

    def of_chunk(h: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        logits = at_least_float32(h @ lm_head_weight.T) / temperature
        logprobs = gather_logprobs(logits, ids)
        return (logprobs, entropy(logits)) if with_entropy else (logprobs,)

    rows = zip(hidden.reshape(-1, hidden.shape[-1]).split(chunk), token_ids.reshape(-1).split(chunk), strict=True)
    parts = [checkpoint(of_chunk, h, ids, use_reentrant=False, preserve_rng_state=False) for h, ids in rows]
    columns = [torch.cat(column).view(token_ids.shape) for column in zip(*parts, strict=True)]
    return (columns[0], columns[1]) if with_entropy else columns[0]
