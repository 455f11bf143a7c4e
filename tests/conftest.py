"""Keep every library quiet, off the network and on one thread, before any of them is imported."""

import os

from tasks import environment

environment.quieten(hub=False)
# Small tensors gain nothing from threads, and several processes that all take every core lose much.
os.environ.setdefault("OMP_NUM_THREADS", "1")
