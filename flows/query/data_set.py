"""Rows of committed data sets over iterations, rounds and runs: found by a search, and read as far as it needs them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.query.columns import (
    Column,
    from_numpy,
    is_listed,
    to_numpy,
)
from flows.query.conditions import mask_of
from flows.query.grammar import Order, Query, parse
from flows.query.part import Part
from tasks.errors import ConfigError
from tasks.store import Table

if TYPE_CHECKING:
    import datasets
    import pandas as pd

SEED_OF_SAMPLES = 0
"""What draws rows at random where somebody asks for some."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Rows of one kind from any number of places, in their order; nothing is read before it is asked for."""

    parts: tuple[Part, ...]

    def search(self, text: str | Query = "", *, top: int | None = None) -> "Rows":
        """The rows that a search finds, sorted as it says, cut after ``top``.

        Raises:
            ConfigError: the search cannot be read, or names a column that no part has.
        """
        query = parse(text) if isinstance(text, str) else text
        return self.matching(query).sorted_by(query.order, top)

    def matching(self, query: Query) -> "Rows":
        """All rows that fulfil a search's conditions, one part after the other."""
        chosen = tuple((number, self._chosen(part, query)) for number, part in enumerate(self.parts))
        return Rows(data_set=self, chosen=chosen, order=None, found=sum(len(indices) for _, indices in chosen))

    @property
    def num_rows(self) -> int:
        return sum(part.table.num_rows for part in self.parts)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for part in self.parts for name in part.columns))

    def require_column(self, name: str) -> None:
        """Refuse a column that no part has."""
        if not any(part.column(name) is not None for part in self.parts):
            raise ConfigError(f"{name}: no such column; columns are {', '.join(self.columns)}")

    def _chosen(self, part: Part, query: Query) -> pa.Array:
        """The positions of the rows of a part that fulfil all conditions."""
        mask: Column | None = None
        for condition in query.conditions:
            # Words that name no column are looked for in the texts that there are.
            column = part.text if condition.column is None else partial(self.column, part)
            own = mask_of(condition, column, part.table.num_rows)
            mask = own if mask is None else pc.and_(mask, own)
        if mask is None:
            return from_numpy(np.arange(part.table.num_rows))
        return pc.indices_nonzero(mask)

    def column(self, part: Part, name: str) -> Column | None:
        """A part's column; None where only others have it."""
        found = part.column(name)
        if found is None:
            self.require_column(name)
        return found


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that a search found."""

    data_set: DataSet
    chosen: tuple[tuple[int, pa.Array], ...]
    """The number of a part, and positions in it."""
    order: tuple[np.ndarray, ...] | None
    """Where the rows of each stand among all; None where they stand one part after the other."""
    found: int
    """How many rows fulfil the search, those that were cut off too."""

    @property
    def columns(self) -> list[str]:
        """All columns of the parts that have rows here, lists among them."""
        parts = [self.data_set.parts[number] for number, _ in self.chosen] or list(self.data_set.parts[:1])
        return list(dict.fromkeys(name for part in parts for name in part.all_columns))

    @property
    def lists(self) -> set[str]:
        """Those that are lists, of one entry for each token or for each response."""
        return {name for part in self.data_set.parts for name in part.table.column_names if is_listed(part.table, name)}

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.chosen)

    def sorted_by(self, order: Sequence[Order], top: int | None = None) -> "Rows":
        """These rows, which stand one part after the other, in another order; the first ``top`` of them.

        An index of narrow columns is sorted, never the rows themselves.
        """
        if not order:
            return self.window(0, self.found if top is None else top)
        keys: dict[str, list[Column]] = {str(i): [] for i in range(len(order))}
        numbers, positions = [], []
        for number, indices in self.chosen:
            numbers.append(from_numpy(np.full(len(indices), number)))
            positions.append(indices.cast(pa.int64()))
            for i, own in enumerate(order):
                column = self.data_set.column(self.data_set.parts[number], own.column)
                keys[str(i)].append(pa.nulls(len(indices)) if column is None else column.take(indices))
        index = {name: _joined(columns) for name, columns in keys.items()}
        by = [(str(i), "descending" if own.largest_first else "ascending") for i, own in enumerate(order)]
        ranked = pc.sort_indices(pa.table(index), sort_keys=by)
        ranked = ranked if top is None else ranked[:top]
        number_of = to_numpy(_joined(numbers).take(ranked).combine_chunks())
        position_of = to_numpy(_joined(positions).take(ranked).combine_chunks())
        kept, order_of = [], []
        for number in dict.fromkeys(number_of.tolist()):
            (mine,) = (number_of == number).nonzero()
            kept.append((number, from_numpy(position_of[mine])))
            order_of.append(mine)
        return Rows(data_set=self.data_set, chosen=tuple(kept), order=tuple(order_of), found=self.found)

    def every(self, step: int) -> "Rows":
        """Each ``step``-th of these rows, which stand one part after the other."""
        assert self.order is None
        kept, before = [], 0
        for number, indices in self.chosen:
            own = indices[-before % step :: step] if step > 1 else indices
            before += len(indices)
            if len(own):
                kept.append((number, own))
        return replace(self, chosen=tuple(kept))

    def having(self, column: str, values: Sequence[str]) -> "Rows":
        """Those of these rows, which stand one part after the other, whose column has one of some values."""
        assert self.order is None
        wanted, kept = pa.array(values, pa.string()), []
        for number, indices in self.chosen:
            own = self.data_set.parts[number].column(column)
            if own is not None:
                found = indices.filter(pc.is_in(own.take(indices).combine_chunks(), value_set=wanted))
                kept += [(number, found)] if len(found) else []
        return replace(self, chosen=tuple(kept), found=sum(len(indices) for _, indices in kept))

    def drawn(self, number: int, seed: int) -> "Rows":
        """So many of these rows, which stand one part after the other, in their order: the same for the same seed."""
        if number >= self.found:
            return self
        positions = np.random.default_rng(seed).choice(self.found, size=number, replace=False)
        return replace(self.taken(np.sort(positions).tolist()), order=None)

    def taken(self, positions: Sequence[int]) -> "Rows":
        """Some of these rows, which stand one part after the other, by where they stand, in the order of ``positions``."""
        assert self.order is None
        wanted = np.asarray(positions, dtype=np.int64)
        kept, order, before = [], [], 0
        for number, indices in self.chosen:
            (own,) = ((wanted >= before) & (wanted < before + len(indices))).nonzero()
            if len(own):
                kept.append((number, indices.take(from_numpy(wanted[own] - before))))
                order.append(own)
            before += len(indices)
        return replace(self, chosen=tuple(kept), order=tuple(order))

    def window(self, start: int, stop: int) -> "Rows":
        """Some of these rows, by where they stand among all."""
        kept: list[tuple[int, pa.Array]] = []
        order: list[np.ndarray] = []
        before = 0
        for i, (number, indices) in enumerate(self.chosen):
            standing = np.arange(before, before + len(indices)) if self.order is None else self.order[i]
            (own,) = ((standing >= start) & (standing < stop)).nonzero()
            before += len(indices)
            if len(own):
                kept.append((number, indices.take(from_numpy(own))))
                order.append(standing[own] - start)
        is_sorted = self.order is not None
        return replace(self, chosen=tuple(kept), order=tuple(order) if is_sorted else None)

    def table(self, columns: Sequence[str] | None = None) -> Table:
        """The rows with all their columns, or with those named; null where a part has none."""
        tables = [self.data_set.parts[number].rows(indices, columns) for number, indices in self.chosen]
        if not tables:
            return pa.table({})
        whole = pa.concat_tables(tables, promote_options="permissive")
        if self.order is None:
            return whole
        return whole.take(from_numpy(np.argsort(np.concatenate(self.order))))

    def dicts(self, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows as plain values."""
        rows: list[dict[str, Any]] = self.table(columns).to_pylist()
        return rows

    def to_arrow(self) -> Table:
        """As ``table()`` gives it, which ``polars.from_arrow`` takes too."""
        return self.table()

    def to_pandas(self) -> "pd.DataFrame":
        return self.table().to_pandas()

    def to_dataset(self) -> "datasets.Dataset":
        """As a data set of ``datasets``, in memory."""
        from datasets import Dataset

        return Dataset(self.table())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.dicts())


def _joined(columns: Sequence[Column]) -> pa.ChunkedArray:
    """Columns of one kind, one below the other; numbers of several widths as the widest."""
    return pa.concat_tables([pa.table({"x": column}) for column in columns], promote_options="permissive").column("x")
