"""The log of a flow run, on Prefect's pages."""

import io
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from prefect.logging import get_run_logger
from prefect.logging.loggers import PrefectLogAdapter

from flows.config import RunConfig
from flows.plan import Plan
from flows.terminal import Observer
from flows.terminal.display import LineDisplay
from tasks.contract import StageCall
from tasks.store import Ref

TAG = "rounds"
EXPECTED = ("", "not run yet")


class FlowRunLog:
    """The log that Prefect's page of this flow run shows, and where it is echoed, a line each in the terminal."""

    def __init__(self, run: str, *, echo: bool) -> None:
        self._run = run
        self._echo = echo
        logger = get_run_logger()
        assert isinstance(logger, PrefectLogAdapter)
        # One of its own, so that Prefect's lines stay out unless they are errors.
        self._logger = logger.getChild(TAG)
        self._logger.setLevel(logging.INFO)

    def line(self, text: str, level: int = logging.INFO) -> None:
        self._logger.log(level, "%s", text)
        if not self._echo:
            return
        try:
            print(f"{time.strftime('%H:%M:%S')}  {self._run}: {text}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            # Somebody killed rounds serve. This run goes on, can still be cancelled, and has nobody left to talk to.
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class LogDisplay(LineDisplay):
    """Lines in the flow run's log."""

    def __init__(self, plan: Plan, log: FlowRunLog) -> None:
        super().__init__(len(plan.stages), sys.stderr)
        self._log = log
        self._reasons = {(planned.stage, planned.place): planned.reason for planned in plan.stages}

    def line(self, text: str, style: str = "") -> None:
        self._log.line(text, logging.WARNING if style == "yellow" else logging.INFO)

    def stage_started(self, call: StageCall) -> None:
        with self._lock:
            super().stage_started(call)
            reason = self._reasons.get((call.stage, call.place), "")
            if reason not in EXPECTED:
                self.line(f"  because: {reason}")

    def show_results(self, config: RunConfig) -> None:
        """The table of all rounds."""
        from rich.console import Console

        from flows.outcomes import result_columns, summary_of
        from flows.terminal.views.runs import results_table

        reports = [summary_of(self.reports[number]) for number in sorted(self.reports)]
        text = io.StringIO()
        Console(file=text, width=160).print(results_table(result_columns(config), reports))
        self.line(f"results\n{text.getvalue().rstrip()}")


class ToldToo(Observer):
    """Tells two observers: who shows the run, and its log on Prefect's pages."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._both = (first, second)

    def stage_reused(self, call: StageCall, ref: Ref) -> None:
        for observer in self._both:
            observer.stage_reused(call, ref)

    def stage_started(self, call: StageCall) -> None:
        for observer in self._both:
            observer.stage_started(call)

    def stage_progress(self, call: StageCall, event: Mapping[str, Any]) -> None:
        for observer in self._both:
            observer.stage_progress(call, event)

    def stage_warned(self, call: StageCall, message: str) -> None:
        for observer in self._both:
            observer.stage_warned(call, message)

    def stage_finished(self, call: StageCall, ref: Ref, seconds: float) -> None:
        for observer in self._both:
            observer.stage_finished(call, ref, seconds)

    def stage_failed(self, call: StageCall, message: str, *, will_retry: bool) -> None:
        for observer in self._both:
            observer.stage_failed(call, message, will_retry=will_retry)
