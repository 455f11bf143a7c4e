"""Keys and values of a running batch in buffers that are as long as they will ever be, from which finished rows leave."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

# The kind of layer, among those of Hugging Face's caches, that appends each token to a copy of all before it.
_GROWING = "DynamicLayer"


@runtime_checkable
class GrowingLayer(Protocol):
    """A layer that has read something: (rows, heads, tokens, size) each, and its ways to append and to drop rows."""

    keys: Tensor
    values: Tensor
    update: Callable[..., tuple[Tensor, Tensor]]
    batch_select_indices: Callable[[Tensor], None]


class _Room:
    """Takes the place of a growing layer's own way to append and to drop rows: a new token is written where it belongs.

    The layer stays the library's object, since its masks are made by asking what kind of layer it is.
    """

    def __init__(self, layer: GrowingLayer, *, repeats: int, length: int) -> None:
        self._layer = layer
        self._buffers = [_with_room(x, repeats, length) for x in (layer.keys, layer.values)]
        self._show(len(layer.keys) * repeats, layer.keys.shape[-2])
        layer.update, layer.batch_select_indices = self.update, self.select

    def _show(self, num_rows: int, num_tokens: int) -> None:
        self._layer.keys, self._layer.values = (buffer[:num_rows, :, :num_tokens] for buffer in self._buffers)

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Take in what new tokens say; returns what all say, (rows, heads, tokens, size) each."""
        num_rows, before = len(keys), self._layer.keys.shape[-2]
        end = before + keys.shape[-2]
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:num_rows, :, before:end] = new
        self._show(num_rows, end)
        return self._layer.keys, self._layer.values

    def select(self, rows: Tensor) -> None:
        """Let all other rows leave."""
        num_tokens = self._layer.keys.shape[-2]
        for buffer, x in zip(self._buffers, (self._layer.keys, self._layer.values), strict=True):
            buffer[: len(rows), :, :num_tokens] = x.index_select(0, rows)
        self._show(len(rows), num_tokens)


def _with_room(x: Tensor, repeats: int, length: int) -> Tensor:
    """The rows of ``x``, (rows, heads, tokens, size), each repeated, in a buffer for ``length`` tokens."""
    rows, heads, num_tokens, size = x.shape
    buffer = x.new_empty(rows * repeats, heads, length, size)
    buffer[:, :, :num_tokens].view(rows, repeats, heads, num_tokens, size).copy_(x[:, None])
    return buffer


def prepare(cache: Any, *, repeats: int, length: int, has_padding: bool) -> None:
    """Give a cache that has read the prompts every row ``repeats`` times, and room for ``length`` tokens where it grows."""
    for layer in getattr(cache, "layers", [cache]):
        # The library otherwise asks the mask for every token whether it hides anything, and the device has to stop and say.
        layer.is_compileable = has_padding
        if type(layer).__name__ == _GROWING and layer.keys is not None and layer.keys.numel() > 0:
            _Room(layer, repeats=repeats, length=length)
        elif repeats > 1:
            layer.batch_repeat_interleave(repeats)


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Let all other rows leave a cache."""
    for layer in getattr(cache, "layers", [cache]):
        layer.batch_select_indices(rows)
