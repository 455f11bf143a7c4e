"""The workers that a configuration asks for: on this machine, or over the nodes of a cluster."""

from collections.abc import Sequence
from pathlib import Path

from tasks.config import ExecutionConfig
from tasks.worker.local import local_pool
from tasks.worker.machines import ray_pool
from tasks.worker.pool import Pool


def pool_of(log: Path, execution: ExecutionConfig, functions: Sequence[str]) -> Pool:
    """As many workers as ``execution`` asks for, where it asks for them; ``functions`` are the import paths that a
    configuration names, which workers elsewhere must find as they are here."""
    return local_pool(log, execution) if execution.ray is None else ray_pool(log, execution, functions)
