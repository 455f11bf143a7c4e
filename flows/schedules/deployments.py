"""Schedules as Prefect deployments: ``rounds serve`` executes what is due, and what is asked for on Prefect's pages.

There is no concurrency limit of Prefect's. Two runs of a schedule never overlap because a run has a lock, and an accelerator
serves one stage at a time because it has one too (``tasks.devices``): both are the kernel's, hold against ``rounds run`` as
well, and end with the process. A deployment's limit is a lease: a server that is restarted forgets it, and Prefect then ends
the training that held it and refuses all that come after.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

from prefect import Flow, State, flow, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.runtime import deployment as this_deployment
from prefect.runtime import flow_run as this_flow_run
from prefect.schedules import Cron
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.types.entrypoint import EntrypointType

from flows.config import RunConfig, checked
from flows.launch import only_our_words, prepared
from flows.orchestration.flow_run_log import TAG, FlowRunLog, LogDisplay
from flows.orchestration.publish import in_a_sentence
from flows.preview import named_functions
from flows.runs import create_or_open, named_run
from flows.schedules.arrivals import next_step
from flows.schedules.limits import require_within
from flows.schedules.schedules import Schedule, find_schedule, list_schedules
from tasks import environment
from tasks.contract import StageError
from tasks.errors import RunError, TransientError, UserError
from tasks.store import digest_text
from tasks.worker import pool_of

Tell = Callable[[str], None]
POLL_S = 3.0
"""So often the server is asked for what is due, and the home for schedules that changed."""
DESCRIPTION = """Goes on with the run of this name: starts it, continues it where it was stopped, or adds a round for
data that arrived since in files that match the configuration's patterns. Where there is none, it says so.

Kept by `rounds schedule`: what is edited here lasts until `rounds serve` starts again."""


@flow(name="rlhf", flow_run_name="{run}", validate_parameters=False)
def scheduled_rounds(run: str, config: RunConfig) -> State[None]:
    """Goes on with a run: starts it, continues it where it was stopped, or adds a round for data that arrived since.

    Args:
        run: The run's name. Another name starts another run.
        config: The configuration. Settings that decide results must be those of the rounds that the run has.
    """
    # Ctrl-C in the terminal of rounds serve is for rounds serve, which then ends this process in order.
    os.setpgid(0, 0)
    # What the lock of a run says of who holds it.
    sys.argv = ["rounds", "serve"]
    log = FlowRunLog(run, echo=True)
    with only_our_words():
        try:
            home = environment.home_directory(None)
            schedule = find_schedule(home, this_deployment.name)
            os.chdir(schedule.directory)
            asked_for = checked(dict(config), where="config")
            require_within(asked_for, schedule)
            state = go_on(home, run, asked_for, log)
        except (UserError, TransientError) as error:
            state = Failed(message=str(error))
        except StageError as error:
            state = state_after(error)
    if not state.is_completed():
        log.line(f"{state.name}: {state.message}", logging.WARNING if state.is_cancelled() else logging.ERROR)
    # Prefect hands the state on as an exception, of which it would log a traceback.
    for name in ("prefect.flow_runs", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return state


def go_on(home: Path, name: str, config: RunConfig, log: FlowRunLog) -> State[None]:
    """Bring a run to where its data and configuration say that it should be."""
    environment.quieten(hub=config.needs_hub())
    from flows.rlhf import run_rounds

    run = create_or_open(home, name)
    with ExitStack() as held:
        try:
            held.enter_context(run.locked())
        except RunError as error:
            name_flow_run(f"{name} · skipped")
            return Cancelled(message=str(error))
        step = next_step(run, config)
        name_flow_run(f"{name} · {step.title}")
        log.line(step.what)
        if step.config is None:
            return Completed(message=step.what)
        plan = prepared(run, step.config)
        run.set_config(step.config)
        run.store.sweep()
        pool = pool_of(run.worker_log, step.config.execution, named_functions(step.config))
        with LogDisplay(plan, log) as display, closing(pool) as workers:
            unreported = run_rounds(run, step.config, display, workers)
        display.show_results(step.config)
    for sentence in unreported:
        log.line(f"not reported: {sentence}", logging.WARNING)
    return Completed(message=f"{step.what}: done" + "".join(f"; not reported: {sentence}" for sentence in unreported))


def name_flow_run(name: str) -> None:
    """Say in the lists of Prefect's pages what this flow run does. They show no messages, and the one on a deployment's page
    hides states of other names than Prefect's."""
    with suppress(Exception), get_client(sync_client=True) as client:
        client.set_flow_run_name(this_flow_run.id, name)


def state_after(error: StageError) -> State[None]:
    """How a flow run ends whose stage failed."""
    if error.kind == "cancelled":
        return Cancelled(message="nothing that was committed is lost; the next run, or Retry, goes on")
    where = f"{error.stage}: " if error.stage else ""
    return Failed(message=f"{where}{error.message}; when it is mended, the next run, or Retry, goes on")


