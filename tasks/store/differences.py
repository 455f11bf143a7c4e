"""Where two columns differ first, and how much: by Arrow, without an object for each value."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Column: TypeAlias = pa.Array | pa.ChunkedArray
"""Whole or in chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDifference:
    """The first entry that differs, and what is known of all that do."""

    row: int
    position: int | None
    """In the row's list; None where the column has no lists."""
    stored: Any
    replayed: Any
    largest: float | None
    """Largest absolute difference; None where they are no numbers."""
    count: int


def column_difference(stored: Column | None, replayed: Column | None) -> ColumnDifference | None:
    """Compare row by row, and in lists entry by entry; what one side has not is null there. Null equals null, NaN NaN."""
    if stored is None and replayed is None:
        return None
    # A column that is not there has the other's type, and no rows.
    stored = replayed.slice(0, 0) if stored is None and replayed is not None else stored
    replayed = stored.slice(0, 0) if replayed is None and stored is not None else replayed
    both = entries_of(stored).join(
        entries_of(replayed), ["row", "position"], join_type="full outer", right_suffix="_again"
    )
    both = both.sort_by([("row", "ascending"), ("position", "ascending")])
    before, after = as_alike(both["value"], both["value_again"])
    differs = pc.invert(equal(before, after))
    count = pc.sum(differs).as_py() or 0
    if not count:
        return None
    first = pc.index(differs, True).as_py()
    has_lists = any(is_listed(side) for side in (stored, replayed))
    return ColumnDifference(
        row=both["row"][first].as_py(),
        position=both["position"][first].as_py() if has_lists else None,
        stored=before[first].as_py(),
        replayed=after[first].as_py(),
        largest=largest_distance(before.filter(differs), after.filter(differs)),
        count=count,
    )


def is_listed(column: Column) -> bool:
    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))


def entries_of(column: Column) -> pa.Table:
    """A row for each entry: of lists their items, with the row and the position that each stands at."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = pa.array(range(len(whole)), pa.int64())
    if not is_listed(whole):
        return pa.table({"row": rows, "position": pa.array([0] * len(whole), pa.int64()), "value": whole})
    row = pc.list_parent_indices(whole)
    lengths = pc.fill_null(pc.list_value_length(whole), 0)
    begins = pc.subtract(pc.cumulative_sum(lengths.cast(pa.int64())), lengths)
    value = pc.list_flatten(whole)
    position = pc.subtract(pa.array(range(len(value)), pa.int64()), begins.take(row))
    return pa.table({"row": row.cast(pa.int64()), "position": position, "value": value})


def as_alike(before: Column, after: Column) -> tuple[Column, Column]:
    """Both columns in a type that holds both."""
    if before.type == after.type:
        return before, after
    kind = pa.float64() if is_number(before) and is_number(after) else pa.string()
    return before.cast(kind), after.cast(kind)


def is_number(column: Column) -> bool:
    return bool(pa.types.is_floating(column.type) or pa.types.is_integer(column.type))


def equal(before: Column, after: Column) -> Column:
    same = pc.or_(pc.fill_null(pc.equal(before, after), False), pc.and_(pc.is_null(before), pc.is_null(after)))
    if pa.types.is_floating(before.type):
        both_nan = pc.and_(pc.fill_null(pc.is_nan(before), False), pc.fill_null(pc.is_nan(after), False))
        same = pc.or_(same, both_nan)
    return same


def largest_distance(before: Column, after: Column) -> float | None:
    if not is_number(before):
        return None
    found: float | None = pc.max(pc.abs(pc.subtract(before.cast(pa.float64()), after.cast(pa.float64())))).as_py()
    return found
