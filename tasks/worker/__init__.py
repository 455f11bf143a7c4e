"""The workers: child processes that hold the models and execute stages, and the side that supervises them."""

from tasks.worker.interface import Workers
from tasks.worker.local import local_pool
from tasks.worker.placed import pool_of
from tasks.worker.pool import Pool
from tasks.worker.supervisor import Supervisor

__all__ = ["Pool", "Supervisor", "Workers", "local_pool", "pool_of"]
