"""Whole runs by workers on nodes of a Ray cluster: the bytes of one worker here, whatever becomes of a worker or a node."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from direct_run import run_directly

from flows.config.reading import load_config
from tasks.store import Manifest

TINY = ROOT / "tests" / "flows" / "tiny.yaml"


def digests(home, name):
    root = home / "runs" / name / "stages"
    return {
        str(path.parent.relative_to(root)): Manifest.read(path.parent).digest for path in root.rglob("manifest.json")
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The outputs of one worker in this process."""
    home = tmp_path_factory.mktemp("one")
    run_directly(home, "one", load_config(str(TINY), []))
    return digests(home, "one")


@pytest.fixture
def start(tmp_path, cluster, watched):
    """Starts a run by two workers of the cluster, as a user would."""
    watched.forget()
    command = [str(Path(sys.executable).with_name("rounds")), "--home", str(tmp_path)]

    def start(name, **settings):
        given = {"execution.workers": 2, "execution.ray": cluster.address, "checkpoint_every": 2, **settings}
        overrides = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        return subprocess.Popen(
            [*command, "run", str(TINY), "--name", name, *overrides],
            cwd=ROOT,
            env=watched.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    yield start
    subprocess.run([*command, "down"], env=watched.environment, check=True, capture_output=True)


def finish(process, *, code=0):
    out, err = process.communicate(timeout=280)
    assert process.returncode == code, f"{out}\n{err}"
    return out, err


def wait_for(condition, process=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def is_alive(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def more_than_once(watched):
    counted = Counter(label for *_, label in watched.executed())
    return {label: count for label, count in counted.items() if count > 1}


def test_all_outputs_have_the_same_digests_by_workers_on_two_nodes(tmp_path, start, watched, expected):
    finish(start("run"))
    assert digests(tmp_path, "run") == expected
    assert more_than_once(watched) == {}
    executed = watched.executed()
    assert len(executed) == len(expected)
    assert len({node for _, _, node, label in executed if ".s" in label}) == 2
    assert len({node for _, _, node, label in executed if ".s" not in label}) == 1
    assert not any(is_alive(child) or is_alive(actor) for child, actor, _, _ in executed)
    assert not list((tmp_path / "runs" / "run").glob("seen-by-nodes-*"))


def test_an_actor_killed_in_its_shard_and_a_run_cancelled_and_continued_change_nothing(
    tmp_path, start, watched, expected
):
    lost, cancelled = "generate_rollouts-r1.i1.s1", "score_rollouts-r1.i2.s0"
    watched.stand_in(lost)
    watched.stand_in(cancelled)
    process = start("run")
    wait_for(lambda: watched.stands(lost), process)
    (actor,) = [actor for _, actor, _, label in watched.executed() if label == lost]
    os.kill(actor, signal.SIGKILL)
    wait_for(lambda: watched.stands(cancelled), process)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, code=130)
    assert re.search(r"shard 2: the worker on node \S+ was lost \(\w+: .+\); its log is \S+/worker(-2)?\.log", err)
    assert more_than_once(watched) == {lost: 2}
    wait_for(lambda: not any(is_alive(child) or is_alive(actor) for child, actor, _, _ in watched.executed()))

    finish(start("run"))
    assert digests(tmp_path, "run") == expected


@pytest.mark.parametrize("label", ["update_policy-r1.i1", "score_rollouts-r1.i1.s1"])
def test_a_node_lost_in_the_middle_of_a_stage_is_replaced_by_one_that_comes(
    tmp_path, start, cluster, watched, expected, label
):
    name = label.replace(".", "-")
    watched.stand_in(label)
    process = start(name)
    wait_for(lambda: watched.stands(label), process)
    (node,) = [node for _, _, node, own in watched.executed() if own == label]
    cluster.lose(node)
    cluster.add()
    _, err = finish(process)
    assert digests(tmp_path, name) == expected, err
    nodes = [own for _, _, own, executed in watched.executed() if executed == label]
    assert len(nodes) == 2
    assert nodes[0] == node != nodes[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"execution.workers": 5}, "execution.workers=5: the cluster at {address} has 2 CPUs, one a worker; lower it"),
        ({"execution.device": "cuda"}, "execution.workers=2: the cluster at {address} has 0 GPUs, and 2 are needed"),
        ({"execution.ray": "127.0.0.1:1"}, "execution.ray=127.0.0.1:1: no Ray cluster answers there"),
    ],
)
def test_what_a_cluster_cannot_do_is_told_before_anything_is_made(tmp_path, start, cluster, settings, sentence):
    _, err = finish(start("run", **settings), code=2)
    assert f"error: {sentence.format(address=cluster.address)}" in err
    assert not (tmp_path / "runs" / "run").exists()
