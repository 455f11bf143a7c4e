"""What readers of files and other people's functions yield, as the types that JSON has.

So the same rows are the same whatever they were stored in, and nothing of the machine that reads them (a time zone, an
object's address, the order of a set) becomes part of what a stage makes.
"""

import base64
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import shorten

MAX_BITS = 8192
"""Of a whole number: beyond some thousand digits Python writes none as text."""


Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a row that could not be read, the next move, and the kind of problem, for counting."""

    what: str
    move: str
    reason: str


class _NotPlainError(TypeError):
    """A value that JSON has no type for; the text says where it stands and what it is."""


def plain(value: Any, where: str) -> Any:
    """``value`` made of None, booleans, numbers, texts, bytes, lists and mappings with text keys.

    Times become ISO 8601, those with a zone in UTC; durations seconds; decimals numbers.

    Raises:
        _NotPlainError: there is something else in it.
    """
    kind = type(value)
    if kind is int and value.bit_length() > MAX_BITS:
        raise _NotPlainError(f"{where} holds a number of more than {MAX_BITS} bits")
    if value is None or kind in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, datetime.datetime):
        if value != value:  # pandas' missing time
            return None
        try:
            return (value if value.tzinfo is None else value.astimezone(datetime.UTC)).isoformat()
        except OverflowError:  # in UTC it is before the first year, or after the last
            return value.isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return math.nan if value.is_nan() else float(value)
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    base: Any
    for base in (str, int, float, bytes):  # numpy's and other people's kinds of them
        if isinstance(value, base):
            return base(value)
    if callable(getattr(value, "tolist", None)):  # arrays and scalars of numpy and torch
        return plain(value.tolist(), where)
    raise _NotPlainError(f"{where} holds a {kind.__name__}, which is no text, number, list or mapping")


def as_values(values: Any) -> Values | Problem:
    """A row of plain values, or what it holds that has no plain form."""
    try:
        return {str(name): plain(value, str(name)) for name, value in values.items()}
    except RecursionError:
        return Problem("a column nests too deep", "leave it out, or give it as text", "a column nests too deep")
    except _NotPlainError as error:
        return Problem(str(error), "leave the column out, or give it as text or numbers", str(error))


def json_object(line: bytes) -> Values | Problem:
    try:
        values = json.loads(line.decode("utf-8"), object_pairs_hook=once)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        text = shorten(line.decode("utf-8", errors="replace").strip())
        kind = "has a key twice" if isinstance(error, _KeyTwiceError) else "is not JSON"
        return Problem(f"the line {text} {kind} ({error})", "correct or remove it", f"the line {kind}")
    return an_object(values)


class _KeyTwiceError(ValueError):
    """An object says two things under one name."""


def once(pairs: list[tuple[str, Any]]) -> Values:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _KeyTwiceError(f"{twice!r} stands twice in one object")
    return found


def an_object(values: Any) -> Values | Problem:
    if isinstance(values, dict):
        return values
    return Problem(
        f"{shorten(values)} is not an object", 'write each row as {"column": value, ...}', "the row is not an object"
    )


def as_json(value: Any) -> str:
    """Plain values as one text, whatever order their keys came in; bytes as base64."""
    return json.dumps(value, sort_keys=True, default=lambda part: base64.b64encode(part).decode())


def content_key(value: Any) -> str:
    """The same text for the same content in any file format: CSV has numbers as text and lists as JSON, Parquet has nulls.

    It tells things apart and is never read, so that it may take ``"51"`` for 51.
    """
    return as_json(_as_text(value))


def _as_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        parts = {key: _as_text(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part not in (None, "")}
    if isinstance(value, list):
        return [_as_text(part) for part in value]
    if isinstance(value, str):
        if value.strip().lower() in ("true", "false"):
            return value.strip().lower()
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return value if isinstance(found, str) else _as_text(found)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value)) if value == value // 1 else repr(value)
    return value
