"""Heads: that of a policy, which makes logits, and a critic's, which makes one number a position."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppo_core.logprobs import at_least_float32, linear_in_float32
from ppo_core.precision import PROBE_TOKENS, InPrecision, device_of, output_layer
from ppo_core.shapes import Float

_has_linear_head: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


@runtime_checkable
class HiddenStates(Protocol):
    """What the body of a language model returns."""

    last_hidden_state: Tensor
    """(G, L, D)."""


class HeadCritic(nn.Module):
    """A critic that is a head on a body which belongs to somebody else: ``values = head(body(...).last_hidden_state)``.

    Its parameters are those of the head alone, a linear layer with one output, which computes in float32.
    """

    def __init__(self, body: Callable[..., HiddenStates], head: nn.Linear) -> None:
        super().__init__()
        # In a tuple, out of the module's sight.
        self._body = (body,)
        self.head = head

    @property
    def body(self) -> Callable[..., HiddenStates]:
        return self._body[0]

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Float[Tensor, "G L"]:
        """One value per position."""
        positions = {} if position_ids is None else {"position_ids": position_ids}
        return self.values(self.body(input_ids=input_ids, **positions, use_cache=False).last_hidden_state)

    def values(self, hidden: Float[Tensor, "*S D"]) -> Float[Tensor, "*S"]:
        """Of hidden states of the body."""
        return linear_in_float32(self.head, hidden).squeeze(-1)


class TrunkCritic(HeadCritic):
    """A critic on the body of the policy that is trained beside it: one forward and one backward pass serve both."""

    def __init__(self, policy: Any, head: nn.Linear) -> None:
        super().__init__(policy.base_model, head)

    def head_alone(self) -> HeadCritic:
        """The same head over a body that passes no gradient on, for training that must leave the policy as it is."""

        def frozen(**inputs: Any) -> HiddenStates:
            with torch.no_grad():
                return self.body(**inputs)

        return HeadCritic(frozen, self.head)


def shares_trunk(critic: nn.Module | None) -> bool:
    """Whether a critic is a head on the policy's body."""
    return isinstance(critic.model if isinstance(critic, InPrecision) else critic, TrunkCritic)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A language model in two parts: ``logits = body(...).last_hidden_state @ weight.T + bias``."""

    body: Callable[..., HiddenStates]
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype | None
    """In which the product is computed; None for that of the hidden states, but at least float32."""


def linear_head(model: nn.Module) -> LinearHead | None:
    """The two parts of a model like those of Hugging Face; None for one that does more to its logits, or has no such parts.

    Whether the parts give the model's logits is tried once, on a few tokens.
    """
    inner = model.model if isinstance(model, InPrecision) else model
    head = output_layer(inner)
    body = getattr(inner, "base_model", inner)
    if not isinstance(head, nn.Linear) or body is inner:
        return None
    if inner not in _has_linear_head:
        with torch.no_grad(), model.opened() if isinstance(model, InPrecision) else nullcontext():
            ids = torch.arange(PROBE_TOKENS, device=device_of(inner))[None] % head.out_features
            logits = inner(input_ids=ids, use_cache=False).logits
            parts = head(body(input_ids=ids, use_cache=False).last_hidden_state)
            # Of the same product to the last bit; near 0 a softcap, say, is nearly none, and does more once it has learned.
            _has_linear_head[inner] = torch.equal(at_least_float32(parts), at_least_float32(logits))
    if not _has_linear_head[inner]:
        return None
    if not isinstance(model, InPrecision):
        return LinearHead(body, head.weight, head.bias, None)
    return LinearHead(InPrecision(body, model.dtype), head.weight, head.bias, model.head_dtype)