def deployment_of(schedule: Schedule, home: Path, known: DeploymentResponse | None) -> RunnerDeployment:
    """A schedule as Prefect is told it, where it is ``known`` already in such a way that what was paused there stays so."""
    deployment = RunnerDeployment.from_flow(
        scheduled_rounds,
        name=schedule.name,
        description=DESCRIPTION,
        schedule=Cron(schedule.cron, timezone=schedule.timezone),
        parameters={"run": schedule.name, "config": dict(schedule.config)},
        tags=[TAG, home_tag(home)],
        version=version("rlhf-rounds"),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.model_fields_set.discard("paused")
    when = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    if known is not None and [entry.schedule for entry in known.schedules] == [when]:
        deployment.schedules = None
        deployment.model_fields_set.discard("schedules")
    return deployment


def all_but_latest(scheduled: Iterable[FlowRun]) -> list[FlowRun]:
    """The overdue runs of each deployment that its schedule asked for, but for the last, which makes up for all."""
    overdue: dict[UUID | None, list[FlowRun]] = {}
    for flow_run in sorted(scheduled, key=lambda run: str(run.expected_start_time)):
        if flow_run.auto_scheduled and flow_run.state is not None and flow_run.state.name == "Late":
            overdue.setdefault(flow_run.deployment_id, []).append(flow_run)
    return [flow_run for flow_runs in overdue.values() for flow_run in flow_runs[:-1]]


def home_tag(home: Path) -> str:
    """Tells the homes that share a server from each other."""
    return f"home-{digest_text(f'{os.uname().nodename}:{home}')[:8]}"


def works_on_run(home: Path, flow_run: FlowRun) -> bool:
    """Whether some process works on the run that a flow run names."""
    with suppress(RunError):
        return named_run(home, str(flow_run.parameters.get("run"))).is_in_progress()
    return False


class Served:
    """The deployments of a home on the server, kept as its schedules are."""

    def __init__(self, home: Path, runner: Runner) -> None:
        self._home = home
        self._runner = runner
        self._told: dict[str, Schedule] = {}
        self._ids: dict[str, UUID] = {}

    async def update(self) -> list[str]:
        """Tell the server what changed in the schedules since; returns it in words."""
        changes = []
        now = {schedule.name: schedule for schedule in list_schedules(self._home)}
        for name in self._told.keys() - now.keys():
            del self._told[name]
            await self._delete(self._ids.pop(name))
            changes.append(f"{name}: no longer scheduled")
        for name, schedule in now.items():
            if self._told.get(name) != schedule:
                deployment = deployment_of(schedule, self._home, await self._known(name))
                self._ids[name] = await self._runner.aadd_deployment(deployment)
                self._told[name] = schedule
                changes.append(f"{name}: {schedule.cron} ({schedule.timezone})")
        return changes

    async def tidy(self) -> None:
        """Clear away what an earlier process left: deployments without a schedule, runs of the dead, and missed runs."""
        names = {schedule.name for schedule in list_schedules(self._home)}
        mine = DeploymentFilter(tags={"all_": [home_tag(self._home)]})
        async with get_client() as client:
            for deployment in await client.read_deployments(deployment_filter=mine):
                if deployment.name not in names:
                    await client.delete_deployment(deployment.id)

            async def found(*states: StateType) -> list[FlowRun]:
                chosen = FlowRunFilter(state={"type": {"any_": list(states)}})
                return await client.read_flow_runs(flow_run_filter=chosen, deployment_filter=mine)

            for flow_run in await found(StateType.PENDING, StateType.RUNNING, StateType.CANCELLING):
                if not works_on_run(self._home, flow_run):
                    message = "its process ended without a word; the next run, or Retry, goes on"
                    await client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)
            for flow_run in all_but_latest(await found(StateType.SCHEDULED)):
                message = "nothing served this home when it was due"
                await client.set_flow_run_state(flow_run.id, Cancelled(message=message), force=True)

    async def _known(self, name: str) -> DeploymentResponse | None:
        """The deployment of that name, if there is one; refused if another home made it on a server that both use."""
        async with get_client() as client:
            try:
                found = await client.read_deployment_by_name(f"{scheduled_rounds.name}/{name}")
            except ObjectNotFound:
                return None
        if home_tag(self._home) not in found.tags:
            raise RunError(
                f"the Prefect server has a schedule {name} of another home; choose another --name, or delete its "
                f"deployment {scheduled_rounds.name}/{name} there"
            )
        return found

    async def _delete(self, deployment_id: UUID) -> None:
        async with get_client() as client:
            await client.delete_deployment(deployment_id)


def serve(home: Path, tell: Tell) -> None:
    """Execute what is due until a signal comes. Raises ``KeyboardInterrupt`` for Ctrl-C; SIGTERM is an order to end well."""
    if asyncio.run(serve_until_told(home, tell)) == signal.SIGINT:
        raise KeyboardInterrupt


async def our_flow(flow_run: FlowRun) -> Flow[[str, RunConfig], State[None]]:
    """The flow of every flow run: Prefect would load the code that the server names, to look for hooks in it."""
    del flow_run
    return scheduled_rounds


async def serve_until_told(home: Path, tell: Tell) -> signal.Signals:
    # Whatever the server says by then that a deployment of ours executes.
    environment.execute_only(f"{__name__}.{scheduled_rounds.fn.__name__}")
    runner = Runner(name=TAG, query_seconds=POLL_S, pause_on_shutdown=False, limit=None)
    served = Served(home, runner)
    await served.tidy()
    for change in await served.update():
        tell(change)
    told: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.put_nowait, number)
    # Not Runner.start, which gives up on a server that is down for a minute, and ends what runs.
    start_what_is_due = runner._get_and_submit_flow_runs
    problem = ""
    async with runner:
        assert runner._hook_runner is not None
        runner._hook_runner._resolve_flow = our_flow
        while True:
            with suppress(TimeoutError):
                number = await asyncio.wait_for(told.get(), POLL_S)
                break
            try:
                for change in await served.update():
                    tell(change)
                await start_what_is_due()
                problem = ""
            except Exception as error:
                if in_a_sentence(error) != problem:
                    problem = in_a_sentence(error)
                    tell(f"{problem}; trying again every {POLL_S:g} s")
        # Prefect's observers end with an error of their own.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        await runner.astop()
    return number
