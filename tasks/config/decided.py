"""What was decided of a configuration, and not only defaulted: a recipe holds no more, so that a release that adds a setting
leaves finished work finished."""

import dataclasses
import json
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Discriminator, Tag
from pydantic_core import PydanticUndefined, to_json

from tasks.config.base import Json
from tasks.config.execution import ExecutionConfig

PRECISION = ("dtype", "head_dtype")
"""The settings of ``ExecutionConfig`` that are part of a recipe, where a stage uses models."""
ORDER_OF_SUMS = ("shares",)
"""Those that are part of one where a stage trains."""


class _Field(NamedTuple):
    has_default: bool
    default: Json
    hint: Any


Change = Callable[[Mapping[str, Any], type], dict[str, Any]]


def decided(settings: Mapping[str, Any], config: type) -> dict[str, Any]:
    """``settings``, as JSON, without those that are their field's default, at any depth."""
    fields = _fields(config)
    found = {}
    for name, value in settings.items():
        field = fields.get(name)
        if field is None:
            found[name] = value
        elif not (field.has_default and value == field.default):
            found[name] = _changed(value, field.hint, decided)
    return found


def completed(settings: Mapping[str, Any], config: type) -> dict[str, Any]:
    """``settings``, as JSON, with the defaults of all fields that it leaves out: the inverse of ``decided``."""
    fields = _fields(config)
    found = {name: field.default for name, field in fields.items() if field.has_default}
    for name, value in settings.items():
        found[name] = _changed(value, fields[name].hint, completed) if name in fields else value
    return found


def decided_execution(execution: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Which of these settings of ``ExecutionConfig`` differ from the default."""
    defaults = _fields(ExecutionConfig)
    return {name: execution[name] for name in names if execution[name] != defaults[name].default}


def _changed(value: Json, hint: Any, change: Change) -> Json:
    """A field's value with each section in it changed; what may be of several classes stays whole, unless a discriminator
    tells of which it is."""
    if isinstance(value, list):
        items = [part for part in _alternatives(hint, value) if get_origin(part) in (list, tuple, abc.Sequence)]
        return [_changed(item, get_args(items[0])[0], change) for item in value] if len(items) == 1 else value
    if not isinstance(value, Mapping):
        return value
    sections = [part for part in _alternatives(hint, value) if _is_section(part)]
    mappings = [part for part in _alternatives(hint, value) if get_origin(part) in (dict, abc.Mapping)]
    if len(sections) + len(mappings) != 1:
        return value
    if sections:
        return change(value, sections[0])
    return {name: _changed(item, get_args(mappings[0])[1], change) for name, item in value.items()}


@cache
def _fields(config: type) -> dict[str, _Field]:
    hints = get_type_hints(config, include_extras=True)
    return {name: _Field(has, _json(default), hints[name]) for name, has, default in _defaults(config)}


def _defaults(config: type) -> Iterator[tuple[str, bool, Any]]:
    if issubclass(config, BaseModel):
        for name, field in config.model_fields.items():
            default = field.get_default(call_default_factory=True)
            yield name, default is not PydanticUndefined, default
        return
    assert dataclasses.is_dataclass(config)
    for plain in dataclasses.fields(config):
        default = plain.default
        if plain.default_factory is not dataclasses.MISSING:
            default = plain.default_factory()
        yield plain.name, default is not dataclasses.MISSING, default


def _json(default: Any) -> Json:
    missing = default is PydanticUndefined or default is dataclasses.MISSING
    return None if missing else json.loads(to_json(default, inf_nan_mode="strings"))


def _alternatives(hint: Any, value: Json) -> Sequence[Any]:
    """The types that a value may be of; the one that it is of, where a discriminator tells."""
    plain, marks = _without_marks(hint)
    options = get_args(plain) if get_origin(plain) in (Union, UnionType) else [plain]
    for mark in marks:
        if isinstance(mark, Discriminator) and callable(mark.discriminator):
            tag = Tag(str(mark.discriminator(value)))
            options = [option for option in options if tag in _without_marks(option)[1]]
    return [_without_marks(option)[0] for option in options]


def _without_marks(hint: Any) -> tuple[Any, Sequence[Any]]:
    """A type, and what is said of it in ``Annotated``."""
    return (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())


def _is_section(part: Any) -> bool:
    return isinstance(part, type) and (issubclass(part, BaseModel) or dataclasses.is_dataclass(part))
