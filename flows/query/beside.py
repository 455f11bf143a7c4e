"""Where one row stands among those that a search found, and the rows beside it."""

from dataclasses import dataclass
from typing import Any

from flows.query.data_set import Part, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The place of a row, counted from 0, and what is named of the rows before and after it."""

    place: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def beside(rows: Rows, part: Part, index: int, columns: list[str]) -> Beside | None:
    """Of a row by its position in its part; None where it is none of these rows."""
    place = place_of(rows, part, index)
    if place is None:
        return None
    before, after = (rows.window(i, i + 1).dicts(columns) for i in (place - 1, place + 1))
    return Beside(place=place, before=before[0] if before else None, after=after[0] if after else None)


def place_of(rows: Rows, part: Part, index: int) -> int | None:
    """Where a row of a part stands among these."""
    start = 0
    for i, (number, indices) in enumerate(rows.chosen):
        if rows.data_set.parts[number].ref == part.ref:
            (own,) = (indices.to_numpy() == index).nonzero()
            if len(own):
                return start + int(own[0]) if rows.order is None else int(rows.order[i][own[0]])
        start += len(indices)
    return None
