"""What a run asks of whatever executes its stages: one process, several on this machine, or some elsewhere."""

from collections.abc import Callable
from typing import Any, Protocol

from tasks.config import ModelChecks
from tasks.contract import PreviewConfig, StageCall
from tasks.store import Ref
from tasks.worker.protocol import Report


class Workers(Protocol):
    """One worker, or several that look like one. Calls come from several threads at once."""

    def begin(self) -> None:
        """Start what is not there yet, and do not wait for it; what has died is replaced."""

    def run(self, call: StageCall, *, report: Report, timeout_s: float | None, is_cancelled: Callable[[], bool]) -> Ref:
        """Execute a call; raise ``StageError`` where that fails."""

    def check_models(self, checks: ModelChecks, *, timeout_s: float | None, is_cancelled: Callable[[], bool]) -> None:
        """Look at a run's models; raise ``StageError`` that tells their mistakes."""

    def preview(self, config: PreviewConfig, *, report: Report, timeout_s: float | None) -> dict[str, Any]:
        """What ``tasks.preview.look`` finds."""

    def cancel(self) -> None:
        """End what runs and refuse further calls; safe from a signal handler and from another thread."""

    def close(self) -> None:
        """End all processes."""
