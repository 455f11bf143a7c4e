"""A Ray cluster of several nodes, each of which is some processes of this machine, and a home whose runs use it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "flows"))
STORE_BYTES = 100 * 2**20


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Of the cluster and of runs: a directory in which an actor's child notes what it executes, and dies where it is told."""
    directory = tmp_path_factory.mktemp("watched")
    (directory / "sitecustomize.py").write_text(WATCHED)
    paths = os.pathsep.join([str(directory), str(ROOT)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "WATCHED": str(directory)}


class Cluster:
    """Nodes by name. ``ray`` is asked in processes of its own, so that this one keeps its signals."""

    def __init__(self, environment):
        from ray.cluster_utils import Cluster as Nodes

        os.environ.update(environment, RAY_USAGE_STATS_ENABLED="0")
        self.options = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
        # The head has no room for workers, and so none is lost with it.
        self.nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **self.options})
        self.address = self.nodes.address
        self.added = [self.add(), self.add()]

    def add(self):
        return self.nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def kill(self, number):
        """Take a node away as a power failure would."""
        self.nodes.remove_node(self.added.pop(number), allow_graceful=False)

    def close(self):
        self.nodes.shutdown()
