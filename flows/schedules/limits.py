"""What a flow run may name that was asked for through Prefect's interface: a form there must not be a way to run code.

A schedule is made by ``rounds schedule``, by somebody who may run programs here. Parameters of a flow run come from whoever
reaches the server. They may change every number and choice of the schedule's configuration, and name other data and models
in the schedule's own directory. Code, hubs and servers are those that the schedule names itself.
"""

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path

from flows.config import FROM_POLICY, FROM_REWARD_MODEL, RunConfig, dump
from flows.schedules.schedules import Schedule
from tasks.config import TRAINED, Json
from tasks.data import is_pattern
from tasks.errors import RunError

CODE = ("function",)
MODELS = ("policy", "critic", "base", "model")
FILES = ("path",)
ELSEWHERE = ("dataset", "subset", "revision", "engine_servers", "ray")
"""What lies on a hub, is a server or a cluster."""
HARMLESS = (
    "split",
    "columns",
    "target_modules",
    "stop_strings",
    "code",
    "decay",
    "device",
    "experiment",
    "chat_template_kwargs",
)
"""Text that names nothing that is read or executed."""
NO_MODEL = (FROM_POLICY, FROM_REWARD_MODEL, TRAINED)
Leaf = tuple[str, str, Json]
"""The path to a value of a document, the name of the field that it belongs to, and the value."""


def require_within(config: RunConfig, schedule: Schedule) -> None:
    """Refuse a configuration that reaches beyond its schedule. Raises ``RunError``, which names the field."""
    own: dict[str, set[str]] = {}
    for _, field, value in leaves(dump(schedule.checked_config())):
        own.setdefault(field, set()).add(str(value))
    own_models = {value for field in MODELS for value in own.get(field, set())}
    trusts = "True" in own.get("trust_remote_code", set())
    directory = Path(schedule.directory)
    for path, field, value in leaves(dump(config)):
        text = str(value)
        if field == "trust_remote_code":
            is_allowed, rule = not value or trusts, "may not be turned on here"
        elif field in CODE or field in ELSEWHERE:
            is_allowed, rule = text in own.get(field, set()), "is not the schedule's own"
        elif field in MODELS:
            # Where code of a model is trusted, it is the schedule's models that are.
            is_inside = not trusts and lies_inside(directory, text)
            is_allowed, rule = text in own_models or text in NO_MODEL or is_inside, outside(directory)
        elif field in FILES:
            is_allowed = text in own.get(field, set()) or lies_inside(directory, text)
            rule = outside(directory)
        else:
            continue
        if value is not None and not is_allowed:
            raise RunError(
                f"config.{path}={text} {rule}; a flow run may name only what the schedule {schedule.name} names; to allow "
                "more, schedule such a configuration with: rounds schedule"
            )


def outside(directory: Path) -> str:
    return f"is neither the schedule's own nor in its directory {directory}"


def lies_inside(directory: Path, name: str) -> bool:
    """Whether a file or directory, or all that a pattern matches now, is in a directory, wherever links lead."""
    try:
        path = directory / Path(name).expanduser()
        wild = next((i for i, part in enumerate(path.parts) if is_pattern(part)), len(path.parts))
        found = [Path(match) for match in glob.glob(str(path), recursive=True)] if wild < len(path.parts) else [path]
        places = [Path(*path.parts[:wild]), *found]
        return ".." not in path.parts and all(
            place.exists() and place.resolve().is_relative_to(directory.resolve()) for place in places
        )
    except (OSError, ValueError, RuntimeError):
        # No path at all: a NUL in it, or the home directory of nobody.
        return False


def leaves(document: Json, path: str = "", field: str = "") -> Iterator[Leaf]:
    """All plain values of a configuration. A value in a list, or under a name of the user's, belongs to the field above."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key), field if field in HARMLESS else str(key))
    elif isinstance(document, list):
        for position, value in enumerate(document):
            yield from leaves(value, f"{path}.{position}", field)
    else:
        yield path, field, document
