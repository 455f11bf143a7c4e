"""Which committed outputs hold the rows that somebody asks for."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flows.outcomes.outputs import Found, latest_variants
from flows.plan import Plan, find_attempt, glance_at
from flows.query.data_set import DataSet, Part
from flows.runs import Run
from tasks.errors import ConfigError, RunError, UserError
from tasks.stages import STAGES
from tasks.store import Place, Ref, place_of

ROLLOUTS, ALL = "rollouts", "all"


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers of rounds or iterations from one to another; without them, the latest that there is."""

    first: int | None = None
    last: int | None = None

    @property
    def is_latest(self) -> bool:
        return self.first is None

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        return self.first is None or (self.first <= number and (self.last is None or number <= self.last))

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last or 'the last'}"


LATEST = Span()


def span(text: str | int | None, *, option: str) -> Span:
    """``3``, ``2-5`` or ``all``; nothing is the latest."""
    if text is None:
        return LATEST
    if text == ALL:
        return Span(0, None)
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", str(text))
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise ConfigError(f"{option} {text}: not a number, a range like 2-5, or {ALL}")
    return Span(int(match[1]), int(match[2] or match[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The data sets that were asked for."""

    data_set: DataSet
    is_current: bool
    """False where no output of the run's present configuration is there yet, and those of an earlier one are shown."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.data_set.parts

    def at(self, rounds: Span, iterations: Span) -> "Selection":
        """What of it is of these places, which name them."""
        parts = (p for p in self.parts if p.place.round in rounds and p.place.iteration in iterations)
        return replace(self, data_set=DataSet(parts=tuple(parts)))


def select(
    run: Run,
    name: str = ROLLOUTS,
    *,
    rounds: Span = LATEST,
    iterations: Span = LATEST,
    attempt: str | None = None,
    plan: Plan | None = None,
) -> Selection:
    """The data sets of this name at these places, or that of one attempt. Who has the run's plan need not have it made."""
    stages = STAGES.with_data_set(name)
    if not stages:
        raise ConfigError(f"--data {name}: no such data set; stages write {', '.join(STAGES.data_sets)}")
    if attempt is not None:
        return _of_attempt(run, attempt, name, stages, rounds, iterations)
    outputs = _current(run, plan)
    everything = [found for found in outputs if found.stage in stages and os.path.isdir(f"{found.ref.path}/{name}")]
    wanted = _latest([found for found in everything if _is_in(found.place, rounds, iterations)], rounds, iterations)
    is_current = bool(wanted)
    if not wanted:
        # Where nothing is current, as after a release that changed a stage, manifests of the wanted places alone are read.
        places = {
            stage: [place_of(path) for path in run.store.outputs(stage) if (path / name).is_dir()] for stage in stages
        }
        all_places = [place for own in places.values() for place in own]
        latest = set(_latest_places([p for p in all_places if _is_in(p, rounds, iterations)], rounds, iterations))
        wanted = [found for stage in stages for found in latest_variants(run, stage, where=latest.__contains__)]
        if not wanted:
            raise RunError(_nothing_there(run, name, all_places, rounds, iterations))
        at = {(place.round, place.iteration) for place in latest}
        audited = latest_variants(run, "audit_rollouts", where=lambda place: (place.round, place.iteration) in at)
        outputs = audited if name == ROLLOUTS else []
    parts = _parts(run, name, stages, wanted, [found for found in outputs if found.stage == "audit_rollouts"])
    return Selection(data_set=DataSet(parts=parts), is_current=is_current)


def _is_in(place: Place, rounds: Span, iterations: Span) -> bool:
    return place.round in rounds and place.iteration in iterations


def _current(run: Run, plan: Plan | None) -> list[Found]:
    """What the run's plan finds; nothing where no plan can be made: after a reward function was edited, or a file moved."""
    try:
        stages = (plan or glance_at(run)).stages
    except UserError:
        return []
    return [Found(stage=p.stage, place=p.place, ref=p.ref, is_current=True) for p in stages if p.ref is not None]


def _latest(found: list[Found], rounds: Span, iterations: Span) -> list[Found]:
    """Of the outputs in both spans, those of the latest round, and in it of the latest iteration, where none was named."""
    kept = set(_latest_places([output.place for output in found], rounds, iterations))
    return [output for output in found if output.place in kept]


def _latest_places(places: list[Place], rounds: Span, iterations: Span) -> list[Place]:
    if rounds.is_latest and places:
        last = max(place.round for place in places)
        places = [place for place in places if place.round == last]
    if iterations.is_latest and places:
        last_of: dict[int, int] = {}
        for place in places:
            last_of[place.round] = max(place.iteration, last_of.get(place.round, 0))
        places = [place for place in places if place.iteration == last_of[place.round]]
    return places


def _parts(
    run: Run, name: str, stages: Sequence[str], found: Iterable[Found], audits: Iterable[Found]
) -> tuple[Part, ...]:
    """At each place the outputs with the most columns, all shards of them."""
    audit_of = {(audit.place.round, audit.place.iteration): audit.ref for audit in audits}
    by_place: dict[tuple[int, int], list[Found]] = {}
    for output in found:
        by_place.setdefault((output.place.round, output.place.iteration), []).append(output)
    parts = []
    for place, outputs in sorted(by_place.items()):
        stage = next(stage for stage in stages if any(output.stage == stage for output in outputs))
        audit = audit_of.get(place) if name == ROLLOUTS else None
        parts += [
            Part(
                run=run.name,
                place=output.place,
                stage=stage,
                name=name,
                ref=output.ref,
                audits=() if audit is None else (audit,),
            )
            for output in sorted((o for o in outputs if o.stage == stage), key=lambda output: output.place)
        ]
    return tuple(parts)


def _of_attempt(
    run: Run, attempt: str, name: str, stages: tuple[str, ...], rounds: Span, iterations: Span
) -> Selection:
    """The output whose fingerprint begins so, and what an audit found of its rows."""
    ref, manifest = find_attempt(run, attempt, stages)
    place = manifest.place
    if place.round not in rounds or place.iteration not in iterations:
        raise ConfigError(f"--attempt {attempt}: is of round {place.round}, iteration {place.iteration}; ask for those")
    scored = manifest.recipe["inputs"]["scored"] if manifest.stage == "compute_advantages" else [manifest.digest]
    audits = tuple(
        Ref(str(directory), own.digest)
        for directory, own in run.store.manifests()
        if own.stage == "audit_rollouts" and set(scored) <= set(own.recipe["inputs"]["scored"])
    )
    part = Part(run=run.name, place=place, stage=manifest.stage, name=name, ref=ref, audits=audits[:1])
    return Selection(data_set=DataSet(parts=(part,)), is_current=True)


def _nothing_there(run: Run, name: str, places: list[Place], rounds: Span, iterations: Span) -> str:
    if not places:
        return f"run {run.name} has no {name} yet; rounds status {run.name} shows how far it is"
    asked = [f"round {rounds}"] if not rounds.is_latest else []
    asked += [f"iteration {iterations}"] if not iterations.is_latest else []
    has = sorted({(place.round, place.iteration) for place in places})
    (first_round, first), (last_round, last) = has[0], has[-1]
    return (
        f"run {run.name} has no {name} of {', '.join(asked)}; it has those from round {first_round}, iteration {first} "
        f"to round {last_round}, iteration {last}"
    )
