"""What the models say about padded rollouts: the only functions, with the sampler, that call a model.

A policy is any causal language model that is called like those of Hugging Face. A critic is any module called with
``input_ids``, ``attention_mask`` and ``position_ids`` that returns one value per position, (B, L). Neither is put into
train or eval mode here: dropout must be off, or the ratio of the first minibatch is not 1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ppo_core.batch import PaddedBatch
from ppo_core.errors import ShapeError
from ppo_core.logprobs import at_least_float32, entropy, gather_logprobs
from ppo_core.shapes import Float


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def response_logits(model: Any, padded: PaddedBatch) -> Float[Tensor, "B T V"]:
    """Logits that predict each response token: those of the position before it, in the model's own precision."""
    num_columns = padded.response_mask.shape[1]
    result = model(
        input_ids=padded.input_ids,
        attention_mask=padded.attention_mask,
        position_ids=padded.position_ids,
        use_cache=False,
        logits_to_keep=num_columns + 1,
    )
    # Counted from the end, so that a model that ignores logits_to_keep is only slower.
    return result.logits[:, -num_columns - 1 : -1]


def response_logprobs(model: Any, padded: PaddedBatch, *, temperature: float) -> Float[Tensor, "B T"]:
    """Log-probability of each response token, 0 outside the mask."""
    mask = padded.response_mask
    # Real tokens are picked before the maths: padding costs nothing and cannot put NaN into the gradient.
    logits = response_logits(model, padded)[mask]
    return _spread(gather_logprobs(logits, padded.response_ids[mask], temperature=temperature), mask)


def response_logprobs_and_entropy(
    model: Any, padded: PaddedBatch, *, temperature: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """``response_logprobs`` and, without gradient, the entropy of the distribution that each token was drawn from."""
    mask = padded.response_mask
    logits = response_logits(model, padded)[mask]
    logprobs = gather_logprobs(logits, padded.response_ids[mask], temperature=temperature)
    with torch.no_grad():
        entropies = entropy(at_least_float32(logits) / temperature)
    return _spread(logprobs, mask), _spread(entropies, mask)


def response_values(critic: Any, padded: PaddedBatch) -> Float[Tensor, "B T"]:
    """``values[t]`` is the critic at the position that predicts response token ``t``; 0 outside the mask."""
    values = critic(input_ids=padded.input_ids, attention_mask=padded.attention_mask, position_ids=padded.position_ids)
    if values.shape != padded.input_ids.shape:
        raise ShapeError(
            f"the critic returned {tuple(values.shape)} for input_ids of {tuple(padded.input_ids.shape)}; "
            "it must return one value per position"
        )
    before_each_token = values[:, padded.prompt_width - 1 : -1]
    return torch.where(padded.response_mask, at_least_float32(before_each_token), 0.0)


def _spread(x: Float[Tensor, " N"], mask: Tensor) -> Float[Tensor, "B T"]:
    """Numbers of the real tokens back at their places in (B, T), 0 elsewhere."""
    return x.new_zeros(mask.shape).masked_scatter(mask, x)
