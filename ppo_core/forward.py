"""What the models say about padded rollouts: the only functions, with the sampler, that call a model.

A policy is any causal language model that is called like those of Hugging Face. A critic is any module called with
``input_ids``, and ``position_ids`` where rows are packed, that returns one value per position, (G, L). Padding stands on the
right, where no real token sees it, so neither gets a mask. Neither is put into train or eval mode here:
dropout must be off, or the ratio of the first minibatch is not 1.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppo_core.batch import PaddedBatch
from ppo_core.errors import ConfigError, ShapeError
from ppo_core.heads import HeadCritic, LinearHead, linear_head
from ppo_core.logprobs import at_least_float32, entropy, gather_logprobs, linear_logprobs
from ppo_core.packing import micro_batches, pack_rows
from ppo_core.precision import InPrecision, device_of
from ppo_core.shapes import Float

# So many pairs of tokens cost in attention what one token costs elsewhere: measured for a model of width 384 on a CPU.
_PAIRS_TO_A_TOKEN = 1500
# Lines are tried up to so many times as wide as the longest row; in fewer widths where there are more rows to place.
_WIDEST = 5
_FEWEST_WIDTHS, _MOST_WIDTHS, _ROWS_TO_PLACE = 6, 55, 2048


def forward_groups(models: Sequence[nn.Module], lengths: Tensor, token_budget: int) -> list[list[Tensor]]:
    """Rows for one forward pass after another, each pass a list of packed rows for ``RolloutBatch.padded``.

    No pass has more tokens, padding included, than ``token_budget``, unless a single row has. Where all models can tell
    packed rows apart, rows are packed, and next to nothing is padding; else rows of like length share a pass.
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
    # Few rows fill packed rows badly, unless their width is chosen for them; many fill any.
    widest = min(together, _WIDEST * longest)
    steps = max(_FEWEST_WIDTHS, min(_MOST_WIDTHS, _ROWS_TO_PLACE // len(own)))
    widths = {min(token_budget, round(longest * (widest / longest) ** (step / steps))) for step in range(steps + 1)}
    packed_rows = min((pack_rows(own, width) for width in sorted(widths)), key=lambda packed: _price(own, packed))
    sizes = torch.tensor([sum(own[row] for row in packed_row) for packed_row in packed_rows])
    groups = micro_batches(sizes, token_budget, group_cost=512)
    return [[torch.tensor(packed_rows[i]) for i in group.tolist()] for group in groups]


def _price(lengths: list[int], packed_rows: list[list[int]]) -> float:
    """What a forward pass over packed rows costs, in tokens: padding counts, and attention looks at all pairs of each."""
    width = max(sum(lengths[row] for row in packed_row) for packed_row in packed_rows)
    return len(packed_rows) * width * (1 + width / _PAIRS_TO_A_TOKEN)


_can_pack: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def can_pack(model: nn.Module) -> bool:
    """Whether a model takes rows that stand on one packed row for separate ones when their positions say so; tried once.

    By hidden states where a model has them: a head may say nothing of what they say, as a critic's new one, and one that is
    trained later finds them already told apart or mixed.
    """
    inner = model.model if isinstance(model, InPrecision) else model
    if inner not in _can_pack:
        with torch.no_grad(), model.opened() if isinstance(model, InPrecision) else nullcontext():
            _can_pack[inner] = _tells_rows_apart(inner)
    return _can_pack[inner]


def _tells_rows_apart(model: nn.Module) -> bool:
    body: Any = model.body if isinstance(model, HeadCritic) else getattr(model, "base_model", model)
    # A critic is told nothing of a cache.
    options = {"use_cache": False} if body is not model or hasattr(model, "get_output_embeddings") else {}
    first, second = torch.tensor([[0, 1, 2]]), torch.tensor([[2, 1]])

    def say(*rows: Tensor, **positions: Tensor) -> Tensor:
        """Of the second row, the last one."""
        given = {name: x.to(device_of(model)) for name, x in {"input_ids": torch.cat(rows, dim=1), **positions}.items()}
        said = body(**given, **options)
        told = said if isinstance(said, Tensor) else getattr(said, "last_hidden_state", None)
        return at_least_float32(said.logits if told is None else told)[:, -second.shape[1] :]

    try:
        alone, packed, as_one = (
            say(second),
            say(first, second, position_ids=torch.tensor([[0, 1, 2, 0, 1]])),
            say(first, second, position_ids=torch.arange(5)[None]),
        )
    except TypeError:
        # One that takes no positions.
        return False
    # Rounding is far less than what the row before does to one that sees it, and more than nothing: tokens of all rows may
    # share a product, as those do that go to one expert. Where rows are mixed, a third of it and more was seen.
    return _largest(packed - alone) <= 0.05 * _largest(as_one - alone)


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def token_logits(model: nn.Module, padded: PaddedBatch, *, temperature: float) -> Float[Tensor, "N V"]:
    """Logits, divided by ``temperature``, that predict the N response tokens, row by row; float32 or wider.

    Real tokens are picked before any maths: padding costs nothing and cannot put NaN into the gradient.
    """
    logits = model(input_ids=padded.input_ids, **_positions(padded), use_cache=False).logits
    return at_least_float32(logits[padded.predicts_response]) / temperature


@overload
def token_logprobs(
    model: nn.Module, padded: PaddedBatch, *, temperature: float, with_entropy: Literal[False] = False
) -> Tensor: ...


@overload
def token_logprobs(
    model: nn.Module, padded: PaddedBatch, *, temperature: float, with_entropy: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def token_logprobs(
    model: nn.Module, padded: PaddedBatch, *, temperature: float, with_entropy: bool = False
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
    policy: nn.Module, critic: nn.Module, padded: PaddedBatch, *, temperature: float
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
    return head.body(input_ids=padded.input_ids, **_positions(padded), use_cache=False).last_hidden_state


def _of_hidden_states(
    hidden: Tensor, head: LinearHead, padded: PaddedBatch, *, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the response tokens, and entropies if asked for."""
    given = hidden[padded.predicts_response], head.weight, padded.response_ids
    settings: dict[str, Any] = {"bias": head.bias, "temperature": temperature, "dtype": head.dtype}
    if with_entropy:
        return linear_logprobs(*given, with_entropy=True, **settings)
    return linear_logprobs(*given, **settings), None


def response_logprobs(model: nn.Module, padded: PaddedBatch, *, temperature: float) -> Float[Tensor, "B T"]:
    """Log-probability of each response token, 0 outside the mask."""
    return spread(token_logprobs(model, padded, temperature=temperature), padded.response_mask)


def response_values(critic: Callable[..., Tensor], padded: PaddedBatch) -> Float[Tensor, "B T"]:
    """``values[t]`` is the critic at the position that predicts response token ``t``; 0 outside the mask."""
    return response_and_final_values(critic, padded)[0]


def response_and_final_values(
    critic: Callable[..., Tensor], padded: PaddedBatch
) -> tuple[Float[Tensor, "B T"], Float[Tensor, " B"]]:
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
