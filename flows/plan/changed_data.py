"""Data files that are not any more what a run was made from. A round is never made anew because of one: a person says so."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.plan.planned import Plan
from flows.runs import Run
from tasks import environment
from tasks.config import DataConfig, Source
from tasks.data import how_changed
from tasks.errors import RunError
from tasks.stages import STAGES
from tasks.store import place_of

KINDS = ("prompts", "held_out_prompts", "preferences", "texts")
PREPARE = "prepare_data"


def identity(source: Source) -> Path | str:
    """What makes two sources the same data: a file's place, else all but the round from which it counts."""
    if source.path is not None:
        return Path(source.path).expanduser().resolve()
    return source.model_copy(update={"from_round": 1}).model_dump_json()


def sources_of(data: DataConfig) -> list[Source]:
    """All sources, in the order in which the flow digests them."""
    return [source for kind in KINDS for source in getattr(data, kind)]


def require_same_data(run: Run, data: DataConfig, plan: Plan, *, forced: Collection[str] = ()) -> None:
    """Refuse to make rounds anew for a file that changed since, unless its stage is ``forced``."""
    accepted = {*forced, *run.unfinished_rerun}
    for planned in plan.select(PREPARE):
        if planned.ref is not None or planned.key in accepted:
            continue
        variants = [manifest for _, manifest in run.store.variants(planned.key)]
        if variants and is_made_from(run, planned.place.round):
            latest = max(variants, key=lambda manifest: manifest.committed_at)
            require_unchanged(run, planned.place.round, latest.recipe, sources_of(data))


def is_made_from(run: Run, round: int) -> bool:
    """Whether anything is committed that was made from a round's data."""
    return any(PREPARE not in path.parts and place_of(path).round >= round for path in run.store.outputs())


def require_unchanged(run: Run, round: int, recipe: Mapping[str, Any], in_use: Iterable[Source]) -> None:
    """Refuse a file in use that is not the one of which a round's data was made, by the recipe of that."""
    for source, how in changed_files(recipe, in_use):
        rounds = f"rounds {environment.home_option(run.home)}"
        raise RunError(
            f"{source.path} {how} since round {round} of run {run.name} was made from it; put it back as it was, for what "
            f"is new belongs in new files ({rounds}add-round {run.name} --preferences FILE), or make the run anew from it "
            f"with: {rounds}rerun {run.name} --from {PREPARE} --round {round}"
        )


def changed_files(recipe: Mapping[str, Any], in_use: Iterable[Source]) -> Iterator[tuple[Source, str]]:
    """The files of a recipe that are still in use and have changed since, and in words how."""
    used = {identity(source) for source in in_use}
    for source, digest in digested_sources(recipe):
        if source.path is not None and identity(source) in used:
            how = how_changed(source, digest, seed=recipe["seed"])
            if how is not None:
                yield source, how


def digested_sources(recipe: Mapping[str, Any]) -> list[tuple[Source, str]]:
    """The sources of which a round's data was made, each with the digest that it had."""
    settings = STAGES.settings_of(recipe)
    return list(zip(sources_of(DataConfig(**settings["data"])), settings["source_digests"], strict=True))
