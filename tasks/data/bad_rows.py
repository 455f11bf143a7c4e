"""Rows that cannot be used: told all at once with their number, or left out and counted, as ``data.on_bad_row`` says."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tasks.errors import DataError, shorten

MAX_TOLD = 5
"""Bad rows, and reasons, that a message spells out."""
PLACE = re.compile(r"(?:.*?[/\\])?(?P<file>[^/\\]*?), row (?P<row>\d+)(?=: |$)")
"""The place of a row, at the beginning of what is said of it."""


class BadRow(DataError):
    """One row that cannot be used; ``reason`` says why without what is the row's own, so that rows can be counted."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it was read, under our column names."""

    place: str
    """``FILE, row 17``: from 1; in JSON Lines the line's number, in CSV the record's without the header."""
    values: dict[str, Any]
    """Plain values: None, booleans, numbers, texts, bytes, lists, and mappings with text keys."""
    unread: BadRow | None = None
    """Why there are no values."""
    source: int = 0
    """Which of the sources of its kind it is from."""


@dataclass(slots=True)
class Findings:
    """What reading rows brought to light beside records."""

    num_rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    """The first few bad rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Bad rows by what is wrong with them."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Sound rows that hold nothing to learn from."""
    numbers: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Of all these rows, by what is wrong with them and by file."""
    splits: Counter[str] = field(default_factory=Counter)
    """Pairs of transcripts by the template by whose opening they were split."""

    @contextmanager
    def row(self) -> Iterator[None]:
        """Count one row, and note it where the block finds it bad."""
        self.num_rows += 1
        try:
            yield
        except BadRow as bad:
            self.add(bad)

    def add(self, bad: BadRow) -> None:
        """Note a bad row that was counted."""
        self.reasons[bad.reason] += 1
        self._note(bad.reason, str(bad))
        if len(self.bad) < MAX_TOLD:
            self.bad.append(bad)

    def leave_out(self, place: str, reason: str) -> None:
        """Note a sound row that holds nothing to learn from."""
        self.left_out[reason] += 1
        self._note(reason, place)

    def _note(self, reason: str, text: str) -> None:
        """The number of the row with whose place the text begins."""
        if place := PLACE.match(text):
            self.numbers.setdefault(reason, {}).setdefault(place["file"], []).append(int(place["row"]))

    def as_dict(self) -> dict[str, Any]:
        """For a file beside the data. A row is named by file and number: where the file lies changes nothing."""
        return {
            "rows": self.num_rows,
            "bad": dict(sorted(self.reasons.items())),
            "left_out": dict(sorted(self.left_out.items())),
            "row_numbers": {
                reason: {file: in_ranges(numbers) for file, numbers in sorted(files.items())}
                for reason, files in sorted(self.numbers.items())
            },
            "split": dict(sorted(self.splits.items())),
        }

    @property
    def num_bad(self) -> int:
        return self.reasons.total()

    def require_no_bad_rows(self) -> None:
        """Refuse the data for its bad rows, whose first few are spelled out.

        Raises:
            DataError: there is one.
        """
        if not self.num_bad:
            return
        first, *more = self.bad
        drop = "" if self.num_bad == self.num_rows else ", or set data.on_bad_row: drop to leave such rows out"
        if not more:
            raise DataError(f"{first}{drop}") from first
        told = " -- ".join(str(bad) for bad in self.bad)
        unsaid = self.num_bad - len(self.bad)
        raise DataError(
            f"{self.num_bad:,} of {self.num_rows:,} rows cannot be used ({in_words(self.reasons)}): {told}"
            f"{f' -- and {unsaid:,} more' if unsaid else ''}; correct or remove them{drop}"
        ) from first


def in_ranges(numbers: Iterable[int]) -> str:
    """Numbers of rows as people write them: ``3, 7-12``."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def in_words(counts: Counter[str]) -> str:
    """Counts by reason, the most frequent ones first."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    words = [f"{count:,}: {reason}" for reason, count in ordered[:MAX_TOLD]]
    if len(ordered) > MAX_TOLD:
        words.append(f"{sum(count for _, count in ordered[MAX_TOLD:]):,}: {len(ordered) - MAX_TOLD} other reasons")
    return "; ".join(words)


def refuse(row: Row, name: str, value: Any, problem: str, move: str) -> NoReturn:
    """Say what is wrong with a value of a row, and what to do.

    Raises:
        BadRow: always.
    """
    # Positions, counts and quoted values are the row's own.
    reason = re.sub(r"'[^']*'|\b\d[\d.,]*", "…", re.sub(r"\[\d+\]", "", f"{name} {problem}"))
    raise BadRow(f"{row.place}: {name} {problem}: {shorten(value)}; {move}", reason=reason)
