"""Several workers that look like one: shards side by side, the rest on the first. How a worker is made is not known here."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tasks.config import ModelChecks
from tasks.contract import PreviewConfig, StageCall, StageError, worth_retrying
from tasks.store import Place, Ref, directory_of
from tasks.worker.dealer import Dealer, Request
from tasks.worker.interface import Workers
from tasks.worker.protocol import Report

GENERATION, UPDATE = "generate_rollouts", "update_policy"


def samples_ahead(call: StageCall) -> bool:
    """Whether rollouts come from an earlier policy than the one that will learn from them, as ``rollouts.lag`` has it."""
    if call.stage != GENERATION or call.place.iteration == 1:
        return False
    policy, before = call.inputs["policy"], Place(call.place.round, call.place.iteration - 1)
    assert isinstance(policy, Ref)
    return not policy.directory.parent.match(directory_of(UPDATE, before))


class Pool:
    """Deals calls to its members. A member that fails costs the one stage that it had: the others go on."""

    def __init__(self, members: Sequence[Workers]) -> None:
        self._members = tuple(members)
        self._dealer = Dealer(len(members))
        self._cancelled = threading.Event()

    def begin(self) -> None:
        """Start all members side by side."""
        for member in self._members:
            member.begin()

    def run(self, call: StageCall, *, report: Report, timeout_s: float | None, is_cancelled: Callable[[], bool]) -> Ref:
        """Execute a call on the member that it is dealt to, of which ``report`` is told first, as ``{"worker": number}``."""
        iteration = (call.place.round, call.place.iteration)
        request = Request(call.place.shard, iteration, is_ahead=samples_ahead(call))
        with self._dealt(request, call.label, is_cancelled) as number:
            report({"worker": number})
            ref = self._members[number].run(call, report=report, timeout_s=timeout_s, is_cancelled=is_cancelled)
            if call.stage == UPDATE:
                self._dealer.updated(iteration)
            return ref

    def check_models(self, checks: ModelChecks, *, timeout_s: float | None, is_cancelled: Callable[[], bool]) -> None:
        """Look at a run's models in the first member."""
        with self._dealt(Request(None), "", is_cancelled) as number:
            self._members[number].check_models(checks, timeout_s=timeout_s, is_cancelled=is_cancelled)

    def preview(self, config: PreviewConfig, *, report: Report, timeout_s: float | None) -> dict[str, Any]:
        """What the first member finds."""
        with self._dealt(Request(None), "", lambda: False) as number:
            return self._members[number].preview(config, report=report, timeout_s=timeout_s)

    def cancel(self) -> None:
        """End all members and refuse further calls."""
        self._cancelled.set()
        for member in self._members:
            member.cancel()

    def close(self) -> None:
        for member in self._members:
            member.close()

    @contextmanager
    def _dealt(self, request: Request, label: str, is_cancelled: Callable[[], bool]) -> Iterator[int]:
        """The number of a member that nobody else has meanwhile."""
        number = self._dealer.take(request, gives_up=lambda: self._cancelled.is_set() or is_cancelled())
        if number is None:
            self.cancel()
            raise StageError("cancelled", "the run was cancelled", stage=label)
        try:
            yield number
        except StageError as error:
            if error.kind == "cancelled":
                self.cancel()
            elif worth_retrying(error):
                # One that died has its libraries again by the time of the next attempt.
                self._members[number].begin()
            raise
        finally:
            self._dealer.give_back(number)
