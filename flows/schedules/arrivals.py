"""What a scheduled run does next: start, go on where it was stopped, add a round for data that arrived, or nothing.

A schedule's configuration names data by patterns; the run itself names files, each with the round from which it counts. So
what has been used can be told from what is new, and a file that arrives adds a round instead of changing the ones before.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config import RunConfig, checked, dump
from flows.outcomes import latest_variants
from flows.plan import KINDS, PREPARE, Planned, changed_fields, identity, make_plan, require_unchanged
from flows.runs import RUN_FILE, Run
from tasks.config import DataConfig, Source
from tasks.data import is_pattern, matching_paths
from tasks.errors import RunError
from tasks.store import Manifest

GROWING = ("prompts", "preferences")
"""What may arrive. Other held-out prompts would make rounds incomparable, and only the first round reads texts."""
ANY_TIME = ("rounds", "execution", "health", "tracking", "keep_checkpoints", "checkpoint_every")
"""Settings that change no result of the rounds that there are."""
NOT_REMADE = ("not run yet", "forced", "output is damaged")
"""Why a stage of a finished round may execute in a scheduled run all the same."""
GOES_ON = "goes on"
"""The title of a step that finishes what was begun before."""
Lists = dict[str, tuple[Source, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """``config`` is what the run is to be brought to; None where there is nothing to do, and ``what`` says why."""

    title: str
    what: str
    config: RunConfig | None


def next_step(run: Run, config: RunConfig) -> NextStep:
    """What a run of the schedule's configuration has to do, from what is on disk. Nothing is changed."""
    named = {kind: expanded(getattr(config.data, kind)) for kind in KINDS}
    if not (run.root / RUN_FILE).exists() or run.is_empty():
        return first_step(run, config, named)
    used: Lists = {kind: getattr(run.config.data, kind) for kind in KINDS}
    require_files(run, used)
    finished = {found.place.round for found in latest_variants(run, "report_round")}
    if not finished and not is_part(used, named):
        # Its data was mistaken, or why would the configuration name other data in the first round.
        return first_step(run, config, named)
    return step_from(run, config, named, used)


def step_from(run: Run, config: RunConfig, named: Lists, used: Lists) -> NextStep:
    """What a run that has begun has to do next, where it is to use the ``named`` sources and has those ``used``."""
    before = run.config
    finished = {found.place.round for found in latest_variants(run, "report_round")}
    require_same_files(run, used, finished)
    as_before = with_sources(config, with_settings_of(named, used), rounds=max(before.rounds, config.rounds))
    if finished:
        require_same_settings(run, before, as_before)
    plan = make_plan(run, as_before)
    missing = [planned for planned in plan.stages if planned.ref is None]
    if missing:
        require_nothing_remade(run, [planned for planned in missing if planned.place.round in finished])
        done = len(plan.stages) - len(missing)
        return NextStep(
            title=GOES_ON, what=f"goes on: {done} of {len(plan.stages)} stages are committed", config=as_before
        )
    number = as_before.rounds + 1
    new = {kind: arrived(named[kind], used[kind], number) for kind in GROWING}
    if not any(new.values()):
        return NextStep(title="nothing new", what=nothing_new(run, config), config=None)
    grown = with_sources(config, used | {kind: (*used[kind], *new[kind]) for kind in GROWING}, rounds=number)
    names = [source.name for sources in new.values() for source in sources]
    return NextStep(title=f"round {number}", what=f"adds round {number} with {in_words(names)}", config=grown)


def first_step(run: Run, config: RunConfig, named: Lists) -> NextStep:
    """Start the run, unless data that it needs has yet to arrive."""
    waits_for = [kind for kind in KINDS if getattr(config.data, kind) and not named[kind]]
    if waits_for:
        (first, *_) = getattr(config.data, waits_for[0])
        what = f"nothing to start from: no file matches {first.name} yet"
        return NextStep(title="nothing new", what=what, config=None)
    rounds = f"{config.rounds} round{'s' * (config.rounds > 1)}"
    what = f"starts run {run.name} with {rounds}"
    return NextStep(title="starts", what=what, config=with_sources(config, named, config.rounds))


