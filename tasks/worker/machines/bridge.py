"""``python -m tasks.worker.machines.bridge FD ORDER``: a process beside the run that stands for a worker elsewhere.

It passes requests to an actor of a Ray cluster, and answers to the supervisor that started it. Ray lives here and not in the
process of the run: it prints as it likes, takes over signals, and ends its process when it loses the cluster. When this
process ends, however it does, Ray ends the actor.
"""

import dataclasses
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from tasks import environment
from tasks.contract import classify, describe
from tasks.errors import ConfigError, TransientError
from tasks.worker.machines.actor import Actor
from tasks.worker.machines.facts import Facts, facts_of_node, mistake_of_node
from tasks.worker.machines.order import Order, require_answer
from tasks.worker.protocol import Report, served

CONNECT_S = 30.0
ROOM_S = 120.0
"""How long a worker waits for room in the cluster: a node that was lost may take its place with it."""


class Remote:
    """One worker of the cluster; one that is lost is replaced at once, wherever there is room."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._here = facts_of_node(order.functions, os.getcwd())
        self._gpus = gpus_of(order, ray.cluster_resources())
        self._actor: Any = None
        self._facts: Facts | None = None
        self.begin()

    def begin(self) -> None:
        """Ask for an actor, and do not wait for it."""
        # No restarts and no retries of Ray's: the run retries, and a new actor's first call waits until it is there.
        remote = ray.remote(Actor).options(
            num_cpus=1,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._actor, self._facts = remote.remote(self._order.log, self._order.settings), None

    def facts(self) -> Facts:
        """What the actor's node is, once it is there and can do what is asked.

        Raises:
            ConfigError: it cannot; told in a sentence that names the node.
            TransientError: the cluster has no room.
        """
        if self._facts is None:
            probe, written = Path(self._order.log).parent / f"seen-by-nodes-{uuid.uuid4().hex}", uuid.uuid4().hex
            probe.write_text(written)
            try:
                self._facts = self._prepared(probe, written)
            finally:
                probe.unlink(missing_ok=True)
        return self._facts

    def _prepared(self, probe: Path, written: str) -> Facts:
        wanted = (os.getcwd(), str(probe), environment.passed_on(), self._order.functions)
        try:
            there, read = ray.get(self._actor.prepare.remote(*wanted), timeout=ROOM_S)
        except GetTimeoutError:
            raise TransientError(
                f"execution.ray={self._order.address}: the cluster had no room for one more worker within {ROOM_S:g} s"
            ) from None
        except RayError as error:
            # Of an actor that was never there, the last line says why.
            why = [line for line in str(error).splitlines() if line.strip()][-1].strip()
            if "ModuleNotFoundError" not in str(error) and "ImportError" not in str(error):
                raise
            raise ConfigError(
                f"execution.ray={self._order.address}: a node cannot start a worker ({why}); install the same rlhf-rounds "
                "on all nodes"
            ) from error
        mistake = mistake_of_node(self._here, there, probe=probe, written=written, read=read)
        if mistake is not None:
            raise ConfigError(mistake)
        return there

    def ask(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The answers of the actor, the last of which is what it came to."""
        try:
            there = self.facts()
            if "facts" in request:
                yield {"done": dataclasses.asdict(there)}
                return
            for answer in self._actor.ask.options(num_returns="streaming").remote(request):
                yield ray.get(answer)
        except RayError as error:
            where = "a node of the cluster" if self._facts is None else f"node {self._facts.node}"
            print(error, flush=True)
            self.begin()
            raise TransientError(
                f"the worker on {where} was lost ({type(error).__name__}: {first_line(error)}); its log is {self._order.log}"
            ) from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def gpus_of(order: Order, resources: Mapping[str, float]) -> int:
    """How many GPUs a worker reserves: one, and as many as processes train where it is the one that trains.

    Raises:
        ConfigError: the cluster has too few for all workers.
    """
    own = f"execution.workers={order.workers}"
    cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
    if cpus < order.workers:
        raise ConfigError(f"{own}: the cluster at {order.address} has {cpus} CPUs, one a worker; lower it to {cpus}")
    if order.device == "cpu" or (order.device == "auto" and gpus == 0):
        return 0
    needed = order.workers - 1 + order.train_processes
    if gpus < needed:
        raise ConfigError(
            f"{own}: the cluster at {order.address} has {gpus} GPUs, and {needed} are needed; lower it, or set "
            "execution.device to cpu"
        )
    return order.train_processes if order.is_first else 1


def connect(order: Order, answer: Report) -> None:
    """Become a driver of the cluster.

    Raises:
        ConfigError: no cluster answers, or one of other versions.
    """
    require_answer(order.address)
    how = (
        f"execution.ray={order.address}: no Ray cluster takes this machine for one of its nodes there; start it with "
        "ray start, and give the command on one of its nodes"
    )

    def give_up() -> None:
        # Ray itself cannot be told to wait for less than minutes.
        answer({"error": {"kind": "user", "message": how, "is_of_users_code": False}})
        os._exit(1)

    watch = threading.Timer(CONNECT_S, give_up)
    watch.start()
    try:
        ray.init(address=order.address, log_to_driver=False, namespace=f"rounds-{uuid.uuid4().hex}")
    except RuntimeError as error:
        if "Version mismatch" in str(error):
            told = " ".join(str(error).split())
            raise ConfigError(f"execution.ray={order.address}: {told}; install the same on all nodes") from error
        raise ConfigError(f"{how} ({first_line(error)})") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{how} ({first_line(error)})") from error
    finally:
        watch.cancel()


def main() -> None:
    """Answer one request after another until the input ends."""
    requests, answer = served(int(sys.argv[1]))
    order = Order(**json.loads(sys.argv[2]))
    worker: Remote | None = None
    problem: Exception | None = None
    try:
        connect(order, answer)
        worker = Remote(order)
    except Exception as error:
        problem = error
    while True:
        request = json.loads(requests.get())
        try:
            if worker is None:
                assert problem is not None
                raise problem
            for said in worker.ask(request):
                answer(said)
        except Exception as error:
            message = str(error) if isinstance(error, TransientError) else describe(error)
            failure = {"kind": classify(error), "message": message, "is_of_users_code": False, "log": order.log}
            answer({"error": failure})


if __name__ == "__main__":
    main()
