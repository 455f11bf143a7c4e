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
from ppo_core.logprobs import at_least_float32, gather_logprobs
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


def token_logits(model: Any, padded: PaddedBatch, *, temperature: float) -> Float[Tensor, "N V"]:
    """Logits, divided by ``temperature``, that predict the N response tokens, row by row; float32 or wider.

    Real tokens are picked before any maths: padding costs nothing and cannot put NaN into the gradient.
    """
    return at_least_float32(response_logits(model, padded)[padded.response_mask]) / temperature


def response_logprobs(model: Any, padded: PaddedBatch, *, temperature: float) -> Float[Tensor, "B T"]:
    """Log-probability of each response token, 0 outside the mask."""
    logits = token_logits(model, padded, temperature=temperature)
    return spread(gather_logprobs(logits, padded.response_ids[padded.response_mask]), padded.response_mask)


def response_values(critic: Any, padded: PaddedBatch) -> Float[Tensor, "B T"]:
    """``values[t]`` is the critic at the position that predicts response token ``t``; 0 outside the mask."""
    return response_and_final_values(critic, padded)[0]


def response_and_final_values(critic: Any, padded: PaddedBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, " B"]]:
    """``response_values`` and the critic after each response's last token: what a response that was cut off may yet get."""
    values = critic(input_ids=padded.input_ids, attention_mask=padded.attention_mask, position_ids=padded.position_ids)
    if values.shape != padded.input_ids.shape:
        raise ShapeError(
            f"the critic returned {tuple(values.shape)} for input_ids of {tuple(padded.input_ids.shape)}; "
            "it must return one value per position"
        )
    values = at_least_float32(values)
    last = padded.prompt_width - 1 + padded.response_mask.sum(dim=1, keepdim=True)
    before_each_token = values[:, padded.prompt_width - 1 : -1]
    return torch.where(padded.response_mask, before_each_token, 0.0), values.gather(1, last).squeeze(1)


def spread(x: Float[Tensor, " N"], mask: Tensor) -> Float[Tensor, "B T"]:
    """Numbers of the real tokens back at their places in (B, T), 0 elsewhere."""
    return x.new_zeros(mask.shape).masked_scatter(mask, x)
