"""What sets one configuration apart from another, or from the defaults."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.config import RunConfig, dump
from tasks.config import Json, completed, decided

MISSING = "–"
"""In the place of a value where the one configuration has no such setting, or a setting no default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting that differs, by the dotted name that ``--set`` takes."""

    name: str
    a: Json
    b: Json

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def differing_settings(a: RunConfig, b: RunConfig) -> list[Setting]:
    """The settings in which two configurations differ, defaults filled in."""
    left, right = dict(leaves(dump(a))), dict(leaves(dump(b)))
    names = dict.fromkeys([*left, *right])
    settings = [Setting(name=name, a=left.get(name, MISSING), b=right.get(name, MISSING)) for name in names]
    return [setting for setting in settings if setting.a != setting.b]


def chosen_settings(config: RunConfig) -> list[Setting]:
    """The settings of a configuration that are not the defaults: ``a`` is the default, ``b`` what was chosen."""
    own = decided(dump(config), RunConfig)
    return [Setting(name=name, a=_default(own, name.split(".")), b=value) for name, value in leaves(own)]


def leaves(value: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """``a.b.0.c`` and the value of each plain value of a document."""
    items: Iterable[tuple[str | int, Json]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    if not items:
        yield path, value
        return
    for key, inner in items:
        yield from leaves(inner, f"{path}.{key}" if path else str(key))


def _default(own: Mapping[str, Any], path: list[str]) -> Json:
    """What the setting of a path would be, had the configuration not said it."""
    found: Json = completed(_without(own, path), RunConfig)
    for name in path:
        if isinstance(found, list):
            found = found[int(name)] if int(name) < len(found) else MISSING
        else:
            found = found.get(name, MISSING) if isinstance(found, Mapping) else MISSING
    return found


def _without(value: Any, path: list[str]) -> Any:
    """A copy of nested mappings and lists without the entry of a path; a list of plain values goes whole."""
    first, *rest = path
    if isinstance(value, list):
        return [_without(item, rest) if str(i) == first else item for i, item in enumerate(value)]
    is_last = not rest or not isinstance(value[first], Mapping | list) or _is_plain(value[first])
    if is_last:
        return {name: item for name, item in value.items() if name != first}
    return {name: _without(item, rest) if name == first else item for name, item in value.items()}


def _is_plain(value: Json) -> bool:
    return isinstance(value, list) and not any(isinstance(item, Mapping) for item in value)
