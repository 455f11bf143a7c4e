"""Which worker of several a request goes to. Knows no process: workers are numbers."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST = 0
"""The worker for all that has no shard: it keeps what an update leaves in memory."""
POLL_S = 0.5
Iteration = tuple[int, int]
"""A round and an iteration of it."""


@dataclass(eq=False, slots=True)
class Request:
    """Somebody who waits for a worker."""

    shard: int | None
    iteration: Iteration = (0, 0)
    is_ahead: bool = False
    """Whether it is for an iteration to which updates are still missing, so that nothing waits for it yet."""
    worker: int | None = None
    has_worker: threading.Event = field(default_factory=threading.Event)


class Dealer:
    """Deals requests to so many workers, each of which has one at a time.

    A request without a shard goes to the first worker. One of a shard goes to the worker that had the shard last, in whose
    memory the models are that it needs, but to any other rather than wait while one is idle. The earliest iteration comes
    first, and what is ahead of the next update leaves the first worker to what that update waits for.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._idle = set(range(workers))
        self._waiting: list[Request] = []
        self._last: dict[int, int] = {}
        """The worker that had a shard last."""
        self._updated: Iteration | None = None
        """The iteration of the last update."""

    def take(self, request: Request, *, gives_up: Callable[[], bool]) -> int | None:
        """Wait for a worker; None where ``gives_up`` says so meanwhile, which is asked now and then."""
        self.ask(request)
        while not request.has_worker.wait(POLL_S):
            if gives_up():
                with self._lock:
                    if request.worker is None:
                        self._waiting.remove(request)
                        return None
        return request.worker

    def ask(self, request: Request) -> Request:
        """Have a request get a worker as soon as there is one for it."""
        with self._lock:
            self._waiting.append(request)
            self._deal()
        return request

    def give_back(self, worker: int) -> None:
        """The worker is idle again."""
        with self._lock:
            self._idle.add(worker)
            self._deal()

    def updated(self, iteration: Iteration) -> None:
        """The update of an iteration is made, so that what was ahead of it may not be any more."""
        with self._lock:
            self._updated = iteration
            self._deal()

    def _deal(self) -> None:
        while pairs := [
            (request.iteration, cost, position, -worker)
            for position, request in enumerate(self._waiting)
            for worker in self._idle
            if (cost := self._cost(request, worker)) is not None
        ]:
            _, _, position, negative = min(pairs)
            request, worker = self._waiting.pop(position), -negative
            self._idle.remove(worker)
            if request.shard is not None:
                self._last[request.shard] = worker
            request.worker = worker
            request.has_worker.set()

    def _cost(self, request: Request, worker: int) -> int | None:
        """The least is dealt first: what only the first worker may do, then what this worker has models for."""
        shard = request.shard
        if shard is None:
            return 0 if worker == FIRST else None
        if worker == FIRST and self._workers > 1 and request.is_ahead and not self._has_caught_up(request):
            return None
        if worker == self._last.get(shard, shard % self._workers):
            return 1
        # The first worker last, since some requests have no other.
        return 3 if worker == FIRST else 2

    def _has_caught_up(self, request: Request) -> bool:
        """Whether all updates before its iteration have been made meanwhile."""
        round, iteration = request.iteration
        return self._updated == (round, iteration - 1)
