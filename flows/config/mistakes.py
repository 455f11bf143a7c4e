"""What is wrong with a configuration, as one sentence that names the field, the value and the next move."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flows.config.run_config import RunConfig
from tasks.config import NO_KIND, REWARD_KINDS

# What the user has written is YAML, so a message that names Python's types helps nobody.
SECTION = "give a section, with a key and a value for each setting"
SHAPES = {
    "tuple_type": "give a list, with an entry for each",
    "string_type": "a text is needed; put it in quotes",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type"), SECTION),
}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls a key that no section has."""
OF_PYDANTIC = ("dict", "float", "tuple[float,float]", *REWARD_KINDS)
"""Steps of a path to a mistake that are no fields: which of several types was tried."""


def sentence(error: ValidationError) -> str:
    """The first mistake of a validation, for people: field, value, next move."""
    # A misspelt key is the likeliest cause of a missing one, so it is told first.
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] not in UNKNOWN)
    return sentence_of(mistakes[0])


def sentence_of(mistake: ErrorDetails) -> str:
    """One of pydantic's mistakes, for people."""
    location = [str(part) for part in mistake["loc"] if str(part) not in OF_PYDANTIC]
    field, kind = ".".join(location), mistake["type"]
    if kind in UNKNOWN:
        near = difflib.get_close_matches(location[-1], known_keys(location[:-1]), n=1, cutoff=0.5)
        known = ", ".join(known_keys(location[:-1]))
        return f"{field}: unknown key; " + (
            f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known are {known}"
        )
    if kind in ("missing", "missing_keyword_only_argument"):
        return f"{field}: missing; add it"
    message = SHAPES.get(kind) or mistake["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", NO_KIND):
        return f"{field}: {message}" if field else message
    return f"{field}={mistake['input']!r:.80}: {message[0].lower()}{message[1:]}"


def known_keys(path: Sequence[str]) -> list[str]:
    """The keys that a part of the configuration may have; empty for a part that is free or unknown."""
    node: Any = RunConfig
    for part in path:
        if get_origin(node) is Mapping:
            # The part is a name of the user's, whatever fields there are of that name.
            node = get_args(node)[1]
            continue
        fields = fields_of(node)
        if part in fields:
            node = fields[part]
    return list(fields_of(node))


def fields_of(node: Any) -> dict[str, Any]:
    """Names and types of the fields of a configuration class, looked for inside optional, sequence and mapping types; of
    several classes, those of all."""
    if isinstance(node, type) and issubclass(node, BaseModel):
        return {name: field.annotation for name, field in node.model_fields.items()}
    if isinstance(node, type) and hasattr(node, "__dataclass_fields__"):
        return {name: field.type for name, field in node.__dataclass_fields__.items()}
    return {name: field for inner in get_args(node) for name, field in fields_of(inner).items()}
