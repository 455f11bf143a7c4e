"""The defaults that each stage's version stands for, as ``stage_defaults.json`` has them.

python tests/tasks/stage_defaults.py writes the file anew: when a stage has a new setting, or a new version.
"""

import dataclasses
import json
from pathlib import Path
from typing import get_args, get_type_hints

from pydantic import BaseModel
from pydantic_core import to_json

from tasks.stages import STAGES

RECORDED = Path(__file__).with_suffix(".json")


def is_section(part):
    return isinstance(part, type) and (issubclass(part, BaseModel) or dataclasses.is_dataclass(part))


def sections_in(hint):
    return [hint] if is_section(hint) else [found for part in get_args(hint) for found in sections_in(part)]


def default_of(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def as_json(default):
    return json.loads(to_json(default, inf_nan_mode="strings"))


def defaults_of(config):
    """``Class.field`` with its default as JSON, of a class of settings and of all that are in it."""
    if dataclasses.is_dataclass(config):
        plain = {field.name: default_of(field) for field in dataclasses.fields(config)}
        plain = {name: default for name, default in plain.items() if default is not dataclasses.MISSING}
    else:
        fields = config.model_fields.items()
        plain = {
            name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()
        }
    found = {
        f"{config.__name__}.{name}": json.loads(to_json(default, inf_nan_mode="strings"))
        for name, default in plain.items()
    }
    for hint in get_type_hints(config).values():
        for section in sections_in(hint):
            found |= defaults_of(section)
    return dict(sorted(found.items()))


def now():
    return {stage.name: {"version": stage.version, "defaults": defaults_of(stage.config)} for stage in STAGES}


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(now(), indent=1) + "\n")
