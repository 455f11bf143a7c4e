"""What happens in a run, told to whoever shows it: the command line, or nobody in a served run."""

from collections.abc import Mapping
from typing import Any

from tasks.contract import StageCall
from tasks.store import Ref


class Observer:
    """Hears of every stage. Called from the threads of Prefect's task runner, so that implementations must lock."""

    def stage_reused(self, call: StageCall, ref: Ref) -> None:
        """The stage's committed output was found."""

    def stage_started(self, call: StageCall) -> None:
        """The worker begins to execute the stage."""

    def stage_progress(self, call: StageCall, event: Mapping[str, Any]) -> None:
        """``done`` of ``total`` ``unit``, and ``tokens`` processed since the stage began."""

    def stage_warned(self, call: StageCall, message: str) -> None:
        """The stage saw something that does not stop it."""

    def stage_finished(self, call: StageCall, ref: Ref, seconds: float) -> None:
        """The stage committed its output."""

    def stage_failed(self, call: StageCall, message: str, *, will_retry: bool) -> None:
        """An attempt at the stage failed."""

    def server_lost(self, url: str, instead: str) -> None:
        """The Prefect server at ``url`` went away for good; the run goes on with another one."""

    def server_found(self, url: str) -> None:
        """The home's Prefect server answers at last; what was done before is shown there, and the run goes on."""

    def note(self, message: str) -> None:
        """Something worth a line that is no stage."""
