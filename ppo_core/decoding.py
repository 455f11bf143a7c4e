"""Ways to come by the logits of one token after another, and which of them a model can go.

What a model's cache can do, be copied for several samples, let rows leave, pass over padding, is tried on a few tokens and
never read off its kind: recurrent and hybrid states have the same methods as others and do something else in them.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppo_core.batch import Ragged
from ppo_core.errors import ConfigError
from ppo_core.kv_cache import keep_rows, prepare
from ppo_core.logprobs import at_least_float32
from ppo_core.precision import InPrecision, device_of

# Leaving costs a copy of the cache, staying costs the arithmetic of a dead row: at most a quarter of the rows is dead.
_LIVE_SHARE_TO_SHRINK = 0.75
# A look at what has finished stops a GPU; in between, dead rows draw on.
_STEPS_BETWEEN_LOOKS = 16
_logger = logging.getLogger(__name__)


@runtime_checkable
class Drawing(Protocol):
    """Draws tokens from logits, and knows which rows go on."""

    max_length: int
    device: torch.device
    sees_each_token: bool
    """Whether Python has to see every token, so that nothing is gained by not looking."""

    def draw(self, logits: Tensor, rows: Tensor, live: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Token ``t`` of these rows, and which of them are live after it; what a dead row draws is not counted."""
        ...

    def tell(self) -> None:
        """Called every few steps."""
        ...


def with_cache(model: nn.Module, prompts: Ragged, repeats: int, drawing: Drawing) -> None:
    """Read each prompt once for all its samples, then token after token of all rows; rows that have finished leave."""
    running = _read_prompts(model, prompts, repeats, drawing)
    logits, cache, lengths, mask = running.logits, running.cache, running.lengths, running.mask
    cache_argument = _cache_argument(model)
    looks_at_each = drawing.sees_each_token or drawing.device.type == "cpu"
    steps_between_looks = 1 if looks_at_each else _STEPS_BETWEEN_LOOKS
    # Where in the result each row of the running batch belongs.
    rows = torch.arange(len(lengths), device=drawing.device)
    live = torch.ones_like(rows, dtype=torch.bool)
    for t in range(drawing.max_length):
        drawn, live = drawing.draw(logits, rows, live, t)
        if (t + 1) % steps_between_looks == 0 or t + 1 == drawing.max_length:
            drawing.tell()
            num_live = int(live.sum())
            if num_live == 0 or t + 1 == drawing.max_length:
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
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument: cache},
        )
        logits, cache = said.logits[:, -1], getattr(said, cache_argument)


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


