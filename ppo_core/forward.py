"""What the models say about padded rollouts: the only functions, with the sampler, that call a model.

A policy is any causal language model that is called like those of Hugging Face. A critic is any module called with
``input_ids``, and ``position_ids`` where several rows share a line, that returns one value per position, (G, L). Padding
stands on the right, where no real token sees it, so neither gets a mask. Neither is put into train or eval mode here:
dropout must be off, or the ratio of the first minibatch is not 1.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppo_core.batch import PaddedBatch, micro_batches, packed_lines
from ppo_core.errors import ConfigError, ShapeError
from ppo_core.logprobs import at_least_float32, entropy, gather_logprobs, linear_in_float32, linear_logprobs
from ppo_core.shapes import Float

_PROBE_TOKENS = 4
# So many pairs of tokens cost in attention what one token costs elsewhere: measured for a model of width 384 on a CPU.
_PAIRS_TO_A_TOKEN = 1500
# Lines are tried up to so many times as wide as the longest row; in fewer widths where there are more rows to place.
_WIDEST = 5
_FEWEST_WIDTHS, _MOST_WIDTHS, _ROWS_TO_PLACE = 6, 55, 2048


class InPrecision(nn.Module):
    """A model whose every call runs in ``dtype`` over its own weights, but for the vocabulary's head, whose logits are
    computed in ``head_dtype`` where that is wider.

    Rounded to bfloat16, logits are off by up to half a percent, and log-probabilities by 0.01 and more; with the head in
    float32 by what the body rounds alone: MiniMax 2025, arXiv:2506.13585; Khatri et al. 2025, arXiv:2510.13786.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, head_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.head_dtype = torch.promote_types(dtype, head_dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The context closes with the call, since autocast keeps its low-precision copies of the weights until then, and an
        # optimizer step in between would leave them stale.
        with self.opened():
            return self.model(*args, **kwargs)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The numerics of a call, the same for sampling, scoring and training: ratio 1 needs that."""
        with torch.autocast(device_of(self.model).type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            if self.head_dtype == self.dtype:
                yield
            else:
                with _head_in_float32(self.model):
                    yield


@contextmanager
def _head_in_float32(model: Any) -> Iterator[None]:
    """The layer that makes the logits leaves the autocast around it: a model's own forward pass calls it within."""
    head = _output_layer(model)
    if head is None or isinstance(own := head.forward, _Float32Forward):
        yield
        return
    was_replaced = "forward" in vars(head)
    head.forward = _Float32Forward(head, own)
    try:
        yield
    finally:
        if was_replaced:
            head.forward = own
        else:
            del head.forward


class _Float32Forward:
    """The forward pass of a layer in float32: what it is while ``_head_in_float32`` is open."""

    def __init__(self, layer: nn.Module, own: Callable[..., Any]) -> None:
        self.layer, self.own = layer, own

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if type(self.layer) is nn.Linear:
            return linear_in_float32(self.layer, hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.own(at_least_float32(hidden), *args, **kwargs)


def _output_layer(model: Any) -> nn.Module | None:
    """What makes a language model's logits of hidden states; None for a model without such a layer."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return layer if isinstance(layer, nn.Module) else None


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def forward_groups(models: Sequence[Any], lengths: Tensor, token_budget: int) -> list[list[Tensor]]:
    """Rows for one forward pass after another, each pass a list of lines for ``RolloutBatch.padded``.

    No pass has more tokens, padding included, than ``token_budget``, unless a single row has. Where all models can tell
    the rows of a line apart, rows share lines, and next to nothing is padding; else rows of like length share a pass.
    """
    if len(lengths) == 0:
        return []
    is_cpu = all(device_of(model).type == "cpu" for model in models)
    if not all(can_pack(model) for model in models):
        # What a pass costs besides its tokens: some milliseconds of calls, in which a GPU would do thousands of them.
        groups = micro_batches(lengths, token_budget, group_cost=64 if is_cpu else 4096)
        return [list(group.split(1)) for group in groups]
    own = lengths.tolist()
    longest, together = max(own), sum(own)
    # Few rows fill lines badly, unless their width is chosen for them; many fill any.
    widest = min(together, _WIDEST * longest)
    steps = max(_FEWEST_WIDTHS, min(_MOST_WIDTHS, _ROWS_TO_PLACE // len(own)))
    widths = {min(token_budget, round(longest * (widest / longest) ** (step / steps))) for step in range(steps + 1)}
    lines = min((packed_lines(own, width) for width in sorted(widths)), key=lambda packed: _price(own, packed))
    sizes = torch.tensor([sum(own[row] for row in line) for line in lines])
    groups = micro_batches(sizes, token_budget, group_cost=512)
    return [[torch.tensor(lines[i]) for i in group.tolist()] for group in groups]


def _price(lengths: list[int], lines: list[list[int]]) -> float:
    """What a forward pass over these lines costs, in tokens: padding counts, and attention looks at all pairs of a line."""
    width = max(sum(lengths[row] for row in line) for line in lines)
    return len(lines) * width * (1 + width / _PAIRS_TO_A_TOKEN)


_can_pack: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def can_pack(model: Any) -> bool:
    """Whether a model takes rows that stand on one line for separate ones when their positions say so; tried once."""
    inner: Any = model.model if isinstance(model, InPrecision) else model
    if inner not in _can_pack:
        first, other, second = torch.tensor([[0, 1, 2]]), torch.tensor([[3, 0, 1]]), torch.tensor([[2, 1]])
        positions = torch.tensor([[0, 1, 2, 0, 1]])
        # A critic is told nothing of a cache.
        options = {"use_cache": False} if hasattr(inner, "get_output_embeddings") else {}

        def say(input_ids: Tensor, **more: Tensor) -> Tensor:
            said = model(
                **{name: x.to(device_of(inner)) for name, x in {"input_ids": input_ids, **more}.items()}, **options
            )
            return at_least_float32(said if isinstance(said, Tensor) else said.logits)

        with torch.no_grad():
            try:
                alone = say(second)
                packed, beside_other = (
                    say(torch.cat([row, second], dim=1), position_ids=positions)[:, 3:] for row in (first, other)
                )
                # A row that sees nothing of the one before it agrees to the last bit, in whatever precision.
                is_close = bool((packed - alone).abs().max() <= 0.05 * alone.abs().max())
                _can_pack[inner] = torch.equal(packed, beside_other) and is_close
            except TypeError:
                # One that takes no positions.
                _can_pack[inner] = False
    return _can_pack[inner]


class HeadCritic(nn.Module):
    """A critic that is a head on a body which belongs to somebody else: ``values = head(body(...).last_hidden_state)``.

    Its parameters are those of the head alone, a linear layer with one output, which computes in float32.
    """

    def __init__(self, body: Callable[..., Any], head: nn.Linear) -> None:
        super().__init__()
        # In a tuple, out of the module's sight.
        self._body = (body,)
        self.head = head

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Float[Tensor, "G L"]:
        """One value per position."""
        positions = {} if position_ids is None else {"position_ids": position_ids}
        return self.values(self._body[0](input_ids=input_ids, **positions, use_cache=False).last_hidden_state)

    def values(self, hidden: Float[Tensor, "*S D"]) -> Float[Tensor, "*S"]:
        """Of hidden states of the body."""
        return linear_in_float32(self.head, hidden).squeeze(-1)


class TrunkCritic(HeadCritic):
    """A critic on the body of the policy that is trained beside it: one forward and one backward pass serve both."""

    def __init__(self, policy: Any, head: nn.Linear) -> None:
        super().__init__(policy.base_model, head)

    def head_alone(self) -> HeadCritic:
        """The same head over a body that passes no gradient on, for training that must leave the policy as it is."""

        def body(**inputs: Any) -> Any:
            with torch.no_grad():
                return self._body[0](**inputs)

        return HeadCritic(body, self.head)


def shares_trunk(critic: Any | None) -> bool:
    """Whether a critic is a head on the policy's body."""
    return isinstance(critic.model if isinstance(critic, InPrecision) else critic, TrunkCritic)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A language model in two parts: ``logits = body(...).last_hidden_state @ weight.T + bias``."""

    body: Callable[..., Any]
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype | None
    """In which the product is computed; None for that of the hidden states, but at least float32."""


_has_linear_head: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def linear_head(model: Any) -> LinearHead | None:
    """The two parts of a model like those of Hugging Face; None for one that does more to its logits, or has no such parts.

    Whether the parts give the model's logits is tried once, on a few tokens.
    """
    inner: Any = model.model if isinstance(model, InPrecision) else model
    head = _output_layer(inner)
    body = getattr(inner, "base_model", inner)
    if not isinstance(head, nn.Linear) or body is inner:
        return None
    if inner not in _has_linear_head:
        with torch.no_grad(), model.opened() if isinstance(model, InPrecision) else nullcontext():
            ids = torch.arange(_PROBE_TOKENS, device=device_of(inner))[None] % head.out_features
            logits = inner(input_ids=ids, use_cache=False).logits
            parts = head(body(input_ids=ids, use_cache=False).last_hidden_state)
            _has_linear_head[inner] = parts.shape == logits.shape and torch.allclose(parts, logits)
    if not _has_linear_head[inner]:
        return None
    if not isinstance(model, InPrecision):
        return LinearHead(body, head.weight, head.bias, None)
    return LinearHead(InPrecision(body, model.dtype), head.weight, head.bias, model.head_dtype)


def token_logits(model: Any, padded: PaddedBatch, *, temperature: float) -> Float[Tensor, "N V"]:
    """Logits, divided by ``temperature``, that predict the N response tokens, row by row; float32 or wider.

    Real tokens are picked before any maths: padding costs nothing and cannot put NaN into the gradient.
    """
    logits = model(input_ids=padded.input_ids, **_positions(padded), use_cache=False).logits
    return at_least_float32(logits[padded.predicts_response]) / temperature


@overload
def token_logprobs(
    model: Any, padded: PaddedBatch, *, temperature: float, with_entropy: Literal[False] = False
) -> Tensor: ...


@overload
def token_logprobs(
    model: Any, padded: PaddedBatch, *, temperature: float, with_entropy: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def token_logprobs(
    model: Any, padded: PaddedBatch, *, temperature: float, with_entropy: bool = False
) -> Float[Tensor, " N"] | tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probability of each of the N response tokens, and the entropy of what it is drawn from if asked for.

    From hidden states where the model's head is linear: logits of all tokens then never exist.
    """
    head = linear_head(model)
    if head is None:
        logits = token_logits(model, padded, temperature=temperature)
        logprobs = gather_logprobs(logits, padded.response_ids)
        return (logprobs, entropy(logits)) if with_entropy else logprobs
    hidden = _hidden_states(head, padded)
    logprobs, entropies = _of_hidden_states(hidden, head, padded, temperature=temperature, with_entropy=with_entropy)
    return logprobs if entropies is None else (logprobs, entropies)


def token_logprobs_and_values(
    policy: Any, critic: Any, padded: PaddedBatch, *, temperature: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probabilities, entropies and values of the N response tokens, by one pass through the body that a policy shares
    with its ``TrunkCritic``."""
    head = linear_head(policy)
    if head is None:
        raise ConfigError(
            "the policy does more to its logits than a linear head does, or has no such head, so that a critic cannot "
            "share its body; give the critic a body of its own"
        )
    inner: Any = critic.model if isinstance(critic, InPrecision) else critic
    hidden = _hidden_states(head, padded)
    logprobs, entropies = _of_hidden_states(hidden, head, padded, temperature=temperature, with_entropy=True)
    assert entropies is not None
    return logprobs, entropies, inner.values(hidden)[padded.predicts_response]


def _hidden_states(head: LinearHead, padded: PaddedBatch) -> Float[Tensor, "G L D"]:
    hidden: Tensor = head.body(input_ids=padded.input_ids, **_positions(padded), use_cache=False).last_hidden_state
    return hidden


def _of_hidden_states(
    hidden: Tensor, head: LinearHead, padded: PaddedBatch, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the response tokens, and entropies if asked for."""
    given = hidden[padded.predicts_response], head.weight, padded.response_ids
    settings: dict[str, Any] = {"bias": head.bias, "temperature": temperature, "dtype": head.dtype}
    if with_entropy:
        return linear_logprobs(*given, with_entropy=True, **settings)
    return linear_logprobs(*given, **settings), None


def response_logprobs(model: Any, padded: PaddedBatch, *, temperature: float) -> Float[Tensor, "B T"]:
    """Log-probability of each response token, 0 outside the mask."""
    return spread(token_logprobs(model, padded, temperature=temperature), padded.response_mask)


def response_values(critic: Any, padded: PaddedBatch) -> Float[Tensor, "B T"]:
    """``values[t]`` is the critic at the position that predicts response token ``t``; 0 outside the mask."""
    return response_and_final_values(critic, padded)[0]


def response_and_final_values(critic: Any, padded: PaddedBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, " B"]]:
    """``response_values`` and the critic after each response's last token: what a response that was cut off may yet get."""
    values = critic(input_ids=padded.input_ids, **_positions(padded))
    if values.shape != padded.input_ids.shape:
        raise ShapeError(
            f"the critic returned {tuple(values.shape)} for input_ids of {tuple(padded.input_ids.shape)}; "
            "it must return one value per position"
        )
    values = at_least_float32(values)
    before_each_token = spread(values[padded.predicts_response], padded.response_mask)
    return before_each_token, values.flatten()[padded.last]


def _positions(padded: PaddedBatch) -> dict[str, Tensor]:
    return {} if padded.position_ids is None else {"position_ids": padded.position_ids}


def spread(x: Float[Tensor, " N"], mask: Tensor) -> Float[Tensor, "B T"]:
    """Numbers of the real tokens back at their places in (B, T), 0 elsewhere."""
    return x.new_zeros(mask.shape).masked_scatter(mask, x)
