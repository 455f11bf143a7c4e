"""What a configuration names, files, models and functions: whether it is there, told at once for all of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from flows.config import STAND_IN, STAND_IN_FUNCTION, RunConfig
from flows.plan import find_model, named_models
from tasks.config import RewardConfig, Source
from tasks.data import require_there, reward_function
from tasks.errors import UserError
from tasks.store import Ref

Found = TypeVar("Found")
KINDS = ("prompts", "held_out_prompts", "preferences", "texts")


def look_for_named(config: RunConfig, home: Path) -> tuple[list[UserError], dict[str, Ref]]:
    """A mistake for each thing that is not there, and the models that are, by field. Nothing is read but for digests of
    models, which the home remembers."""
    mistakes: list[UserError] = []

    def tried(look: Callable[[], Found]) -> Found | None:
        try:
            return look()
        except UserError as error:
            if str(error) not in map(str, mistakes):
                mistakes.append(error)
            return None

    for _, source in sources(config):
        if source.name != STAND_IN:
            tried(lambda source=source: require_there(source))  # type: ignore[misc]
    names = {field: name for field, name in named_models(config).items() if name != STAND_IN}
    found = {field: tried(lambda field=field: find_model(config, home, field)) for field in names}  # type: ignore[misc]
    for field, reward in named_rewards(config):
        if reward.user_function not in (None, STAND_IN_FUNCTION):
            path, where = str(reward.user_function), f"{field}.{reward.key}"
            tried(lambda path=path, where=where: reward_function(path, field=where))  # type: ignore[misc]
    return mistakes, {field: ref for field, ref in found.items() if ref is not None}


def sources(config: RunConfig) -> Iterator[tuple[str, Source]]:
    """All sources with their fields."""
    for kind in KINDS:
        for position, source in enumerate(getattr(config.data, kind)):
            yield f"data.{kind}.{position}", source


def named_rewards(config: RunConfig) -> list[tuple[str, RewardConfig]]:
    """All rewards of a configuration with the fields that hold them."""
    held_out = config.evaluation.held_out_rewards
    return [
        *((f"rewards.{name}", reward) for name, reward in config.rewards.items()),
        *((f"evaluation.held_out_rewards.{name}", reward) for name, reward in held_out.items()),
    ]


def named_functions(config: RunConfig) -> list[str]:
    """The import paths of all functions that a configuration names: every worker must find them, wherever it is."""
    found = {source.function for _, source in sources(config)} | {own.user_function for _, own in named_rewards(config)}
    return sorted(path for path in found if path is not None)
