"""The workers of a run on this machine: a process each, with a device each where there are any."""

from pathlib import Path

from tasks import environment
from tasks.config import ExecutionConfig
from tasks.worker.pool import Pool
from tasks.worker.supervisor import Supervisor


def local_pool(log: Path, execution: ExecutionConfig) -> Pool:
    """As many workers as ``execution`` asks for; each has a log of its own, ``log`` or one beside it."""
    return Pool(
        [
            Supervisor(log_of_worker(log, number), settings=environment.of_worker(number, execution.workers))
            for number in range(execution.workers)
        ]
    )


def log_of_worker(log: Path, number: int) -> Path:
    """worker.log of the first, then worker-2.log, worker-3.log, …"""
    return log if number == 0 else log.with_stem(f"{log.stem}-{number + 1}")
