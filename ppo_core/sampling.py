"""The sampler: responses to prompts, every row with its own randomness, finished rows out of the way."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ppo_core.batch import Ragged, RolloutBatch
from ppo_core.config import SamplingConfig
from ppo_core.errors import ShapeError
from ppo_core.forward import InPrecision, device_of
from ppo_core.kv_cache import is_standard, keep_rows, prepare
from ppo_core.logprobs import at_least_float32
from ppo_core.randomness import row_uniforms
from ppo_core.shapes import Float, Int

# Leaving costs a copy of the cache, staying costs the arithmetic of a dead row: at most a quarter of the rows is dead.
_LIVE_SHARE_TO_SHRINK = 0.75
# A look at what has finished stops a GPU; in between, dead rows draw on.
_STEPS_BETWEEN_LOOKS = 16
_BLOCK = 512
"""Tokens whose weights are summed before a token is looked for among them."""
_logger = logging.getLogger(__name__)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Ragged,
    *,
    sampling: SamplingConfig,
    seeds: Sequence[int],
    samples_per_prompt: int = 1,
    should_stop: Callable[[list[int]], bool] | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> RolloutBatch:
    """``samples_per_prompt`` responses to each prompt, in the order of the prompts, with the column ``logprobs``.

    ``logprobs`` are those of the full distribution at ``sampling.temperature``, whatever ``top_k`` and ``top_p`` leave.
    Row ``i`` is a function of the model, its prompt and ``seeds[i]`` alone, up to floating-point ties: other rows of
    the batch and padding do not matter. ``should_stop`` sees the response so far, the new token included, and may end
    it (stop strings); it must not change the list. ``on_tokens`` is told the number of new tokens every few steps. The
    model is called like a causal language model of Hugging Face and stays in the mode it is in: put it into eval mode.

    A prompt is read once for all its samples. Rows that have finished leave the batch, where the model's cache lets them.
    """
    num_rows = len(prompts) * samples_per_prompt
    if len(seeds) != num_rows:
        raise ShapeError(f"{len(seeds)} seeds for {num_rows} responses; give one seed per response")
    if (prompts.lengths == 0).any():
        raise ShapeError(f"the prompt of row {int((prompts.lengths == 0).nonzero()[0])} is empty; give it a BOS token")
    if num_rows == 0:
        none = torch.zeros(0)
        nothing = Ragged.from_rows([], torch.int64)
        return RolloutBatch(prompts=prompts, responses=nothing, stopped=none.bool(), token_columns={"logprobs": none})
    result = _Result(sampling, seeds, device_of(model), should_stop)
    # Open for all steps, since the weights stay: their low-precision copies are then made once.
    with model.opened() if isinstance(model, InPrecision) else nullcontext():
        running = _read_prompts(model, prompts, samples_per_prompt, result)
        if running is None:
            _generate(model, prompts, samples_per_prompt, result, on_tokens)
        else:
            _run(model, running, result, on_tokens)
    return result.batch(prompts.select(torch.arange(num_rows) // samples_per_prompt))


class _Result:
    """The responses so far, by row of the result."""

    def __init__(
        self,
        sampling: SamplingConfig,
        seeds: Sequence[int],
        device: torch.device,
        should_stop: Callable[[list[int]], bool] | None,
    ) -> None:
        num_rows, self.max_length = len(seeds), sampling.max_new_tokens
        self.sampling, self.device, self.should_stop = sampling, device, should_stop
        self.uniforms = row_uniforms(seeds, self.max_length).to(device, _drawing_dtype(device))
        self.tokens = torch.zeros(num_rows, self.max_length, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(num_rows, self.max_length, device=device)
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.stopped = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self._stop_ids = torch.tensor(sampling.stop_token_ids, dtype=torch.int64, device=device)
        self._seen_by_caller: list[list[int]] = [[] for _ in range(num_rows)]
        self._told = 0

    def draw(self, logits: Tensor, rows: Tensor, live: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Token ``t`` of these rows, and which of them are live after it; what a dead row draws is not counted."""
        drawn, logprobs = draw_tokens(logits, self.uniforms[rows, t], sampling=self.sampling)
        self.tokens[rows, t] = drawn
        self.logprobs[rows, t] = logprobs.to(self.logprobs.dtype)
        self.lengths[rows] += live
        finished = torch.isin(drawn, self._stop_ids)
        if self.should_stop is not None:
            finished |= self._stopped_by_caller(self.should_stop, rows, live, drawn)
        self.stopped[rows] |= finished & live
        return drawn, live & ~finished

    def _stopped_by_caller(
        self, should_stop: Callable[[list[int]], bool], rows: Tensor, live: Tensor, drawn: Tensor
    ) -> Tensor:
        """(rows,) bool: what ``should_stop`` says of each live response after its new token is appended to it."""
        verdicts = []
        for row, is_live, token in zip(rows.tolist(), live.tolist(), drawn.tolist(), strict=True):
            if is_live:
                self._seen_by_caller[row].append(token)
            verdicts.append(is_live and should_stop(self._seen_by_caller[row]))
        return torch.tensor(verdicts, dtype=torch.bool, device=live.device)

    def tell(self, on_tokens: Callable[[int], None] | None) -> None:
        """Say how many tokens are new since it was last said."""
        if on_tokens is not None:
            done = int(self.lengths.sum())
            on_tokens(done - self._told)
            self._told = done

    def batch(self, prompts: Ragged) -> RolloutBatch:
        # A row that finished and stayed in the batch wrote on past its end; its length cuts that off.
        mask = (torch.arange(self.max_length, device=self.device) < self.lengths[:, None]).cpu()
        return RolloutBatch(
            prompts=prompts,
            responses=Ragged.from_padded(self.tokens.cpu(), mask),
            stopped=self.stopped.cpu(),
            token_columns={"logprobs": self.logprobs.cpu()[mask]},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """The batch after its prompts were read: the logits of the first tokens, and what later steps need to know."""

    logits: Tensor
    cache: Any
    width: int
    lengths: Tensor
    """(rows,) tokens of each prompt."""
    mask: Tensor | None
    """(rows, width + tokens to come) int64: 0 at the padding left of the prompts; None where there is none."""


def _read_prompts(model: Any, prompts: Ragged, repeats: int, result: _Result) -> _Running | None:
    """Read each prompt once; None for a model whose cache is not of the standard kind."""
    is_real = prompts.mask(side="left")
    width = is_real.shape[1]
    room = is_real.new_ones(len(prompts), result.max_length)
    mask = torch.cat([is_real, room], dim=1).to(result.device, torch.int64)
    has_padding = not bool(is_real.all())
    said = model(
        input_ids=prompts.padded(fill=0, side="left").to(result.device),
        attention_mask=mask[:, :width] if has_padding else None,
        position_ids=position_ids(mask[:, :width]),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = getattr(said, "past_key_values", None)
    if not is_standard(cache):
        return None
    prepare(cache, repeats=repeats, length=width + result.max_length, has_padding=has_padding)
    return _Running(
        logits=said.logits[:, -1].repeat_interleave(repeats, dim=0),
        cache=cache,
        width=width,
        lengths=prompts.lengths.to(result.device).repeat_interleave(repeats),
        mask=mask.repeat_interleave(repeats, dim=0) if has_padding else None,
    )


def _run(model: Any, running: _Running, result: _Result, on_tokens: Callable[[int], None] | None) -> None:
    """Draw token after token; rows that have finished leave."""
    logits, cache, lengths, mask = running.logits, running.cache, running.lengths, running.mask
    # Where Python has to see every token, nothing is gained by not looking; elsewhere each look stops the device.
    looks_at_each = result.should_stop is not None or result.device.type == "cpu"
    steps_between_looks = 1 if looks_at_each else _STEPS_BETWEEN_LOOKS
    # Where in the result each row of the running batch belongs.
    rows = torch.arange(len(lengths), device=result.device)
    live = torch.ones_like(rows, dtype=torch.bool)
    for t in range(result.max_length):
        drawn, live = result.draw(logits, rows, live, t)
        if (t + 1) % steps_between_looks == 0 or t + 1 == result.max_length:
            result.tell(on_tokens)
            num_live = int(live.sum())
            if num_live == 0 or t + 1 == result.max_length:
                return
            if num_live <= _LIVE_SHARE_TO_SHRINK * len(rows):
                keep = live.nonzero()[:, 0]
                keep_rows(cache, keep)
                rows, live, drawn, lengths = (x[keep] for x in (rows, live, drawn, lengths))
                mask = None if mask is None else mask[keep]
        said = model(
            input_ids=drawn[:, None],
            attention_mask=None if mask is None else mask[:, : running.width + t + 1],
            position_ids=lengths[:, None] + t,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits, cache = said.logits[:, -1], said.past_key_values


def _generate(
    model: Any, prompts: Ragged, repeats: int, result: _Result, on_tokens: Callable[[int], None] | None
) -> None:
    """Have the model's own ``generate`` call us for each token, once for all prompts of one length: nothing is padding."""
    inner: Any = model.model if isinstance(model, InPrecision) else model
    _logger.warning("%s has no standard cache; its own generate() is used, which is slower", type(inner).__name__)
    for length in prompts.lengths.unique().tolist():
        chosen = (prompts.lengths == length).nonzero()[:, 0].repeat_interleave(repeats)
        rows = (chosen * repeats + torch.arange(repeats).repeat(len(chosen) // repeats)).to(result.device)
        state = SimpleNamespace(t=0, live=torch.ones_like(rows, dtype=torch.bool))

        def draw(_: Tensor, logits: Tensor, rows: Tensor = rows, state: Any = state) -> Tensor:
            drawn, state.live = result.draw(logits, rows, state.live, state.t)
            state.t += 1
            result.tell(on_tokens)
            return torch.full_like(logits, -torch.inf).scatter_(1, drawn[:, None], 0.0)

        def is_done(*_: Any, state: Any = state, **__: Any) -> Tensor:
            return ~state.live

        inner.generate(
            input_ids=prompts.select(chosen).padded(fill=0).to(result.device),
            max_new_tokens=result.max_length,
            do_sample=False,
            # The library's own idea of an end would end rows that go on.
            eos_token_id=-1,
            pad_token_id=0,
            logits_processor=[draw],
            stopping_criteria=[is_done],
        )


def position_ids(attention_mask: Tensor) -> Tensor:
    """(B, L) number of real tokens before each token, 0 at padding: a row's positions do not depend on its padding."""
    return (attention_mask.cumsum(dim=1) - 1) * attention_mask


def draw_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], *, sampling: SamplingConfig
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The token whose interval of the cumulative tempered, filtered distribution holds the row's uniform number, and its
    log-probability in the tempered distribution before filtering.

    The intervals lie in order of token id, not of probability: two tokens of almost the same probability may swap ranks
    when rounding differs between batches, and would then swap whole intervals.
    """
    z = at_least_float32(logits) / sampling.temperature
    largest = z.max(dim=-1, keepdim=True).values
    weights = (z - largest).exp_()
    drawing = _drawing_dtype(logits.device)
    total = weights.sum(dim=-1, dtype=drawing)
    likely = keep_likely(weights, sampling=sampling)
    drawn = _first_beyond(likely, uniforms.to(drawing))
    return drawn, z.gather(-1, drawn[:, None])[:, 0] - largest[:, 0] - total.log().to(z.dtype)


def _first_beyond(weights: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The first token up to which more than ``uniform`` of the row's weight lies; never one of weight 0.

    In two steps, by block and within it: a cumulative sum over a large vocabulary in double precision would cost more
    than all the rest of drawing a token.
    """
    dtype = uniforms.dtype
    num_rows, vocabulary = weights.shape
    whole = vocabulary - vocabulary % _BLOCK
    sums = weights[:, :whole].view(num_rows, -1, _BLOCK).sum(dim=-1, dtype=dtype)
    blocks = torch.cat([sums, weights[:, whole:].sum(dim=-1, dtype=dtype, keepdim=True)], dim=1).cumsum(dim=1)
    # A product that rounding has made the whole weight would lie beyond the last token.
    below_one = 1 - torch.finfo(dtype).eps / 2
    target = uniforms.clamp(max=below_one) * blocks[:, -1]
    block = torch.searchsorted(blocks, target[:, None], right=True).clamp(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)), 0.0)
    ids = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, ids.clamp(max=vocabulary - 1)).masked_fill(ids >= vocabulary, 0).to(dtype).cumsum(dim=1)
    # Summed in another order, the block may have come out a little lighter than it was taken for.
    rest = torch.minimum(target[:, None] - before, inside[:, -1:] * below_one)
    return (block * _BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0]


def keep_likely(probabilities: Float[Tensor, "B V"], *, sampling: SamplingConfig) -> Float[Tensor, "B V"]:
    """``probabilities``, up to a factor, with those outside top-k, then top-p, set to 0; not renormalised.

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


def _drawing_dtype(device: torch.device) -> torch.dtype:
    """float64, so that the last of 150 000 intervals is as exact as the first; Apple's GPUs only have float32."""
    return torch.float32 if device.type == "mps" else torch.float64
