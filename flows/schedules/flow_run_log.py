"""The log of a served flow run, on Prefect's pages."""

import io
import logging
import os
import sys
import time

from prefect.logging import get_run_logger
from prefect.logging.loggers import PrefectLogAdapter

from flows.config import RunConfig
from flows.plan import Plan
from flows.terminal.display import LineDisplay
from tasks.contract import StageCall

TAG = "rounds"
EXPECTED = ("", "not run yet")


class FlowRunLog:
    """The log that Prefect's page of this flow run shows, and a line each in the terminal of ``rounds serve``."""

    def __init__(self, run: str) -> None:
        self._run = run
        logger = get_run_logger()
        assert isinstance(logger, PrefectLogAdapter)
        # One of its own, so that Prefect's lines stay out unless they are errors.
        self._logger = logger.getChild(TAG)
        self._logger.setLevel(logging.INFO)

    def line(self, text: str, level: int = logging.INFO) -> None:
        self._logger.log(level, "%s", text)
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
        from flows.terminal.views import results_table

        reports = [summary_of(self.reports[number]) for number in sorted(self.reports)]
        text = io.StringIO()
        Console(file=text, width=160).print(results_table(result_columns(config), reports))
        self.line(f"results\n{text.getvalue().rstrip()}")
