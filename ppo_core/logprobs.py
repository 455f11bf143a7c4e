"""Log-probabilities of tokens and the entropy of next-token distributions, from logits."""

import torch
from torch import Tensor

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
