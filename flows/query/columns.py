"""The columns of a data set as a search sees them: those that are stored, and those that follow from them."""

import json
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.store import Table

Column: TypeAlias = pa.Array | pa.ChunkedArray
"""Whole or in chunks."""
DERIVED: Mapping[str, tuple[str, ...]] = {"length": ("response_token_ids",), "kl_sum": ("logprobs", "ref_logprobs")}
"""Columns of each response, and the lists that they follow from: tokens, and the sampled estimate of the KL in nats."""


def is_listed(table: Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def column_names(table: Table) -> list[str]:
    """What a search may name: stored columns that are no lists, and derived ones."""
    stored = [name for name in table.column_names if not is_listed(table, name)]
    return [*stored, *(name for name, needs in DERIVED.items() if set(needs) <= set(table.column_names))]


def column_of(table: Table, name: str) -> Column | None:
    """A column by its name; one of the data's own, which are stored together as JSON, too; None where there is none."""
    if name == "length" and set(DERIVED["length"]) <= set(table.column_names):
        return pc.list_value_length(table.column("response_token_ids"))
    if name == "kl_sum" and set(DERIVED["kl_sum"]) <= set(table.column_names):
        own, reference = (sums(table.column(part)) for part in DERIVED["kl_sum"])
        return from_numpy(own - reference)
    if name in table.column_names:
        stored = table.column(name)
        if not is_listed(table, name):
            return stored
        # The responses of a preference, as one text.
        return pc.binary_join(stored, "\n") if pa.types.is_string(stored.type.value_type) else None
    return own_column(table, name)


def own_column(table: Table, name: str) -> Column | None:
    """A column of the user's data; numbers, or texts where not all of it are numbers."""
    if "extra" not in table.column_names:
        return None
    rows = [json.loads(text or "{}") for text in table.column("extra").to_pylist()]
    if not any(name in row for row in rows):
        return None
    values = [row.get(name) for row in rows]
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return pa.array(values, type=pa.float64())
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(texts, type=pa.string())


def own_names(table: Table) -> list[str]:
    """The user's own columns, as the first row has them."""
    if "extra" not in table.column_names or table.num_rows == 0:
        return []
    return list(json.loads(table.column("extra")[0].as_py() or "{}"))


def from_numpy(values: np.ndarray) -> pa.Array:
    """An array of Arrow over the same numbers. ``pyarrow.array`` would import pandas, which takes a fifth of a second."""
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def scalar(value: str | bool | float, kind: pa.DataType | None = None) -> pa.Scalar:
    """One value of Arrow, by default of the type that fits it, which ``pyarrow.scalar`` would import pandas for."""
    if isinstance(value, str):
        text = value.encode()
        own = pa.Array.from_buffers(
            pa.binary(), 1, [None, pa.py_buffer(np.array([0, len(text)], np.int32)), pa.py_buffer(text)]
        )
        return own.cast(pa.string())[0]
    plain = from_numpy(np.array([value], np.uint8 if isinstance(value, bool) else None))
    own = plain.cast(pa.bool_()) if isinstance(value, bool) else plain
    return own[0] if kind is None else own.cast(kind)[0]


def to_numpy(values: pa.Array) -> np.ndarray:
    """Numbers of an array of Arrow, without the import of pandas that its own ``to_numpy`` begins with; NaN for null."""
    if values.null_count:
        converted: np.ndarray = values.to_numpy(zero_copy_only=False)
        return converted
    return np.from_dlpack(values)


def rows_at(table: Table, indices: pa.Array) -> Table:
    """The rows at these positions. Of a memory-mapped table only the batches that hold them are read: Arrow's own ``take``
    first looks through all of them."""
    batches = table.to_batches()
    if len(batches) < 2:
        return table.take(indices)
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    positions = to_numpy(indices.cast(pa.int64()))
    holders = np.searchsorted(starts, positions, side="right") - 1
    by_holder = np.argsort(holders, kind="stable")
    groups = np.split(by_holder, np.flatnonzero(np.diff(holders[by_holder])) + 1) if len(positions) else []
    found = [batches[holders[own[0]]].take(from_numpy(positions[own] - starts[holders[own[0]]])) for own in groups]
    whole = pa.Table.from_batches(found, schema=table.schema)
    is_in_order = bool((by_holder[1:] > by_holder[:-1]).all())
    return whole if is_in_order else whole.take(from_numpy(np.argsort(by_holder)))


def sums(lists: Column) -> np.ndarray:
    """(B,) the sum of each row's list, in double precision."""
    chunks = lists.chunks if isinstance(lists, pa.ChunkedArray) else [lists]
    return np.concatenate([_sums(chunk) for chunk in chunks]) if chunks else np.zeros(0)


def _sums(lists: pa.ListArray) -> np.ndarray:
    offsets = to_numpy(lists.offsets)
    values = to_numpy(lists.values)[offsets[0] : offsets[-1]]
    totals = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return totals[offsets[1:] - offsets[0]] - totals[offsets[:-1] - offsets[0]]


Lookup = Callable[[str], Column | None]
