"""One execution of a run: its workers, its observer, and the Prefect tasks that send stages to the workers."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import TaskRun
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, State
from prefect.tasks import exponential_backoff
from prefect.utilities.annotations import quote

from flows.config import RunConfig
from flows.orchestration.absent_server import retried
from flows.orchestration.interrupts import interrupts_cancel
from flows.orchestration.publish import log_rounds, publish_round
from flows.plan import model_checks, stage_call
from flows.runs import Run
from flows.server import is_healthy
from flows.state import Externals, Output, RoundState
from flows.terminal import Observer
from tasks.config import StageConfig
from tasks.contract import StageCall, StageError, worth_retrying
from tasks.store import Manifest, Place, Ref, drop_recoverable, flat
from tasks.worker import Workers

CANCEL_POLL_S = 5.0


class Session:
    """One execution of a run: its workers, its observer, and the Prefect tasks that send stages to the workers."""

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        observer: Observer,
        workers: Workers,
        externals: Externals,
        *,
        has_looked: bool = False,
    ) -> None:
        """``has_looked`` says that a worker has looked at the models before there was data."""
        self.run = run
        self.config = config
        self.externals = externals
        self.observer = observer
        self.workers = workers
        self.unreported: list[str] = []
        self._generations = run.generations
        self._tasks: dict[str, Task[..., State[Ref] | Ref]] = {}
        self._futures: list[PrefectFuture[State[Ref] | Ref]] = []
        self._found: Counter[str] = Counter()
        """How many outputs of each stage of this round were found before anything was submitted for them."""
        self._micro_batch_divisor: dict[str, int] = {}
        self._checkpoints: list[Ref] = []
        self._data: Ref | None = None
        self._checked: set[Ref | None] = {None} if has_looked else set()
        self._check_lock = threading.Lock()
        self._cancel_lock = threading.Lock()
        self._cancel_checked = time.monotonic()
        self._cancelled = False
        self._flow_run_id: UUID | None = None

    def __call__(self, stage: str, place: Place, config: StageConfig, **inputs: Output) -> Output:
        """Find a stage's committed output, or submit the stage; it waits for the futures among its inputs."""
        call = stage_call(self.run, self.config, stage, place, config, self._generations)
        if (done := self._committed_before(call, inputs)) is not None:
            return done
        future = self._task(stage).with_options(task_run_name=call.label).submit(quote(call), inputs)
        self._futures.append(future)
        return future

    def at_once(self, stage: str, place: Place, config: StageConfig, **inputs: Output) -> Ref:
        """A stage's output here and now, without a Prefect task."""
        call = stage_call(self.run, self.config, stage, place, config, self._generations, inputs)
        if (done := self._committed_before(call, inputs)) is not None:
            return done
        with interrupts_cancel(self.workers):
            return retried(lambda: self._execute(call), self.config.execution.retries)

    def finished_unseen(self, report: Output | None, why: str) -> None:
        """All is done, and Prefect never heard of it; MLflow is told all the same of a round that is done."""
        problems = [] if report is None else log_rounds(self.run, self.config, report)[1]
        self.unreported = [*problems, f"Prefect: {why}; run the same command again once it works"]

    def _committed_before(self, call: StageCall, inputs: Mapping[str, Any]) -> Ref | None:
        """The output of a stage whose inputs are all there, if it is there too: nothing is left for a task to do."""
        if any(isinstance(made_from, PrefectFuture) for made_from in flat(inputs)):
            return None
        call = call.with_inputs(inputs)
        done = self.run.store.find(call.recipe())
        if done is not None:
            self._found[call.stage] += 1
            self.observer.stage_reused(call, done)
            self._committed(call, done)
        return done

    def tell_found(self) -> None:
        """Show in Prefect, as one task, what was committed before: a task for each would take longer than to find them."""
        found, self._found = self._found, Counter()
        if not found:
            return
        what = ", ".join(f"{number} × {stage}" for stage, number in found.items())
        task: Task[[], State[None]] = Task(
            fn=lambda: Completed(name="Reused", message=f"committed before: {what}"),
            name="reused",
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        task.with_options(task_run_name=f"reused: {found.total()} stages").submit().wait()

    def publish(self, number: int, state: RoundState) -> PrefectFuture[list[str]]:
        """Tell MLflow and Prefect of a round, beside the next one: a slow tracking server must not hold up training."""

        def tell(state: RoundState) -> list[str]:
            assert state.report is not None, "a round ends with its report"
            return publish_round(self.run, self.config, state.report)

        task = Task(
            fn=tell,
            name="publish_round",
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        return task.with_options(task_run_name=f"publish_round-r{number}").submit(state)

    def finish_round(self) -> None:
        """Wait for all that was submitted; raise the first real failure."""
        self.tell_found()
        futures, self._futures = self._futures, []
        for future in futures:
            future.wait()
        # The round's last checkpoint is kept, and no other is needed after it.
        self.run.store.drop_handed_on()
        for future in futures:
            # In the order of submission, what failed comes before what waited for it.
            if not future.state.is_completed():
                future.state.result()

    def is_cancelled(self) -> bool:
        """Whether this flow run was cancelled in the Prefect UI: a local run is never told, it has to ask."""
        with self._cancel_lock:
            if self._cancelled or time.monotonic() - self._cancel_checked < CANCEL_POLL_S:
                return self._cancelled
            self._cancel_checked = time.monotonic()
        # A client would try for a minute to reach a server that is down, and the stage's answers would wait.
        if self._flow_run_id is None or not is_healthy(PREFECT_API_URL.value() or ""):
            return False
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(self._flow_run_id).state
        except Exception:
            # A server that does not answer must not stop the training; the next poll asks again.
            return False
        self._cancelled = state is not None and (state.is_cancelling() or state.is_cancelled())
        return self._cancelled

    def tell_cancelled(self) -> None:
        """Say that the flow run is cancelled: to Prefect it is one that failed, or is still being cancelled."""
        if self._flow_run_id is None:
            return
        with suppress(Exception), get_client(sync_client=True) as client:
            client.set_flow_run_state(self._flow_run_id, Cancelled(), force=True)

    def belongs_to(self, flow_run_id: UUID | None) -> None:
        """Name the flow run whose cancellation ends this session."""
        self._flow_run_id = flow_run_id

    def _task(self, stage: str) -> Task[..., State[Ref] | Ref]:
        if stage not in self._tasks:
            self._tasks[stage] = Task(
                fn=self._supervise,
                name=stage,
                retries=self.config.execution.retries,
                retry_delay_seconds=exponential_backoff(backoff_factor=1),
                retry_jitter_factor=0.5,
                retry_condition_fn=is_worth_retrying,
                # The stage store is the truth: Prefect's own cache has given wrong results and is a second commit point.
                cache_policy=NO_CACHE,
                persist_result=False,
            )
        return self._tasks[stage]

    def _supervise(self, call: StageCall, inputs: dict[str, Any]) -> State[Ref] | Ref:
        """A stage's Prefect task: reuse its committed output, or have a worker make it."""
        call = call.with_inputs(inputs)
        if (done := self.run.store.find(call.recipe())) is not None:
            self.observer.stage_reused(call, done)
            self._committed(call, done)
            return Completed(name="Reused", message=f"committed as {done.path}", data=done)
        return self._execute(call)

    def _execute(self, call: StageCall) -> Ref:
        """Have a worker make a stage's output."""
        self._check_models()
        started = time.monotonic()
        fingerprint = call.recipe().fingerprint
        divisor = self._micro_batch_divisor.get(fingerprint, 1)
        try:
            ref = self.workers.run(
                call.with_smaller_micro_batch(divisor),
                report=lambda event: self._tell(call, event),
                timeout_s=self.config.execution.stage_timeout_s,
                is_cancelled=self.is_cancelled,
            )
        except StageError as error:
            if error.kind == "memory":
                self._micro_batch_divisor[fingerprint] = 2 * divisor
            self.observer.stage_failed(call, error.message, will_retry=worth_retrying(error))
            raise
        self.observer.stage_finished(call, ref, time.monotonic() - started)
        self._committed(call, ref)
        return ref

    def _check_models(self) -> None:
        """Refuse models that the run could not use: before a first stage executes, and again once its data is there.

        Where all is committed nothing executes, and nothing is looked at. In a worker, which imports what that takes
        anyway.
        """
        with self._check_lock:
            if self._data not in self._checked:
                self.workers.check_models(
                    model_checks(self.config, self.externals, self._data),
                    timeout_s=self.config.execution.stage_timeout_s,
                    is_cancelled=self.is_cancelled,
                )
                self._checked.add(self._data)

    def _committed(self, call: StageCall, ref: Ref) -> None:
        if call.stage == "prepare_data":
            # All other stages of the round wait for it.
            self._data = ref
        if call.stage == "update_policy":
            # No stage waits for an earlier one: this update had the rollouts of all shards. With a lag, all are kept.
            self.run.store.drop_handed_on(but=[ref.directory.name])
        self._keep_newest_checkpoints(call, ref)

    def _keep_newest_checkpoints(self, call: StageCall, ref: Ref) -> None:
        """Drop the weights of checkpoints beyond ``keep_checkpoints``, which is more than the lag: all that was made of them
        is committed by now."""
        if self.config.keep_checkpoints is None or call.stage != "update_policy":
            return
        if call.keeps_recoverable:
            self._checkpoints.append(ref)
        while len(self._checkpoints) > self.config.keep_checkpoints:
            oldest = self._checkpoints.pop(0).directory
            drop_recoverable(oldest, Manifest.read(oldest))

    def _tell(self, call: StageCall, event: Mapping[str, Any]) -> None:
        if "worker" in event:
            self.observer.stage_started(call)
        elif "warning" in event:
            self.observer.stage_warned(call, event["warning"])
        else:
            self.observer.stage_progress(call, event)


def is_worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's retry condition."""
    del task, task_run
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and worth_retrying(error)
