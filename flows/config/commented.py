"""A configuration to start from: every field with its default and what its docstring says of it, as YAML."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flows.config.run_config import RunConfig
from tasks.yaml_text import write_yaml

HEAD = (
    "The configuration of a run: every field with its default, which a field that you leave out keeps.",
    "A section whose lines begin with # is switched off.",
    "Any field can be changed for one run: rounds run FILE --set ppo.epochs=2",
    "Relative paths start where the command is given.",
)
START: Mapping[str, Any] = {
    "model": {"policy": "models/base"},
    "data": {"prompts": [{"path": "data/prompts.jsonl"}], "preferences": [{"path": "data/preferences.jsonl"}]},
    "reward_model": {},
    "rewards": {"preference": {"model": "trained"}},
    "rollouts": {"sampling": {"max_new_tokens": 64}},
}
"""What has no default, and a reward model, without which there is no score yet."""
WIDTH = 112
STEP = "  "

Schema = Mapping[str, Any]


def commented() -> str:
    """A document that ``load_config`` reads as ``START`` and defaults."""
    schema = RunConfig.model_json_schema()
    lines = _Writer(schema["$defs"]).section(schema, START)
    return "\n".join([*(f"# {line}" for line in HEAD), "", *lines]) + "\n"


class _Writer:
    """Writes sections by their JSON schema, in which pydantic has names, defaults and docstrings together."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._explained: set[str] = set()
        """What was written in full once: another entry of its kind has its own fields alone."""

    def section(self, schema: Schema, given: Mapping[str, Any]) -> Iterator[str]:
        for name, field in schema["properties"].items():
            # What a run fills in itself.
            if field.get("readOnly"):
                continue
            value = given.get(name, field.get("default"))
            kind = self._section_of(field)
            if given is START and (kind is not None or "additionalProperties" in field):
                yield ""
            yield from _comment(field.get("description") or (kind or {}).get("description", ""), _choices(field))
            yield from self._field(name, value, field, kind)

    def _field(self, name: str, value: Any, field: Schema, kind: Schema | None) -> Iterator[str]:
        if kind is not None:
            body = [f"{name}:", *_indented(self.section(kind, value or {}))]
            yield from body if value is not None else (f"# {line}" for line in body)
        elif value and (entry := self._section_of(field.get("items", {}))) is not None:
            yield f"{name}:"
            for own in value:
                lines = _indented(self._entry(entry, own), 2 * STEP)
                first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
                lines[first] = f"{STEP}- {lines[first].lstrip()}"
                yield from lines
        elif value and isinstance(field.get("additionalProperties"), Mapping):
            yield f"{name}:"
            for key, own in value.items():
                kinds = self._sections_of(field["additionalProperties"], own)
                yield from _indented([f"{key}:", *_indented(self._entry(kinds[0], own))])
                others = [kind for kind in self._sections_of(field["additionalProperties"]) if kind is not kinds[0]]
                yield from _indented(_instead(others), 2 * STEP)
        else:
            yield write_yaml({name: value}).rstrip("\n")

    def _entry(self, schema: Schema, given: Mapping[str, Any]) -> list[str]:
        """One of many; all its fields the first time."""
        if schema["title"] in self._explained:
            return write_yaml(given).splitlines()
        self._explained.add(schema["title"])
        fields = schema["properties"]
        ordered = {name: fields[name] for name in (*given, *(name for name in fields if name not in given))}
        return list(self.section({**schema, "properties": ordered}, given))

    def _section_of(self, field: Schema) -> Schema | None:
        """The section that a field is, or may be."""
        return next(iter(self._sections_of(field)), None)

    def _sections_of(self, field: Schema, given: Mapping[str, Any] | None = None) -> list[Schema]:
        """The sections that a field may be, of those that have the keys given."""
        options = (field, *field.get("anyOf", ()), *field.get("oneOf", ()))
        found = [self._definitions.get(option.get("$ref", "").rpartition("/")[2], {}) for option in options]
        sections = [kind for kind in found if "properties" in kind]
        return [kind for kind in sections if (given or {}).keys() <= kind["properties"].keys()]


def _instead(kinds: Sequence[Schema]) -> Iterator[str]:
    """What an entry of another kind must have, as comments."""
    if kinds:
        yield "# Or, of another kind:"
    for kind in kinds:
        for name in kind["required"]:
            yield from _comment(f"{name}: {kind['properties'][name]['description']}", ())


def _choices(field: Schema) -> list[str]:
    return [str(choice) for option in (field, *field.get("anyOf", ())) for choice in option.get("enum", ())]


def _comment(text: str, choices: Sequence[str]) -> list[str]:
    """The first paragraph of a docstring in the words of YAML, and the choices where it does not name them all."""
    paragraph = " ".join(text.split("\n\n")[0].split()).replace("``inf``", ".inf").replace("``", "")
    paragraph = re.sub(r"\bNone\b", "null", paragraph)
    if any(choice not in paragraph for choice in choices):
        paragraph += f" One of {', '.join(choices)}."
    return [f"# {line}" for line in textwrap.wrap(paragraph.strip(), WIDTH - 2)]


def _indented(lines: Iterable[str], by: str = STEP) -> list[str]:
    return [by + line if line else line for line in lines]
