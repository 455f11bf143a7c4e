"""The states of a run's stages, of runs, and of what a rerun would do."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.outcomes.outputs import latest_variants
from flows.outcomes.results import summary_of, warnings_of
from flows.plan import Plan, Planned, glance_at, plan_of
from flows.runs import RUN_FILE, Run
from tasks.errors import DamagedError, RunError, UserError
from tasks.metrics import RunWarning, combine, diagnose, rows_of, through_rounds
from tasks.store import Ref


def reports_of(plan: Plan) -> list[Ref]:
    """The report of each round that has one."""
    return [state.report.ref for state in plan.rounds if state.report is not None and state.report.ref is not None]


@dataclass(slots=True, kw_only=True)
class StageStatus:
    """One stage at one place, its shards together."""

    stage: str
    round: int
    iteration: int
    committed: int = 0
    shards: int = 0
    executing: int = 0
    """Shards that workers have now."""
    rows: int = 0
    seconds: float = 0.0
    reason: str = ""
    parts: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    """Rows and metrics of each committed shard."""

    @property
    def metrics(self) -> dict[str, float]:
        """Those of all shards together."""
        return combine(self.parts)

    @property
    def state(self) -> str:
        if self.committed == self.shards:
            return "committed"
        if self.executing:
            return "running" if self.shards == 1 else f"{self.executing} running"
        return f"{self.committed}/{self.shards} shards" if self.committed else "pending"

    def as_dict(self) -> dict[str, Any]:
        names = (
            "stage",
            "round",
            "iteration",
            "committed",
            "executing",
            "shards",
            "rows",
            "seconds",
            "reason",
            "metrics",
        )
        return {"state": self.state, **{name: getattr(self, name) for name in names}}

    def add(self, shard: Planned) -> None:
        """Count one more committed shard."""
        self.parts.append((shard.rows, shard.metrics))
        self.committed += 1
        self.rows += shard.rows
        self.seconds = round(self.seconds + shard.seconds, 3)


def stage_statuses(plan: Plan) -> list[StageStatus]:
    """All stages of a plan in the order of the flow."""
    statuses: dict[tuple[str, int, int], StageStatus] = {}
    for planned in plan.stages:
        key = (planned.stage, planned.place.round, planned.place.iteration)
        status = statuses.setdefault(key, StageStatus(stage=key[0], round=key[1], iteration=key[2]))
        status.shards += 1
        if planned.ref is None:
            status.reason = status.reason or planned.reason
            status.executing += planned.is_executing
        else:
            status.add(planned)
    return list(statuses.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFor:
    """The stage that ``rounds run --until`` named, as it is committed."""

    status: StageStatus
    outputs: Sequence[Ref]
    """Of each shard."""

    def as_dict(self) -> dict[str, Any]:
        return {**self.status.as_dict(), "outputs": [output.path for output in self.outputs]}


def outputs_asked_for(run: Run, plan: Plan) -> AskedFor | None:
    """What a run has of the last stage of a plan, where that is not the whole of it."""
    if plan.is_whole:
        return None
    now = plan_of(run).until(plan.stages[-1].stage)
    last = now.stages[-1]
    found = now.select(last.stage, round=last.place.round, iteration=last.place.iteration)
    refs = [planned.ref for planned in found if planned.ref is not None]
    return AskedFor(status=stage_statuses(now)[-1], outputs=refs)


def run_warnings(statuses: Sequence[StageStatus]) -> list[RunWarning]:
    """What speaks against a run, finished or not, by all that it has committed: what the reports of its rounds say too."""
    parts: dict[tuple[int, int], list[tuple[int, Mapping[str, float]]]] = {}
    for status in statuses:
        parts.setdefault((status.round, status.iteration), []).extend(status.parts)
    return diagnose(*rows_of(parts))


def metrics_history(statuses: Sequence[StageStatus]) -> list[dict[str, Any]]:
    """The metrics of each iteration, and in that of a round's last one what was measured once in the round."""
    parts: dict[tuple[int, int], list[tuple[int, Mapping[str, float]]]] = {}
    for status in statuses:
        parts.setdefault((status.round, status.iteration), []).extend(status.parts)
    return through_rounds(*rows_of(parts))