def expanded(sources: Iterable[Source]) -> tuple[Source, ...]:
    """Each file that a pattern matches now as a source of its own; of a file that is named twice, the first."""
    found: dict[Path | str, Source] = {}
    for source in sources:
        if source.path is None or not is_pattern(source.path):
            found.setdefault(identity(source), source)
            continue
        for path in matching_paths(source.path, missing_ok=True):
            file = source.model_copy(update={"path": str(path)})
            found.setdefault(identity(file), file)
    return tuple(found.values())


def limited_patterns(data: DataConfig) -> list[str]:
    """Patterns with a limit, as ``data.kind: pattern``."""
    return [
        f"data.{kind}: {source.path}"
        for kind in KINDS
        for source in getattr(data, kind)
        if source.path is not None and source.limit is not None and is_pattern(source.path)
    ]


def growing_patterns(data: DataConfig) -> list[str]:
    """The patterns by which data may arrive."""
    sources = [source for kind in GROWING for source in getattr(data, kind)]
    return [source.path for source in sources if source.path is not None and is_pattern(source.path)]


def arrived(named: Iterable[Source], used: Iterable[Source], number: int) -> tuple[Source, ...]:
    """The sources that the run does not have yet, to count from round ``number`` on."""
    known = {identity(source) for source in used}
    return tuple(s.model_copy(update={"from_round": number}) for s in named if identity(s) not in known)


def is_part(used: Lists, named: Lists) -> bool:
    """Whether all that a run uses is still named, in the same way."""
    return all(source in named[kind] for kind in KINDS for source in used[kind])


def with_settings_of(named: Lists, used: Lists) -> Lists:
    """The used sources, read as the configuration says now."""

    def read_now(source: Source, now: Mapping[Path | str, Source]) -> Source:
        found = now.get(identity(source), source)
        return found.model_copy(update={"path": source.path, "from_round": source.from_round})

    by_identity = {kind: {identity(source): source for source in named[kind]} for kind in KINDS}
    return {kind: tuple(read_now(source, by_identity[kind]) for source in used[kind]) for kind in KINDS}


def with_sources(config: RunConfig, lists: Lists, rounds: int) -> RunConfig:
    """The configuration with these sources and rounds, checked as a whole again."""
    data = config.data.model_copy(update=lists)
    return checked(dump(config.model_copy(update={"data": data, "rounds": rounds})), where="the next step")


def require_files(run: Run, used: Lists) -> None:
    """Refuse a run of patterns: what they matched when it was made is not known."""
    for source in (source for kind in KINDS for source in used[kind]):
        if source.path is not None and is_pattern(source.path):
            raise RunError(
                f"run {run.name} was made from the pattern {source.path}, so what is new since cannot be told; choose "
                "another --name, under which the schedule starts a run of its own"
            )


def require_same_files(run: Run, used: Lists, finished: Container[int]) -> None:
    """Refuse to go on from a file that is not the one that finished rounds were made from."""
    in_use = [source for sources in used.values() for source in sources]
    for found in latest_variants(run, PREPARE):
        if found.place.round in finished:
            require_unchanged(run, found.place.round, Manifest.read(found.ref.directory).recipe, in_use)


def require_same_settings(run: Run, before: RunConfig, now: RunConfig) -> None:
    """Refuse other settings than those that the finished rounds were made with."""

    def deciding(config: RunConfig) -> dict[str, Any]:
        return {name: value for name, value in dump(config).items() if name not in ANY_TIME}

    if changes := changed_fields(deciding(before), deciding(now)):
        raise RunError(
            f"run {run.name} has finished rounds with other settings ({', '.join(changes[:3])}): leave them as the run has "
            f"them, or change them in all of its rounds with: rounds rerun {run.name} --set …"
        )


def require_nothing_remade(run: Run, missing: Iterable[Planned]) -> None:
    """Refuse to make a stage of a finished round anew, for code or a version that changed: a person decides that."""
    for planned in missing:
        # What else is missing follows from one whose inputs are there.
        is_cause = all(made_from.ref is not None for made_from in planned.inputs)
        if is_cause and planned.reason not in NOT_REMADE:
            raise RunError(
                f"{planned.stage} of round {planned.place.round} of run {run.name} would be made anew "
                f"({planned.reason}), and all that follows; if that is wanted: rounds rerun {run.name}"
            )


def nothing_new(run: Run, config: RunConfig) -> str:
    if patterns := growing_patterns(config.data):
        return f"nothing new: run {run.name} has used every file that matches {' or '.join(patterns)}"
    return "nothing new: the configuration names no data by a pattern, so none can arrive"


def in_words(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
