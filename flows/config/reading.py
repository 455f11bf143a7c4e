"""Configuration files: presets and users' own, with what the command line sets in them."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flows.config.every_mistake import every_mistake
from flows.config.mistakes import sentence
from flows.config.run_config import RunConfig
from tasks.errors import ConfigError, require_none
from tasks.paths import is_there, naming, require_regular, shown, user_path
from tasks.yaml_text import YAMLError, read_yaml

MAX_BYTES = 256 * 1024
"""Of a configuration file: a hundred times the longest preset, and what is read in a few seconds."""
PRESETS = Path(__file__).parents[1] / "presets"


def load_config(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A preset by its name or a YAML file, with ``a.b=value`` overrides, checked."""
    return checked(with_overrides(read_document(name), overrides), where=name)


def read_document(name: str) -> dict[str, Any]:
    """The plain document behind a preset's name or a file."""
    path = user_path(name, field="CONFIG")
    if is_there(PRESETS / f"{name}.yaml"):
        path = PRESETS / f"{name}.yaml"
    elif not is_there(path) or path.is_dir():
        known = sorted(preset.stem for preset in PRESETS.glob("*.yaml"))
        raise ConfigError(f"{shown(name)}: no such file, and no preset of that name; presets are {', '.join(known)}")
    try:
        with naming(path), require_regular(path).open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(
                f"{name}: longer than {MAX_BYTES // 1024} KiB, which no configuration is; name another file"
            )
        document = read_yaml(text)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not readable as YAML ({' '.join(str(error).split())}); mend that place") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{name}: holds {type(document).__name__}, not a mapping of settings; see rounds init")
    return document


def with_overrides(document: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The document with each ``a.b=value`` set; the value is read as YAML."""
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(f"--set {override}: not of the form a.b=value")
        try:
            value = read_yaml(text)
        except YAMLError as error:
            # The place in a value of one line helps nobody.
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            raise ConfigError(f"--set {override}: the value is not readable as YAML ({problem}); quote it") from error
        *parents, last = path.split(".")
        node: Any = changed
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else node[position(node, parent, override)]
            if node is None or not isinstance(node, dict | list):
                raise ConfigError(f"--set {override}: {parent} is no section; set it whole")
        if isinstance(node, list):
            node[position(node, last, override)] = value
        else:
            node[last] = value
    return changed


def position(items: Sequence[object], text: str, override: str) -> int:
    """An index into a list of the document, given as text."""
    if not text.isdecimal() or int(text) >= len(items):
        raise ConfigError(f"--set {override}: {text} is no position in a list of {len(items)}; count from 0")
    return int(text)


def checked(document: Mapping[str, Any], *, where: str) -> RunConfig:
    """The configuration of a document.

    Raises:
        ConfigError: one sentence about its mistake.
        Mistakes: all that are in it.
    """
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        first = sentence(error)
        others = [mistake for mistake in every_mistake(document)[0] if mistake != first]
        require_none([first, *others], where=where)
        raise


def dump(config: BaseModel) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    document: dict[str, Any] = json.loads(config.model_dump_json())
    return document
