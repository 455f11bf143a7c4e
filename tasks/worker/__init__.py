"""The worker: one child process that holds the models and executes stages, and the side that supervises it."""

from tasks.worker.supervisor import Supervisor

__all__ = ["Supervisor"]
