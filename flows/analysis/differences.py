"""What sets one configuration apart from another, or from the defaults."""

from collections.abc import Iterator, Mapping
from typing import Any

from flows.config import RunConfig, dump
from tasks.config import decided

MISSING = "–"


def differing_settings(a: RunConfig, b: RunConfig) -> list[tuple[str, Any, Any]]:
    """The settings in which two configurations differ, with both values, by their dotted names."""
    left, right = dict(leaves(dump(a))), dict(leaves(dump(b)))
    names = dict.fromkeys([*left, *right])
    pairs = [(name, left.get(name, MISSING), right.get(name, MISSING)) for name in names]
    return [(name, x, y) for name, x, y in pairs if x != y]


def chosen_settings(config: RunConfig) -> list[tuple[str, Any]]:
    """The settings of a configuration that are not the defaults, by their dotted names."""
    return list(leaves(decided(dump(config), RunConfig)))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """``a.b.0.c`` and the value of each plain value of a document."""
    items: Any = None
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    if not items:
        yield path, value
        return
    for key, inner in items:
        yield from leaves(inner, f"{path}.{key}" if path else str(key))
