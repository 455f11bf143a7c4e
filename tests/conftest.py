"""Keep every library quiet, off the network and on one thread, before any of them is imported."""

import os

from tasks import environment

environment.quieten(hub=False)
# Small tensors gain nothing from threads, and several processes that all take every core lose much.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests of whole runs wait for servers for a part of their time."""
    return 1 + (os.cpu_count() or 1)
