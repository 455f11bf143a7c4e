"""From a plan to its execution on this machine: what is checked before, the Prefect server, the display."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.addresses import pages_of_run
from flows.config import RunConfig
from flows.outcomes import note_reported, told_reports
from flows.plan import Plan, make_plan
from flows.preview import doubts_about_workers, look_first, look_for_named, named_functions
from flows.runs import RUN_FILE, Run
from flows.server import embedded as servers
from flows.terminal.display import display_for
from flows.waiting import WAITING
from tasks import environment
from tasks.config import require_available
from tasks.contract import StageError
from tasks.errors import Mistakes, TransientError, UserError
from tasks.store import Manifest, Ref, damaged_files
from tasks.tracking import import_mlflow
from tasks.worker import pool_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that went through: the report of each round, and what could not be published."""

    run: Run
    plan: Plan
    """What was asked for, as it was planned before."""
    reports: Sequence[Ref]
    unreported: Sequence[str]
    lost_server: bool
    """Whether a Prefect server went away; its client would try for minutes to tell it the rest."""


def prepared(run: Run, config: RunConfig) -> Plan:
    """The plan of a run that may not exist yet, so that a mistake is told before anything is written."""
    mistakes, _ = look_for_named(config, run.home)
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        raise Mistakes("the configuration", [str(mistake) for mistake in mistakes])
    return make_plan(run, config)


def start(run: Run, config: RunConfig, plan: Plan, *, force: Sequence[str] = ()) -> Outcome:
    """Make or continue a run. ``force`` holds the keys of stages that run anew though they are committed."""
    require_available(config.rollouts.engine, config.execution.engine_servers)
    run.make_directory()
    is_new = not (run.root / RUN_FILE).exists()
    try:
        with run.locked():
            return begin(run, config, plan, force=force)
    except (UserError, StageError) as error:
        is_mistake = isinstance(error, UserError) or error.kind == "user"
        if is_new and is_mistake and not run.is_in_progress() and run.is_empty():
            run.remove()
        raise


def begin(run: Run, config: RunConfig, plan: Plan, *, force: Sequence[str] = ()) -> Outcome:
    """Bring a run that this process has locked to what a configuration says."""
    run.set_config(config)
    run.store.sweep()
    if force:
        set_damaged_aside(run, plan, force)
        run.raise_generations(list(force))
    elif (reports := told_reports(run, config, plan)) is not None:
        return nothing_to_do(run, plan, reports)
    return execute(run, config, plan)


def nothing_to_do(run: Run, plan: Plan, reports: Sequence[Ref]) -> Outcome:
    """What a run came to of which nothing is left: no server is asked, and no library of models imported."""
    WAITING.over()
    with display_for(len(plan.stages)) as display:
        display.note(f"nothing to do: all {len(plan.stages)} stages are committed, and reported")
    return Outcome(run=run, plan=plan, reports=reports, unreported=(), lost_server=False)


def set_damaged_aside(run: Run, plan: Plan, keys: Sequence[str]) -> None:
    """Take those outputs out of the way that are made anew because they are damaged, so that nothing is damaged then."""
    for planned in plan.stages:
        if planned.key in keys and planned.ref is not None:
            manifest = Manifest.read_if_sound(planned.ref.directory)
            if manifest is None or damaged_files(planned.ref.directory, manifest, read=True):
                run.store.set_aside(planned.ref.directory)


def execute(run: Run, config: RunConfig, plan: Plan) -> Outcome:
    """Run what is planned with live progress; raises ``StageError``."""
    with closing(pool_of(run.worker_log, config.execution, named_functions(config))) as workers:
        if has_work := any(planned.ref is None for planned in plan.stages):
            WAITING.on("starting the Prefect server and the process that holds the models")
            # Beside each other, and this process imports MLflow and Prefect meanwhile: each of the three takes seconds.
            workers.begin()
            servers.begin_prefect(run.home)
            import_mlflow(run.home)
        url, problems = prefect_server(run.home)
        # Prefect reads where its server is when it is imported.
        from flows.rlhf import run_rounds

        if has_work:
            WAITING.on("waiting for the process that holds the models")
            look_first(workers, config, look_for_named(config, run.home)[1])
        WAITING.over()
        with only_our_words(), display_for(len(plan.stages)) as display, servers.kept_alive(run.home, url):
            doubts = doubts_about_workers(config) if has_work else []
            for said in (*problems, *doubts, f"pages: {pages_of_run(run.home, run.name)}"):
                display.note(said)
            unreported = run_rounds(
                run, config, display, workers, plan=plan, awaits_server=url is None, has_looked=has_work
            )
    reports = [display.reports[number] for number in sorted(display.reports)]
    if plan.is_whole and not unreported and not display.lost_server:
        note_reported(run, config, reports)
    return Outcome(run=run, plan=plan, reports=reports, unreported=unreported, lost_server=display.lost_server)


def prefect_server(home: Path) -> tuple[str | None, list[str]]:
    """The address of the Prefect server, found or started, and what is to be told of it.

    There is no address where it still starts; the run begins without it.
    """
    asked_for = environment.prefect_api_url()
    WAITING.on("starting the Prefect server")
    try:
        url = servers.ensure_prefect(home, patience_s=servers.PATIENCE_S)
    except TransientError:
        servers.use_embedded(home, None)
        return None, []
    if asked_for in (None, url):
        return url, []
    return url, [f"{asked_for} does not answer; Prefect's pages of this run are at {url.removesuffix('/api')}"]


@contextmanager
def only_our_words() -> Iterator[None]:
    """Keep the tracebacks of failed tasks off the terminal; the Prefect server and the worker's log have them."""
    # The last one tells of every event that a server which is down did not take.
    names = ("prefect.flow_runs", "prefect.task_runs", "prefect._internal.concurrency", "prefect.events")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.propagate for logger in loggers]
    # Without a handler of its own, a logger that passes nothing on prints to standard error.
    silence = logging.NullHandler()
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(silence)
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(silence)
            logger.propagate = propagate
