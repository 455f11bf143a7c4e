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
from typing import Any

MAX_BITS = 8192
"""Of a whole number: beyond some thousand digits Python writes none as text."""


class NotPlainError(TypeError):
    """A value that JSON has no type for; the text says where it stands and what it is."""


def plain(value: Any, where: str) -> Any:
    """``value`` made of None, booleans, numbers, texts, bytes, lists and mappings with text keys.

    Times become ISO 8601, those with a zone in UTC; durations seconds; decimals numbers.

    Raises:
        NotPlainError: there is something else in it.
    """
    kind = type(value)
    if kind is int and value.bit_length() > MAX_BITS:
        raise NotPlainError(f"{where} holds a number of more than {MAX_BITS} bits")
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
    raise NotPlainError(f"{where} holds a {kind.__name__}, which is no text, number, list or mapping")


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
