"""A Ray cluster of several nodes, each of which is some processes of this machine, and a home whose runs use it."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("ray") is None:
    # .ci/ray runs them, in an environment that has it.
    collect_ignore_glob = ["test_*.py"]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "flows"))
STORE_BYTES = 100 * 2**20
# Imported by every process: a worker notes what it executes and where, and stands still where it is told to.
WATCHED = """
import sys

if "tasks.worker.child" in sys.orig_argv:
    import os, pathlib, time
    import tasks.contract

    DIRECTORY = pathlib.Path(os.environ["WATCHED"])
    execute = tasks.contract.execute

    def watched(call, models, report, **options):
        with (DIRECTORY / "executed").open("a") as stream:
            print(os.getpid(), os.getppid(), os.environ.get("RAY_RAYLET_PID"), call.label, file=stream)

        def tell(event):
            report(event)
            try:
                (DIRECTORY / call.label).rename(DIRECTORY / f"{call.label} stands")
            except FileNotFoundError:
                return
            time.sleep(600)

        return execute(call, models, tell, **options)

    tasks.contract.execute = watched
"""


class Watched:
    """What actors' children note, and where they stand still."""

    def __init__(self, directory):
        self.directory = directory
        (directory / "sitecustomize.py").write_text(WATCHED)
        paths = os.pathsep.join([str(directory), str(ROOT)])
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "WATCHED": str(directory)}

    def stand_in(self, label):
        """Have the next execution of this stage stand still in its middle."""
        (self.directory / label).touch()

    def stands(self, label):
        return (self.directory / f"{label} stands").exists()

    def executed(self):
        """Process of the child, of its actor and of the node, and the stage, in the order of executions."""
        path = self.directory / "executed"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(child), int(actor), int(node), label) for child, actor, node, label in map(str.split, lines)]

    def forget(self):
        (self.directory / "executed").unlink(missing_ok=True)


class Cluster:
    """A head without room for workers, so that none is lost with it, and nodes with room for one worker each."""

    def __init__(self, environment):
        os.environ.update(environment, RAY_USAGE_STATS_ENABLED="0")
        from ray.cluster_utils import Cluster as Nodes

        options = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self.nodes = Nodes(initialize_head=True, head_node_args=options)
        self.address = self.nodes.address
        self.added = []

    def add(self):
        self.added.append(self.nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        self.nodes.wait_for_nodes()

    def lose(self, process):
        """Take away the node whose raylet is this process, as a power failure would."""
        (node,) = [own for own in self.added if own.all_processes["raylet"][0].process.pid == process]
        self.added.remove(node)
        self.nodes.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="session")
def watched(tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="session")
def cluster(watched):
    cluster = Cluster(watched.environment)
    try:
        cluster.add()
        cluster.add()
        yield cluster
    finally:
        cluster.nodes.shutdown()
