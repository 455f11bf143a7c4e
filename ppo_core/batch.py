"""Rows of different length: ragged where they are kept, padded only where a model reads them.

A row is its prompt and its response without a gap, padded on the right: a causal model needs no mask for that, since no
token sees what stands after it, and a batch is no wider than its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor

from ppo_core.errors import ShapeError

Side = Literal["left", "right"]

AS_FEW_AS_POSSIBLE = 2**40
"""A ``group_cost`` that outweighs all padding."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different length in one flat tensor: row ``i`` is ``values[offsets[i] : offsets[i + 1]]``."""

    values: Tensor
    """(N,) all rows, one after the other."""

    offsets: Tensor
    """(B + 1,) int64, from 0 to N."""

    def __post_init__(self) -> None:
        if self.values.dim() != 1 or self.offsets.dim() != 1 or self.offsets.dtype != torch.int64:
            raise ShapeError(
                f"values is {tuple(self.values.shape)} and offsets is {tuple(self.offsets.shape)} of "
                f"{self.offsets.dtype}; a Ragged takes flat values and flat int64 offsets"
            )
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ShapeError(f"offsets must run from 0 to {len(self.values)}, the number of values")
        if (self.lengths < 0).any():
            raise ShapeError(f"offsets fall after row {int((self.lengths < 0).nonzero()[0])}; they must not decrease")

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int | float] | Tensor], dtype: torch.dtype) -> Ragged:
        tensors = [torch.as_tensor(row, dtype=dtype) for row in rows]
        values = torch.cat(tensors) if tensors else torch.empty(0, dtype=dtype)
        return cls(values, _offsets(torch.tensor([len(row) for row in tensors], dtype=torch.int64)))

    @classmethod
    def from_padded(cls, x: Tensor, mask: Tensor) -> Ragged:
        """The entries of ``x`` (B, T) where ``mask`` is true, row by row, wherever in the row they stand."""
        if x.shape != mask.shape:
            raise ShapeError(f"mask is {tuple(mask.shape)} but x is {tuple(x.shape)}; they need the same shape")
        return cls(x[mask], _offsets(mask.sum(dim=1)))

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts, one part after the other."""
        values = torch.cat([part.values for part in parts])
        return cls(values, _offsets(torch.cat([part.lengths for part in parts])))

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> Tensor:
        # range() gives negative and out-of-range numbers the meaning they have for a list.
        i = range(len(self))[i]
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def select(self, rows: Tensor) -> Ragged:
        """These rows (indices or a boolean mask), in this order."""
        entries, offsets = self.entries_of(rows)
        return Ragged(self.values[entries], offsets)

    def entries_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where in ``values`` the entries of these rows stand, one row after the other, and their offsets."""
        offsets = _offsets(self.lengths[rows])
        positions = torch.arange(int(offsets[-1]))
        # The row of an entry is the first that ends beyond it. (repeat_interleave would say the same, but wakes all
        # threads even for a handful of entries.)
        row_of_entry = torch.searchsorted(offsets[1:], positions, right=True)
        return positions + (self.offsets[:-1][rows] - offsets[:-1])[row_of_entry], offsets

    def mask(self, *, side: Side = "right", width: int | None = None) -> Tensor:
        """(B, W) bool: where the entries stand after padding on ``side``. W is the longest row unless given."""
        lengths = self.lengths[:, None]
        longest = int(lengths.max()) if len(self) else 0
        width = longest if width is None else width
        if width < longest:
            raise ShapeError(f"width={width} does not hold the longest row of {longest}; widen it or cut the rows")
        columns = torch.arange(width)
        return columns < lengths if side == "right" else columns >= width - lengths

    def padded(self, *, fill: int | float, side: Side = "right", width: int | None = None) -> Tensor:
        """(B, W): every row filled up on ``side``."""
        mask = self.mask(side=side, width=width)
        x = torch.full(mask.shape, fill, dtype=self.values.dtype)
        x[mask] = self.values
        return x


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch:
    """Responses sampled for prompts, and columns with one number per response token. Lives on the CPU."""

    prompts: Ragged
    """Token ids, int64."""

    responses: Ragged
    """Token ids, int64; the EOS token is included where one was sampled."""

    stopped: Tensor
    """(B,) bool: true where the response ended by itself, false where it was cut off by length."""

    token_columns: dict[str, Tensor] = field(default_factory=dict)
    """Each (N,), aligned with ``responses.values``: logprobs, ref_logprobs, values, advantages, returns, ..."""

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.responses) == len(self.stopped):
            raise ShapeError(
                f"{len(self.prompts)} prompts, {len(self.responses)} responses and {len(self.stopped)} entries of "
                "stopped; each row needs one of each"
            )
        for name, ragged in (("prompt", self.prompts), ("response", self.responses)):
            if (ragged.lengths == 0).any():
                row = int((ragged.lengths == 0).nonzero()[0])
                raise ShapeError(f"the {name} of row {row} is empty; drop the row before building a RolloutBatch")
        for name, column in self.token_columns.items():
            if column.shape != self.responses.values.shape:
                raise ShapeError(
                    f"column {name!r} is {tuple(column.shape)} but there are {len(self.responses.values)} response "
                    "tokens; give one number per response token"
                )

    @classmethod
    def concatenate(cls, batches: Sequence[RolloutBatch]) -> RolloutBatch:
        """The rows of all batches, one batch after the other. All must have the same columns."""
        names = batches[0].token_columns.keys()
        for number, batch in enumerate(batches):
            if batch.token_columns.keys() != names:
                raise ShapeError(
                    f"batch {number} has columns {sorted(batch.token_columns)} but batch 0 has {sorted(names)}; "
                    "add or drop columns first"
                )
        return cls(
            prompts=Ragged.concatenate([batch.prompts for batch in batches]),
            responses=Ragged.concatenate([batch.responses for batch in batches]),
            stopped=torch.cat([batch.stopped for batch in batches]),
            token_columns={name: torch.cat([batch.token_columns[name] for batch in batches]) for name in names},
        )

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens of prompt and response together."""
        return self.prompts.lengths + self.responses.lengths

    def column(self, name: str) -> Ragged:
        """One token column, cut into rows."""
        return Ragged(self.token_columns[name], self.responses.offsets)

    def with_columns(self, **columns: Tensor) -> RolloutBatch:
        """The same rows with these token columns added or replaced."""
        return replace(self, token_columns={**self.token_columns, **columns})

    def select(self, rows: Tensor) -> RolloutBatch:
        """These rows (indices or a boolean mask), in this order."""
        entries, offsets = self.responses.entries_of(rows)
        return RolloutBatch(
            prompts=self.prompts.select(rows),
            responses=Ragged(self.responses.values[entries], offsets),
            stopped=self.stopped[rows],
            token_columns={name: column[entries] for name, column in self.token_columns.items()},
        )

    def padded(
        self, packed_rows: Sequence[Tensor] | None = None, device: torch.device | str | None = None
    ) -> PaddedBatch:
        """Rows as a model reads them: those of each packed row end to end; by default each row is one of its own.

        The columns of the result, and whatever else has a row each, follow the order of the packed rows.
        """
        if packed_rows is None:
            packed_rows = list(torch.arange(len(self)).split(1))
        chosen = self.select(torch.cat(list(packed_rows))) if packed_rows else self
        rows_of_packed_row = torch.tensor([len(packed_row) for packed_row in packed_rows])
        first_row = _offsets(rows_of_packed_row)
        offsets = _offsets(chosen.lengths)
        starts_of_packed_row = offsets[first_row]
        width = int(starts_of_packed_row.diff().max()) if packed_rows else 0
        # Of each token: its row, its number in the row, and where it stands in the grid of packed rows.
        row = torch.searchsorted(offsets[1:], torch.arange(int(offsets[-1])), right=True)
        within = torch.arange(int(offsets[-1])) - offsets[row]
        line_of_row = torch.searchsorted(first_row[1:], torch.arange(len(chosen)), right=True)
        start = line_of_row * width + offsets[:-1] - starts_of_packed_row[line_of_row]
        position = start[row] + within

        is_prompt = within < chosen.prompts.lengths[row]
        tokens = torch.empty_like(within)
        tokens[is_prompt], tokens[~is_prompt] = chosen.prompts.values, chosen.responses.values
        grid = (len(packed_rows), width)
        input_ids, position_ids = torch.zeros(grid, dtype=torch.int64), torch.zeros(grid, dtype=torch.int64)
        predicts_response = torch.zeros(grid, dtype=torch.bool)
        input_ids.view(-1)[position] = tokens
        position_ids.view(-1)[position] = within
        predicts_response.view(-1)[position] = (within >= chosen.prompts.lengths[row] - 1) & (
            within < chosen.lengths[row] - 1
        )
        padded = PaddedBatch(
            input_ids=input_ids,
            position_ids=position_ids if len(packed_rows) < len(chosen) else None,
            predicts_response=predicts_response,
            last=start + chosen.lengths - 1,
            response_ids=chosen.responses.values,
            response_mask=chosen.responses.mask(),
            token_columns={name: chosen.column(name).padded(fill=0) for name in self.token_columns},
        )
        return padded if device is None else padded.to(device)


@dataclass(kw_only=True, eq=False)
class PaddedBatch:
    """B rows on G packed rows as a model reads them, L columns wide, and what is said of their responses, T columns wide."""

    input_ids: Tensor
    """(G, L) int64: on each packed row the prompt and response of a row, of the next one, and so on, then 0."""

    position_ids: Tensor | None
    """(G, L) int64: the number of tokens of the same row before each; None where every packed row has one row."""

    predicts_response: Tensor
    """(G, L) bool: the positions whose next token is one of a response; N of them."""

    last: Tensor
    """(B,) int64: where in the grid, counted packed row after packed row, each row's last token stands."""

    response_ids: Tensor
    """(N,) int64: the response tokens, row by row."""

    response_mask: Tensor
    """(B, T) bool."""

    token_columns: dict[str, Tensor]
    """Each (B, T), 0 outside ``response_mask``."""

    def to(self, device: torch.device | str) -> PaddedBatch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in moved.items()}
        moved["token_columns"] = {name: x.to(device) for name, x in self.token_columns.items()}
        return PaddedBatch(**moved)


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