def run_state(run: Run, plan: Plan) -> str:
    """running, finished, or how far it is."""
    if run.is_in_progress():
        return "running"
    done = sum(planned.ref is not None for planned in plan.stages)
    return "finished" if done == len(plan.stages) else f"{done} of {len(plan.stages)} stages committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a run is, and what it came to."""

    state: str
    stages: list[StageStatus]
    results: list[dict[str, Any]]
    """The numbers of each round that is done."""
    warnings: list[RunWarning]

    def stages_of(self, rounds: Container[int]) -> list[StageStatus]:
        """Those of some rounds.

        Raises:
            RunError: the run has none of them.
        """
        found = [status for status in self.stages if status.round in rounds]
        if not found:
            there = [status.round for status in self.stages]
            raise RunError(f"the run has no round {rounds}; it has {min(there)} to {max(there)}")
        return found


def standing_of(run: Run) -> Standing:
    """What ``rounds status`` says of a run."""
    plan = glance_at(run)
    stages = stage_statuses(plan)
    return Standing(
        state=run_state(run, plan),
        stages=stages,
        results=[summary_of(report) for report in reports_of(plan)],
        warnings=run_warnings(stages),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One run in the list of runs, read from its reports alone."""

    name: str
    state: str
    rounds_done: int
    rounds: int | None
    created_at: float
    score: float | None
    score_gain: float | None
    warnings: int
    """Of all rounds that are done."""


def overview(run: Run) -> Overview:
    """What ``rounds list`` says of a run. No plan is made, so that a hundred runs are listed at once."""
    reports = sorted(latest_variants(run, "report_round"), key=lambda found: found.place)
    try:
        summaries, is_damaged = [summary_of(found.ref) for found in reports], False
    except DamagedError:
        summaries, is_damaged = [], True
    summary = summaries[-1] if summaries else {}
    try:
        rounds, created_at = run.config.rounds, run.created_at
    except UserError:
        rounds, created_at = None, (run.root / RUN_FILE).stat().st_mtime
    if is_damaged:
        state = "damaged"
    elif run.is_in_progress():
        state = "running"
    elif rounds is None:
        state = "unreadable"
    else:
        state = "finished" if len(reports) >= rounds else "stopped"
    return Overview(
        name=run.name,
        state=state,
        rounds_done=len(reports),
        rounds=rounds,
        created_at=created_at,
        score=summary.get("evaluation/score"),
        score_gain=summary.get("evaluation/score_gain"),
        warnings=sum(len(warnings_of(one)) for one in summaries),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a run or rerun would do with one stage."""

    stage: str
    place: str
    executes: bool
    reason: str
    expected_seconds: float | None


def steps(run: Run, plan: Plan, forced: Sequence[Planned]) -> list[Step]:
    """All stages of a plan, with the seconds that each took when it last ran there, else its usual ones."""
    keys = {planned.key for planned in forced}
    took = {planned.key: last_seconds(run, planned) for planned in plan.stages}
    usual: dict[str, list[float]] = {}
    for planned in plan.stages:
        if (seconds := took[planned.key]) is not None:
            usual.setdefault(planned.stage, []).append(seconds)

    def step(planned: Planned) -> Step:
        executes = planned.ref is None or planned.key in keys
        expected = took[planned.key]
        if expected is None and planned.stage in usual:
            expected = sum(usual[planned.stage]) / len(usual[planned.stage])
        return Step(
            stage=planned.stage,
            place=planned.place.label,
            executes=executes,
            reason=planned.reason or ("forced" if executes else ""),
            expected_seconds=expected,
        )

    return [step(planned) for planned in plan.stages]


def last_seconds(run: Run, planned: Planned) -> float | None:
    """How long the stage took when it last ran at this place; None if it never did."""
    variants = [manifest for _, manifest in run.store.variants(planned.key)]
    latest = max(variants, key=lambda manifest: manifest.committed_at, default=None)
    return None if latest is None else latest.seconds
