"""How the values of a column lie over the rows that a search found, and over all rows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.query.data_set import DataSet, Rows

NUM_BINS = 24
MOST_VALUES = 12
"""Of a column with more values than that, none is counted: they tell nothing apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Counts in bins of one width from ``low`` to ``high``: of all rows, and of those found."""

    low: float
    high: float
    all: list[int]
    found: list[int]


def distribution(rows: Rows, column: str) -> Distribution | None:
    """Of a column of numbers; None where there is no finite value."""
    everything, found = [], []
    chosen = dict(rows.chosen)
    for number, part in enumerate(rows.data_set.parts):
        values = part.column(column)
        if values is None:
            continue
        numbers = _numbers(values)
        everything.append(numbers)
        if number in chosen:
            indices = chosen[number].to_numpy()
            found.append(numbers if len(indices) == len(numbers) else numbers[indices])
    values = _finite(everything)
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    return Distribution(low=low, high=high, all=_counts(values, low, high), found=_counts(_finite(found), low, high))


def _numbers(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    numbers: np.ndarray = whole.to_numpy(zero_copy_only=False)
    return numbers


def _finite(parts: list[np.ndarray]) -> np.ndarray:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return values[np.isfinite(values)]


def _counts(values: np.ndarray, low: float, high: float) -> list[int]:
    """Faster than ``numpy.histogram``, whose bins need not have one width."""
    if high == low:
        return [len(values), *[0] * (NUM_BINS - 1)]
    bins = np.minimum(((values - low) * (NUM_BINS / (high - low))).astype(np.int64), NUM_BINS - 1)
    counts: list[int] = np.bincount(bins, minlength=NUM_BINS).tolist()
    return counts


def value_counts(rows: Rows, column: str) -> list[tuple[str, int]] | None:
    """Each value of a column with the number of rows found that have it, the most frequent first; None where there are
    more than tell anything."""
    counts: dict[str, int] = {}
    for number, indices in rows.chosen:
        part = rows.data_set.parts[number]
        values = part.column(column)
        if values is None:
            continue
        own = values if len(indices) == part.table.num_rows else values.take(indices)
        for entry in pc.value_counts(own):
            value = entry["values"].as_py()
            if value is not None:
                counts[str(value)] = counts.get(str(value), 0) + entry["counts"].as_py()
        if len(counts) > MOST_VALUES:
            return None
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def is_numeric(data_set: DataSet, column: str) -> bool:
    """Whether a column holds numbers, in the first part that has it."""
    for part in data_set.parts:
        values = part.column(column)
        if values is not None:
            return bool(pa.types.is_floating(values.type) or pa.types.is_integer(values.type))
    return False
