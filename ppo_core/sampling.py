"""The sampler: responses to prompts, every row with its own randomness, finished rows out of the way."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppo_core.batch import Ragged, RolloutBatch, position_ids
from ppo_core.config import SamplingConfig
from ppo_core.errors import ShapeError
from ppo_core.forward import device_of
from ppo_core.logprobs import at_least_float32, gather_logprobs
from ppo_core.randomness import row_uniforms
from ppo_core.shapes import Float, Int

# Leaving costs a copy of the cache, staying costs the arithmetic of a dead row: at most a quarter of the rows is dead.
_LIVE_SHARE_TO_SHRINK = 0.75


@torch.no_grad()
def sample(
    model: Any,
    prompts: Ragged,
    *,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    should_stop: Callable[[list[int]], bool] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> RolloutBatch:
    """One response per prompt, in the order of the prompts, with the column ``logprobs``.

    ``logprobs`` are those of the full distribution at ``sampling.temperature``, whatever ``top_k`` and ``top_p`` leave.
    Row ``i`` is a function of the model, its prompt and ``seeds[i]`` alone, up to floating-point ties: other rows of
    the batch and padding do not matter. ``should_stop`` sees the response so far, the new token included, and may end
    it (stop strings); it must not change the list. ``on_tokens`` is told the number of new tokens after each step. The
    model is called like a causal language model of Hugging Face and stays in the mode it is in: put it into eval mode.
    """
    if len(seeds) != len(prompts):
        raise ShapeError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed per prompt")
    if (prompts.lengths == 0).any():
        raise ShapeError(f"the prompt of row {int((prompts.lengths == 0).nonzero()[0])} is empty; give it a BOS token")
    device = device_of(model)
    num_rows, max_length = len(prompts), sampling.max_new_tokens
    uniforms = row_uniforms(seeds, max_length).to(device, _drawing_dtype(device))
    stop_ids = torch.tensor(sampling.stop_token_ids, dtype=torch.int64, device=device)

    # By row of the result.
    tokens = torch.zeros(num_rows, max_length, dtype=torch.int64, device=device)
    logprobs = torch.zeros(num_rows, max_length, device=device)
    lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
    stopped = torch.zeros(num_rows, dtype=torch.bool, device=device)
    responses: list[list[int]] = [[] for _ in range(num_rows)]

    # By row of the running batch, which rows leave; ``rows`` says where each one belongs in the result.
    rows = torch.arange(num_rows, device=device)
    live = torch.ones(num_rows, dtype=torch.bool, device=device)
    attention_mask = prompts.mask(side="left").to(device, torch.int64)
    positions = position_ids(attention_mask)
    input_ids = prompts.padded(fill=0, side="left").to(device)
    cache = None
    num_live = num_rows

    for t in range(max_length):
        if num_live == 0:
            break
        result = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = result.past_key_values
        logits = at_least_float32(result.logits[:, -1])
        drawn = draw_tokens(logits, uniforms[rows, t], sampling=sampling)
        tokens[rows, t] = drawn
        logprobs[rows, t] = gather_logprobs(logits, drawn, temperature=sampling.temperature).to(logprobs.dtype)
        lengths[rows] += live
        if on_tokens is not None:
            on_tokens(num_live)

        finished = torch.isin(drawn, stop_ids)
        if should_stop is not None:
            finished |= _stopped_by_caller(should_stop, responses, rows, live, drawn)
        stopped[rows] |= finished & live
        live = live & ~finished
        num_live = int(live.sum())

        input_ids = drawn[:, None]
        positions = positions[:, -1:] + 1
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], dim=1)
        if 0 < num_live <= _LIVE_SHARE_TO_SHRINK * len(rows):
            keep = live.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, live, input_ids, positions, attention_mask = (
                x[keep] for x in (rows, live, input_ids, positions, attention_mask)
            )

    # A row that finished and stayed in the batch wrote on past its end; its length cuts that off.
    response_mask = torch.arange(max_length, device=device) < lengths[:, None]
    tokens, logprobs, response_mask, stopped = (x.cpu() for x in (tokens, logprobs, response_mask, stopped))
    return RolloutBatch(
        prompts=prompts,
        responses=Ragged.from_padded(tokens, response_mask),
        stopped=stopped,
        token_columns={"logprobs": logprobs[response_mask]},
    )


def draw_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], *, sampling: SamplingConfig
) -> Int[Tensor, " B"]:
    """The token whose interval of the cumulative tempered, filtered distribution holds the row's uniform number.

    The intervals lie in order of token id, not of probability: two tokens of almost the same probability may swap ranks
    when rounding differs between batches, and would then swap whole intervals.
    """
    logits = logits.to(_drawing_dtype(logits.device))
    weights = keep_likely((logits / sampling.temperature).softmax(dim=-1), sampling=sampling)
    cumulative = weights.cumsum(dim=-1)
    # As float32 a uniform number may round to 1, beyond the last interval.
    below_one = uniforms.to(logits.dtype).clamp(max=1 - torch.finfo(logits.dtype).eps / 2)
    threshold = below_one[:, None] * cumulative[:, -1:]
    # The first entry above the threshold: a token of weight 0 has an empty interval and is never the first.
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def keep_likely(probabilities: Float[Tensor, "B V"], *, sampling: SamplingConfig) -> Float[Tensor, "B V"]:
    """``probabilities`` with those outside top-k, then top-p, set to 0; not renormalised.

    ``top_p`` counts mass within what top-k leaves, and always keeps the most likely token. Among equals the lower id
    comes first.
    """
    if sampling.top_k == 0 and sampling.top_p == 1:
        return probabilities
    ranked, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k > 0:
        ranked[:, sampling.top_k :] = 0
    if sampling.top_p < 1:
        mass_before = ranked.cumsum(dim=-1) - ranked
        ranked = torch.where(mass_before < sampling.top_p * ranked.sum(dim=-1, keepdim=True), ranked, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, ids, ranked)


def _stopped_by_caller(
    should_stop: Callable[[list[int]], bool], responses: list[list[int]], rows: Tensor, live: Tensor, drawn: Tensor
) -> Tensor:
    """(running rows,) bool: what ``should_stop`` says of each live response after its new token is appended to it."""
    verdicts = []
    for row, is_live, token in zip(rows.tolist(), live.tolist(), drawn.tolist(), strict=True):
        if is_live:
            responses[row].append(token)
        verdicts.append(is_live and should_stop(responses[row]))
    return torch.tensor(verdicts, dtype=torch.bool, device=live.device)


def _drawing_dtype(device: torch.device) -> torch.dtype:
    """float64, so that the last of 150 000 intervals is as exact as the first; Apple's GPUs only have float32."""
    return torch.float32 if device.type == "mps" else torch.float64