def _read_prompts(model: nn.Module, prompts: Ragged, repeats: int, drawing: Drawing) -> _Running:
    is_real = prompts.mask(side="left")
    width = is_real.shape[1]
    room = is_real.new_ones(len(prompts), drawing.max_length)
    mask = torch.cat([is_real, room], dim=1).to(drawing.device, torch.int64)
    has_padding = not bool(is_real.all())
    said = model(
        input_ids=prompts.padded(fill=0, side="left").to(drawing.device),
        attention_mask=mask[:, :width] if has_padding else None,
        position_ids=position_ids(mask[:, :width]),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = getattr(said, _cache_argument(model))
    prepare(cache, repeats=repeats, length=width + drawing.max_length, has_padding=has_padding)
    return _Running(
        logits=said.logits[:, -1].repeat_interleave(repeats, dim=0),
        cache=cache,
        width=width,
        lengths=prompts.lengths.to(drawing.device).repeat_interleave(repeats),
        mask=mask.repeat_interleave(repeats, dim=0) if has_padding else None,
    )


def by_generate(model: nn.Module, prompts: Ragged, repeats: int, drawing: Drawing) -> None:
    """Have the model's own ``generate`` call us for each token, once for all prompts of one length: nothing is padding."""
    inner: Any = _unwrapped(model)
    for ids, rows in _of_one_length(prompts, repeats, drawing):
        state = SimpleNamespace(t=0, live=torch.ones_like(rows, dtype=torch.bool))

        def draw(_: Tensor, logits: Tensor, rows: Tensor = rows, state: SimpleNamespace = state) -> Tensor:
            drawn, state.live = drawing.draw(logits, rows, state.live, state.t)
            state.t += 1
            drawing.tell()
            return torch.full_like(logits, -torch.inf).scatter_(1, drawn[:, None], 0.0)

        def is_done(*_: object, state: SimpleNamespace = state, **__: object) -> Tensor:
            return ~state.live

        with _without_settings(inner):
            inner.generate(
                input_ids=ids,
                # Left to itself, the library takes a prompt's tokens for padding where they have the pad token's id.
                attention_mask=torch.ones_like(ids),
                max_new_tokens=drawing.max_length,
                do_sample=False,
                # The library's own idea of an end would end rows that go on.
                eos_token_id=-1,
                pad_token_id=0,
                logits_processor=[draw],
                stopping_criteria=[is_done],
            )


def whole(model: nn.Module, prompts: Ragged, repeats: int, drawing: Drawing) -> None:
    """Read all of each row again for each token: what the others have to equal, and the slowest."""
    few_logits = {"logits_to_keep": 1} if "logits_to_keep" in _argument_names(model) else {}
    for ids, rows in _of_one_length(prompts, repeats, drawing):
        live = torch.ones_like(rows, dtype=torch.bool)
        for t in range(drawing.max_length):
            logits = model(input_ids=ids, use_cache=False, **few_logits).logits[:, -1]
            drawn, live = drawing.draw(logits, rows, live, t)
            drawing.tell()
            ids, rows, live = torch.cat([ids, drawn[:, None]], dim=1)[live], rows[live], live[live]
            if len(rows) == 0:
                break


def _of_one_length(prompts: Ragged, repeats: int, drawing: Drawing) -> list[tuple[Tensor, Tensor]]:
    """Token ids of all rows whose prompts are equally long, (rows, length), and where in the result they belong."""
    groups = []
    for length in prompts.lengths.unique().tolist():
        chosen = (prompts.lengths == length).nonzero()[:, 0].repeat_interleave(repeats)
        rows = chosen * repeats + torch.arange(repeats).repeat(len(chosen) // repeats)
        groups.append((prompts.select(chosen).padded(fill=0).to(drawing.device), rows.to(drawing.device)))
    return groups


def position_ids(attention_mask: Tensor) -> Tensor:
    """(B, L) number of real tokens before each token, 0 at padding: a row's positions do not depend on its padding."""
    return (attention_mask.cumsum(dim=1) - 1) * attention_mask


Way = Callable[[nn.Module, Ragged, int, Drawing], None]
"""``(model, prompts, repeats, drawing)``: has ``drawing`` draw that many responses to each prompt, in their order."""
_SLOWER: Mapping[Way, str] = {
    by_generate: "the model's own generate() is used, which is slower",
    whole: "the whole row is read again for each token, which is much slower",
}
_ways: "WeakKeyDictionary[nn.Module, Way]" = WeakKeyDictionary()


def way_of(model: nn.Module) -> Way:
    """The fastest way on which a model gives the logits that it gives a row alone, without a cache; tried once a model.

    Raises:
        ConfigError: not even whole rows get in a batch what they get alone.
    """
    inner = _unwrapped(model)
    if inner not in _ways:
        # Rounding differs between a batch and a row alone: in half precision by percents.
        is_exact = all(parameter.dtype.itemsize >= 4 for parameter in inner.parameters())
        probed, close = (inner, 1e-3) if is_exact else (model, 0.1)
        found = next((way for way in (with_cache, by_generate, whole) if _agrees(way, probed, close)), None)
        if found is None:
            raise ConfigError(
                f"{type(inner).__name__} gives a row other logits in a batch than alone, with a cache and without one, so "
                "that no row could be drawn again; take another model"
            )
        if found in _SLOWER:
            _logger.warning("%s cannot keep a batch in a cache; %s", type(inner).__name__, _SLOWER[found])
        _ways[inner] = found
    return _ways[inner]


# Prompts of several lengths, rows that end one after another, more than one sample of each; ids that any vocabulary has.
_PROMPTS = ((0, 1, 2, 3, 1), (2, 1), (3, 0, 2), (1, 3))
_REPEATS, _LENGTHS = 2, (5, 2, 1, 5, 4, 2, 5, 1)
_TOKENS = tuple(tuple((3 * row + t * t + 1) % 4 for t in range(max(_LENGTHS))) for row in range(len(_LENGTHS)))


class _Prescribed:
    """Draws what it was told to, and keeps the logits that it was asked with."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.max_length, self.sees_each_token = device, max(_LENGTHS), True
        self._tokens, self._lengths = torch.tensor(_TOKENS, device=device), torch.tensor(_LENGTHS, device=device)
        self.logits: dict[tuple[int, int], Tensor] = {}

    def draw(self, logits: Tensor, rows: Tensor, live: Tensor, t: int) -> tuple[Tensor, Tensor]:
        for row, is_live, own in zip(rows.tolist(), live.tolist(), logits, strict=True):
            if is_live:
                self.logits[row, t] = at_least_float32(own)
        return self._tokens[rows, t], live & (t + 1 < self._lengths[rows])

    def tell(self) -> None:
        pass


def _agrees(way: Way, model: nn.Module, close: float) -> bool:
    """Whether prescribed rows get on this way, all together, the logits that each gets alone without a cache.

    ``close`` is the difference that rounding may make, as a share of a position's largest logit.
    """
    device = device_of(model)
    prescribed = _Prescribed(device)
    prompts = Ragged.from_rows(_PROMPTS, torch.int64)
    with torch.no_grad():
        try:
            way(model, prompts, _REPEATS, prescribed)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            # Whatever a library's code says of a use that its authors did not think of.
            _logger.debug("%s: %s failed with %r", type(_unwrapped(model)).__name__, way.__name__, error)
            return False
        for row, length in enumerate(_LENGTHS):
            prompt = _PROMPTS[row // _REPEATS]
            ids = torch.tensor([[*prompt, *_TOKENS[row][: length - 1]]], device=device)
            expected = at_least_float32(model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :])
            for t, alone in enumerate(expected):
                given = prescribed.logits.get((row, t))
                if given is None or not torch.allclose(given, alone, rtol=0, atol=close * _largest(alone)):
                    return False
    return True


def _largest(logits: Tensor) -> float:
    """The largest size of those that are finite: a model may rule tokens out."""
    return float(logits[logits.isfinite()].abs().max())


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, InPrecision) else model


def _argument_names(model: Any) -> list[str]:
    """Of the forward pass, then, where it hands on whatever else it is given, of the one that this leads to."""
    parameters = inspect.signature(model.forward).parameters
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return [*parameters, *(_argument_names(model.model) if hands_on and hasattr(model, "model") else ())]


_CACHE_ARGUMENTS = ("past_key_values", "cache")
"""What the library calls a cache, as an argument and in the answer: the second from transformers 5.24 on."""


def _cache_argument(model: nn.Module) -> str:
    """The name that the installed version wants, by its forward pass."""
    return next((name for name in _argument_names(model) if name in _CACHE_ARGUMENTS), _CACHE_ARGUMENTS[0])


@contextmanager
def _without_settings(inner: Any) -> Iterator[None]:
    """No setting of how to generate that came with a checkpoint acts: a penalty or a filter would change what is drawn."""
    while not hasattr(inner, "generation_config"):
        inner = inner.model
    before = inner.generation_config
    inner.generation_config = type(before)()
    try:
        yield
    finally:
        inner.generation_config = before
