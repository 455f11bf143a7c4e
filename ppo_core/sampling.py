"""The sampler: responses to prompts, every row with its own randomness, finished rows out of the way."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ppo_core.batch import Ragged, RolloutBatch
from ppo_core.config import SamplingConfig
from ppo_core.decoding import way_of
from ppo_core.errors import ShapeError
from ppo_core.logprobs import at_least_float32
from ppo_core.precision import InPrecision, device_of
from ppo_core.randomness import row_uniforms
from ppo_core.shapes import Float, Int

_BLOCK = 512
"""Tokens whose weights are summed before a token is looked for among them."""


@torch.no_grad()
def sample(
    model: nn.Module,
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

    Raises:
        ConfigError: the model gives a row other logits in a batch than alone.
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
    decode = way_of(model)
    result = _Result(sampling, seeds, device_of(model), should_stop, on_tokens)
    # Open for all steps, since the weights stay: their low-precision copies are then made once.
    with model.opened() if isinstance(model, InPrecision) else nullcontext():
        decode(model, prompts, samples_per_prompt, result)
    return result.batch(prompts.select(torch.arange(num_rows) // samples_per_prompt))


class _Result:
    """The responses so far, by row of the result."""

    def __init__(
        self,
        sampling: SamplingConfig,
        seeds: Sequence[int],
        device: torch.device,
        should_stop: Callable[[list[int]], bool] | None,
        on_tokens: Callable[[int], None] | None,
    ) -> None:
        num_rows, self.max_length = len(seeds), sampling.max_new_tokens
        self.sampling, self.device = sampling, device
        self.sees_each_token = should_stop is not None
        self._should_stop, self._on_tokens = should_stop, on_tokens
        self.uniforms = row_uniforms(seeds, self.max_length).to(device, _drawing_dtype(device))
        self.tokens = torch.zeros(num_rows, self.max_length, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(num_rows, self.max_length, device=device)
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.stopped = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self._stop_ids = torch.tensor(sampling.stop_token_ids, dtype=torch.int64, device=device)
        self._suppressed = torch.tensor(sampling.suppress_token_ids, dtype=torch.int64, device=device)
        self._seen_by_caller: list[list[int]] = [[] for _ in range(num_rows)]
        self._told = 0

    def draw(self, logits: Tensor, rows: Tensor, live: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Token ``t`` of these rows, and which of them are live after it; what a dead row draws is not counted."""
        drawn, logprobs = draw_tokens(
            logits, self.uniforms[rows, t], sampling=self.sampling, suppressed=self._suppressed
        )
        self.tokens[rows, t] = drawn
        self.logprobs[rows, t] = logprobs.to(self.logprobs.dtype)
        self.lengths[rows] += live
        finished = torch.isin(drawn, self._stop_ids)
        if self._should_stop is not None:
            finished |= self._stopped_by_caller(self._should_stop, rows, live, drawn)
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

    def tell(self) -> None:
        """Say how many tokens are new since it was last said."""
        if self._on_tokens is not None:
            done = int(self.lengths.sum())
            self._on_tokens(done - self._told)
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


def draw_tokens(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    *,
    sampling: SamplingConfig,
    suppressed: Int[Tensor, " S"] | None = None,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The token whose interval of the cumulative tempered, filtered distribution holds the row's uniform number, and its
    log-probability in the tempered distribution before filtering. ``suppressed`` are the sampling's ids, on the device.

    The intervals lie in order of token id, not of probability: two tokens of almost the same probability may swap ranks
    when rounding differs between batches, and would then swap whole intervals.
    """
    z = at_least_float32(logits) / sampling.temperature
    largest = z.max(dim=-1, keepdim=True).values
    weights = (z - largest).exp_()
    drawing = _drawing_dtype(logits.device)
    total = weights.sum(dim=-1, dtype=drawing)
    if suppressed is not None and len(suppressed) > 0:
        weights.index_fill_(-1, suppressed, 0.0)
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
