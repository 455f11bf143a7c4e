"""The workers of a run on the nodes of a Ray cluster, behind the interface of those on this machine."""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tasks import environment
from tasks.config import ExecutionConfig
from tasks.errors import ConfigError
from tasks.worker.dealer import Request
from tasks.worker.local import log_of_worker
from tasks.worker.machines.facts import Facts, unlike
from tasks.worker.machines.order import Order, require_answer
from tasks.worker.pool import Pool
from tasks.worker.supervisor import Supervisor

BRIDGE = "tasks.worker.machines.bridge"


class RayPool(Pool):
    """A pool whose members work only where all of their nodes can do the same."""

    def __init__(self, members: Sequence[Supervisor], address: str) -> None:
        super().__init__(members)
        self._supervisors, self._address = tuple(members), address
        self._lock = threading.Lock()
        self._is_alike = False

    def begin(self) -> None:
        """Start all members; the first time, wait until all are there and known to be alike.

        Raises:
            ConfigError: there is no cluster, or two workers have other hardware.
            StageError: a node cannot do what is asked, or there is no room.
        """
        with self._lock:
            if not self._is_alike:
                require_answer(self._address)
            super().begin()
            if not self._is_alike:
                mistake = unlike([facts_from(member) for member in self._supervisors])
                if mistake is not None:
                    raise ConfigError(mistake)
                self._is_alike = True

    @contextmanager
    def _dealt(self, request: Request, label: str, is_cancelled: Callable[[], bool]) -> Iterator[int]:
        if not self._is_alike:
            self.begin()
        with super()._dealt(request, label, is_cancelled) as number:
            yield number


def facts_from(member: Supervisor) -> Facts:
    return Facts(**member.ask({"facts": True}, "", report=lambda _: None, timeout_s=None, is_cancelled=lambda: False))


def ray_pool(log: Path, execution: ExecutionConfig, functions: Sequence[str]) -> RayPool:
    """As many workers as ``execution`` asks for, over the nodes of its cluster. ``functions`` are all that it names.

    Raises:
        ConfigError: Ray is not installed.
    """
    assert execution.ray is not None
    if find_spec("ray") is None:
        raise ConfigError(
            f"execution.ray={execution.ray}: the package ray is not installed here; pip install 'rlhf-rounds[ray]'"
        )
    members = []
    for number in range(execution.workers):
        own = log_of_worker(log, number)
        order = Order(
            address=execution.ray,
            log=str(own.absolute()),
            settings=environment.of_worker(0, execution.workers),
            functions=functions,
            device=execution.device,
            workers=execution.workers,
            train_processes=execution.train_processes,
            is_first=number == 0,
        )
        # What Ray says here lies beside what the worker says there: two machines would write over each other in one file.
        here = own.with_stem(own.stem.replace("worker", "ray", 1))
        members.append(Supervisor(here, command=(BRIDGE, json.dumps(dataclasses.asdict(order)))))
    return RayPool(members, execution.ray)
