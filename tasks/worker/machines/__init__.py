"""Workers on several machines, by Ray, which is imported in the processes that stand for them alone."""

from tasks.worker.machines.pool import ray_pool

__all__ = ["ray_pool"]
