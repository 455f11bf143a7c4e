"""The plan of a run: its stages in order, each with its committed output or the reason why it would execute.

The plan is found by running the flows themselves with a caller that looks up instead of executing, so that plan, status
and execution cannot disagree on what a run is.
"""

from typing import Any

from flows.config import RunConfig
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.plan.glance import Glance
from flows.plan.planned import Plan, Planned
from flows.plan.reasons import why
from flows.round import rlhf_round
from flows.runs import Run
from flows.state import RoundState
from tasks.config import StageConfig
from tasks.errors import ConfigError
from tasks.stages import STAGES
from tasks.store import Place, Ref, directory_of, each, noting, recalling


class Planner:
    """Calls stages by looking them up, or by what was found of them before."""

    def __init__(self, run: Run, config: RunConfig, glance: Glance | None = None) -> None:
        self._run = run
        self._config = config
        self._glance = glance
        self._generations = run.generations
        self._is_in_progress = run.is_in_progress()
        self.stages: list[Planned] = []

    def __call__(self, stage: str, place: Place, config: StageConfig, **inputs: Any) -> Planned:
        waits_for: list[Planned] = []

        def looked_up(output: Any) -> Any:
            if not isinstance(output, Planned):
                return output
            waits_for.append(output)
            return output.ref

        refs = each(looked_up, inputs)
        if self._glance is not None and (entry := self._glance.found(stage, place, config)) is not None:
            return self._added(
                Planned(
                    stage=stage,
                    place=place,
                    key=directory_of(stage, place),
                    ref=Ref(f"{self._run.root}/{entry.directory}", entry.digest),
                    reason="",
                    inputs=waits_for,
                    rows=entry.rows,
                    seconds=entry.seconds,
                    metrics=entry.metrics,
                )
            )
        call = stage_call(self._run, self._config, stage, place, config, self._generations, refs)
        recipe = call.recipe()
        ready = all(planned.ref for planned in waits_for)
        found = self._run.store.find_with_manifest(recipe) if ready else None
        if self._glance is not None:
            self._glance.note(stage, place, config, found)
        return self._added(
            Planned(
                stage=stage,
                place=place,
                key=recipe.directory,
                ref=found[0] if found else None,
                reason="" if found else why(self._run.store, recipe, waits_for),
                is_executing=not found and ready and self._is_in_progress and self._run.store.is_in_the_making(recipe),
                inputs=waits_for,
                **({name: getattr(found[1], name) for name in ("rows", "seconds", "metrics")} if found else {}),
            )
        )

    def _added(self, planned: Planned) -> Planned:
        self.stages.append(planned)
        return planned


def make_plan(run: Run, config: RunConfig, *, is_glance: bool = False) -> Plan:
    """What a run of this configuration would find and execute; with ``is_glance`` by what was found before."""
    config = with_code_digests(config)
    externals = external_models(config, run.home)
    glance = Glance(run, config, externals) if is_glance else None
    planner = Planner(run, config, glance)
    rounds: list[RoundState] = []
    for number in range(1, config.rounds + 1):
        rounds.append(rlhf_round(planner, config, number, rounds[-1] if rounds else None, externals))
    if glance is not None:
        glance.keep()
    return Plan(stages=planner.stages, rounds=rounds)


def plan_of(run: Run) -> Plan:
    """The plan of a run as it was begun, for whoever only looks: it needs neither data nor code nor models, nor to be asked
    from the directory in which the run began."""
    with recalling(run.seen):
        return make_plan(run, run.config)


def glance_at(run: Run) -> Plan:
    """``plan_of`` a run for whoever shows it: of thousands of stages, those that were found before and are still there are
    not followed again. What is damaged inside of a file shows elsewhere."""
    with recalling(run.seen):
        return make_plan(run, run.config, is_glance=True)


def what_is_seen(run: Run, config: RunConfig) -> dict[str, Any]:
    """What a run's plan finds outside of it, to be remembered for ``plan_of``."""
    with noting() as seen:
        make_plan(run, config)
    return seen


def forced_by(plan: Plan, stage: str, *, round: int | None, iteration: int | None) -> list[Planned]:
    """What ``rerun --from STAGE`` forces: the stage from that round and iteration on, and all that is made from it.

    Without a round, the last one that has the stage; without an iteration, the round's first.
    """
    if stage not in STAGES.of_a_run:
        raise ConfigError(f"--from {stage}: no such stage; stages are {', '.join(STAGES.of_a_run)}")
    candidates = plan.select(stage, round=round)
    if not candidates:
        where = f" in round {round}" if round else ""
        raise ConfigError(f"--from {stage}: this run has no such stage{where}; rounds status shows what it has")
    last_round = max(planned.place.round for planned in candidates)
    candidates = [planned for planned in candidates if planned.place.round == last_round]
    chosen = iteration if iteration is not None else min(planned.place.iteration for planned in candidates)
    first = [planned for planned in candidates if planned.place.iteration == chosen]
    if not first:
        raise ConfigError(f"--iteration {iteration}: round {last_round} has no {stage} there; see rounds status")
    return plan.with_downstream(first)
