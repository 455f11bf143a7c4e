"""Responses for people to rank, sampled from a checkpoint of a run because somebody asks for them."""

from contextlib import closing

from flows.iteration import adapted_base
from flows.orchestration.interrupts import interrupts_cancel
from flows.orchestration.session import Session
from flows.plan import Plan, external_models, plan_of
from flows.preview import named_functions
from flows.runs import Run
from flows.terminal import Observer
from tasks.config import GenerateCandidatesConfig, require_available
from tasks.errors import RunError
from tasks.store import Place, Ref
from tasks.worker import pool_of

CHECKPOINTS = ("warm_up", "update_policy")
"""Whose output is a policy."""


def generate_candidates(
    run: Run,
    *,
    prompts: int,
    samples_per_prompt: int,
    round: int | None,
    iteration: int | None,
    observer: Observer,
) -> Place:
    """Sample, or reuse what was sampled so before; without a place from the latest checkpoint.

    Raises:
        RunError: the run is in progress, or has no policy or prompts there.
    """
    # One stage, so one worker.
    config = run.config.model_copy(update={"execution": run.config.execution.model_copy(update={"workers": 1})})
    require_available(config.rollouts.engine, config.execution.engine_servers)
    with run.locked():
        plan = plan_of(run)
        externals = external_models(config, run.home)
        place, policy = checkpoint(run, plan, round, iteration, externals.base)
        data = prepared(run, plan, place)
        settings = GenerateCandidatesConfig(
            prompts=prompts,
            samples_per_prompt=samples_per_prompt,
            engine=config.rollouts.engine,
            sampling=config.rollouts.sampling,
            stop_strings=config.rollouts.stop_strings,
            access=config.model.access("chat_template_kwargs"),
        )
        reference = plan.rounds[0].reference
        pool = pool_of(run.worker_log, config.execution, named_functions(config))
        with closing(pool) as workers, interrupts_cancel(workers):
            Session(run, config, observer, workers, externals).at_once(
                "generate_candidates",
                place,
                settings,
                policy=policy,
                data=data,
                lora_base=adapted_base(config, getattr(reference, "ref", reference)),
            )
    return place


def checkpoint(run: Run, plan: Plan, round: int | None, iteration: int | None, base: Ref | None) -> tuple[Place, Ref]:
    """The policy of a place, or the latest one: of the last update, else of the warm-up, else what the run starts from."""
    found = [planned for planned in plan.stages if planned.stage in CHECKPOINTS and planned.ref is not None]
    found = [planned for planned in found if round is None or planned.place.round == round]
    found = [planned for planned in found if iteration is None or planned.place.iteration == iteration]
    if found:
        place, ref = found[-1].place, found[-1].ref
        assert ref is not None
        return place, ref
    is_any = round in (None, 1) and iteration in (None, 0)
    start = base or next((p.ref for p in plan.select("prepare_data") if p.ref is not None), None)
    if is_any and start is not None and not plan.select("warm_up"):
        return Place(1), start
    where = "" if round is None else f" of round {round}" + ("" if iteration is None else f", iteration {iteration}")
    raise RunError(f"run {run.name} has no policy{where} yet; rounds status {run.name} shows how far it is")


def prepared(run: Run, plan: Plan, place: Place) -> Ref:
    """The prompts that were known at a place."""
    found = [p.ref for p in plan.select("prepare_data") if p.ref is not None and p.place.round <= place.round]
    if not found:
        raise RunError(
            f"run {run.name} has no prompts yet; continue it first, or up to there with --until prepare_data"
        )
    return found[-1]
