"""All mistakes of a configuration at once: what a mistake is about is left out, so that the rest can be read too."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flows.config.mistakes import OF_PYDANTIC, UNKNOWN, sentence_of
from flows.config.run_config import RunConfig
from tasks.config import Json

STAND_IN = "left_out_for_a_mistake"
"""What stands in the place of a file, a model or a function that a mistake is about."""
STAND_IN_FUNCTION = f"{STAND_IN}:{STAND_IN}"
STARTS = re.compile(r"([a-z_]+(?:\.\w+)*)(=|: )")
"""How a sentence begins that names its field, perhaps with its value."""
MISSING = ("missing", "missing_keyword_only_argument")
MOST_PASSES = 100
Location = tuple[str | int, ...]


def every_mistake(document: Mapping[str, Any]) -> tuple[list[str], RunConfig | None]:
    """One sentence for each mistake, and the configuration of the rest of the document, with stand-ins for what cannot be
    left out; None where not even that can be read.

    What follows from an earlier mistake is not told: no missing model where the one that was named is mistaken.
    """
    rest: dict[str, Any] = copy.deepcopy(dict(document))
    told: list[str] = []
    left_out: set[Location] = set()
    for _ in range(MOST_PASSES):
        try:
            return told, RunConfig.model_validate(rest)
        except ValidationError as error:
            mistakes = _one_a_field(error)
        found = [sentence_of(mistake) for mistake in mistakes if not _follows(mistake, left_out)]
        told += [said for said in found if said not in told]
        if not [at for at in map(_location, mistakes) if _leave_out(rest, at, left_out)]:
            break
    return told, _of_named_things(rest)


def _one_a_field(error: ValidationError) -> list[ErrorDetails]:
    """The mistakes of a validation without those that repeat another: each type that a value could have been of has its own,
    a list without a sound entry is too short besides, and a misspelt key is the likeliest cause of a missing one."""
    found: dict[Location, ErrorDetails] = {}
    for mistake in error.errors():
        found.setdefault(_section(mistake) or (mistake["msg"],), mistake)
    misspelt = {at[:-1] for at, mistake in found.items() if mistake["type"] in UNKNOWN}

    def repeats(at: Location, kind: str) -> bool:
        inside = any(other != at and other[: len(at)] == at for other in found)
        around = [found[at[:length]]["type"] for length in range(1, len(at)) if at[:length] in found]
        is_short = kind == "too_short" and inside
        return is_short or any(kind != "too_short" for kind in around) or (kind in MISSING and at[:-1] in misspelt)

    return [mistake for at, mistake in found.items() if not repeats(at, mistake["type"])]


def _section(mistake: ErrorDetails) -> Location:
    """Where in the document a mistake was found; empty where its parts contradict each other."""
    return tuple(part for part in mistake["loc"] if str(part) not in OF_PYDANTIC)


def _location(mistake: ErrorDetails) -> Location:
    """The path to what a mistake is about; where parts of the document contradict each other, to what its sentence names."""
    at = _section(mistake)
    message = mistake["msg"].removeprefix("Value error, ")
    names = STARTS.match(message)
    if mistake["type"] == "value_error" and names and (not at or names[2] == "="):
        return (*at, *(int(part) if part.isdecimal() else part for part in names[1].split(".")))
    return at


def _follows(mistake: ErrorDetails, left_out: set[Location]) -> bool:
    """Whether a mistake is there only because another one was left out."""
    at = _location(mistake)
    if at in left_out:
        return True
    if mistake["type"] in MISSING:
        return any(other[:-1] == at[:-1] for other in left_out)
    section = _section(mistake)
    # A sentence that names a value speaks of what is there.
    names_value = at != section
    return bool(section) and not names_value and any(other[: len(section)] == section for other in left_out)


def _leave_out(document: dict[str, Any], at: Location, left_out: set[Location]) -> bool:
    """Take what is at a place, or the nearest thing around it, out of the document; whether that changed anything."""
    steps: list[tuple[Any, Any]] = []
    node: Any = document
    for part in at:
        inside = isinstance(node, dict) and part in node
        if not inside and not (isinstance(node, list) and isinstance(part, int) and part < len(node)):
            break
        steps.append((node, part))
        node = node[part]
    place = tuple(part for _, part in steps)
    if (len(place) < len(at) and _fill_in(document, at)) or (place and _replace(document, steps, place)):
        left_out.add(at)
        left_out.add(place or at)
        return True
    return False


def _replace(document: dict[str, Any], steps: Sequence[tuple[Any, Any]], place: Location) -> bool:
    holder, key = steps[-1]
    before = copy.deepcopy(holder[key])
    if place[0] == "rewards" and len(place) == 2:
        holder[key] = _reward(document)
    elif isinstance(holder, list):
        if place[0] != "data":
            return _replace(document, steps[:-1], place[:-1])
        holder[key] = STAND_IN
    elif place in (("reward_model",), ("warm_up",)) and holder[key] != {}:
        holder[key] = {}
    else:
        del holder[key]
        return True
    return bool(holder[key] != before)


def _fill_in(document: dict[str, Any], at: Location) -> bool:
    """Put something in the place of what is required and not there."""
    sampling = {"max_new_tokens": 1}
    required: dict[Location, Json] = {
        ("model",): {"policy": STAND_IN},
        ("data",): {"prompts": [STAND_IN], "preferences": [STAND_IN], "texts": [STAND_IN]},
        ("data", "prompts"): [STAND_IN],
        ("data", "preferences"): [STAND_IN],
        ("data", "texts"): [STAND_IN],
        ("rewards",): {STAND_IN: _reward(document)},
        ("rollouts",): {"sampling": sampling},
        ("rollouts", "sampling"): sampling,
        ("rollouts", "sampling", "max_new_tokens"): 1,
    }
    if at not in required:
        return False
    *parents, last = at
    node: Any = document
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last in node:
        return False
    node[last] = required[at]
    return True


def _reward(document: Mapping[str, Any]) -> dict[str, str]:
    """A reward that agrees with the rest of the document."""
    return {"function": STAND_IN_FUNCTION} if document.get("reward_model") is None else {"model": "trained"}


def _of_named_things(document: Mapping[str, Any]) -> RunConfig | None:
    """A configuration of what the document says of files, models and functions alone, so that those can be looked at."""
    names = ("model", "data", "warm_up", "reward_model", "rewards")
    rest = {name: document[name] for name in names if name in document}
    try:
        return RunConfig.model_validate({**rest, "rollouts": {"sampling": {"max_new_tokens": 1}}})
    except ValidationError:
        return None
