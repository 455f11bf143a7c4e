"""What MLflow is told, as it takes it: parameters, tables, times, in portions."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tasks.config import Json
from tasks.yaml_text import write_yaml

MAX_PARAM_LENGTH = 6000
"""Of one value, in MLflow's REST interface."""
Item = TypeVar("Item")


def flattened(value: Json, path: str = "") -> Iterator[tuple[str, str]]:
    """``a.b.0.c`` and text for each leaf of a configuration. A list of plain values is one leaf."""
    entries: Iterable[tuple[str, Json]] = ()
    if isinstance(value, Mapping) and all(re.fullmatch(r"[\w-]+", str(key)) for key in value):
        entries = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        entries = [(str(position), item) for position, item in enumerate(value)]
    if entries:
        for key, item in entries:
            yield from flattened(item, f"{path}.{key}" if path else key)
        return
    text = value if isinstance(value, str) else json.dumps(value)
    if text:
        yield path, text if len(text) <= MAX_PARAM_LENGTH else text[: MAX_PARAM_LENGTH - 1] + "…"


def config_text(config: Mapping[str, Any]) -> str:
    return write_yaml(dict(config))


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in the form that MLflow's pages show as a table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = [[finite(row.get(name)) for name in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False, allow_nan=False)


def finite(value: Json) -> Json:
    """The value, or None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
