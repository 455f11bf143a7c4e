"""Whole runs by several workers: the same bytes as by one, whatever becomes of a worker or of the run."""

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, TINY, overrides, wait_for
from fake_runs import document, finished_run

from flows.config.reading import load_config
from flows.outcomes import stage_statuses
from flows.plan import plan_of
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.round import rlhf_round
from flows.runs.workspace import create_or_open
from flows.terminal.logs import log_files
from tasks.contract import execution
from tasks.contract.resident import ResidentModels
from tasks.store import Store

TWO = {"execution.workers": 2, "checkpoint_every": 2}
# Imported by every process: a worker notes what it executes, and dies or stands still where it is told to.
WATCHED = """
import sys

if "tasks.worker.child" in sys.orig_argv:
    import os, pathlib, signal, time
    import tasks.contract
    from tasks.contract import execution

    DIRECTORY = pathlib.Path(os.environ["WATCHED"])
    execute, remade = tasks.contract.execute, execution.remade

    def note(file, text):
        with (DIRECTORY / file).open("a") as stream:
            print(os.getpid(), text, file=stream)

    def watched(call, models, report, **options):
        note("executed", call.label)

        def tell(event):
            report(event)
            if call.label == os.environ.get("DIES_IN") and not (DIRECTORY / "died").exists():
                note("died", call.label)
                os.kill(os.getpid(), signal.SIGKILL)
            if call.label == os.environ.get("STANDS_IN") and not (DIRECTORY / "stands").exists():
                note("stands", call.label)
                time.sleep(600)

        return execute(call, models, tell, **options)

    def noted(ref, *others):
        note("remade", ref.path)
        return remade(ref, *others)

    tasks.contract.execute, execution.remade = watched, noted
"""


@pytest.fixture
def watched(tmp_path):
    """The environment of a run whose workers note what they do."""
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "WATCHED": str(tmp_path)}


def noted(directory, file):
    """What was noted, as pairs of a process and a text."""
    path = directory / file
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def weights(root):
    """The iterations whose policy is on the disk."""
    return sorted(str(path.relative_to(root))[:23] for path in root.rglob("update_policy/*/policy/model.safetensors"))


def test_all_outputs_have_the_same_digests_by_two_workers_and_no_update_is_made_again(home, tiny, watched, tmp_path):
    home.rounds("run", TINY, "--name", "pooled", *overrides(TWO), env=watched)
    assert home.digests("pooled") == home.digests(tiny)
    executed = noted(tmp_path, "executed")
    assert len(executed) == len(home.stages(tiny))
    assert len({process for process, label in executed if ".s" in label}) == 2
    assert len({process for process, label in executed if ".s" not in label}) == 1
    assert noted(tmp_path, "remade") == []
    root = home.path / "runs" / "pooled"
    assert weights(root / "stages") == ["round-001/iteration-002", "round-002/iteration-002"]
    assert list((root / "scratch").iterdir()) == []


def alive(process):
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_worker_killed_in_its_shard_and_a_run_cancelled_in_another_change_nothing(home, tiny, watched, tmp_path):
    command = ("run", TINY, "--name", "robbed-pool", *overrides({**TWO, "rounds": 1}))
    trouble = {"DIES_IN": "generate_rollouts-r1.i1.s1", "STANDS_IN": "score_rollouts-r1.i2.s0"}
    process = home.start(*command, env={**watched, **trouble})
    wait_for(lambda: noted(tmp_path, "stands"))
    states = {(s["iteration"], s["stage"]): s["state"] for s in home.json("status", "robbed-pool")["stages"]}
    # The other shard may have been scored meanwhile, or is.
    assert states[2, "score_rollouts"] in ("1 running", "2 running")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search(r"shard 2: the worker was killed by signal SIGKILL; its log is \S+/worker(-2)?\.log", err)
    executed = noted(tmp_path, "executed")
    assert not any(alive(own) for own, _ in executed)
    again = {label: count for label, count in Counter(label for _, label in executed).items() if count > 1}
    assert again == {"generate_rollouts-r1.i1.s1": 2}
    assert noted(tmp_path, "remade") == []

    home.rounds(*command, env=watched)
    first_round = {name: digest for name, digest in home.digests(tiny).items() if name.startswith("round-001")}
    assert home.digests("robbed-pool") == first_round
    # Whichever needed the checkpoint first made it again, for the other one too.
    assert len(noted(tmp_path, "remade")) == 1
    assert [path.name for path in log_files(create_or_open(home.path, "robbed-pool"))][:2] == [
        "worker-2.log",
        "worker.log",
    ]


# Checkpoints that are not kept


class InTurn:
    """A run by several workers' memories in one process: shards in turn by each, the rest by the first."""

    def __init__(self, home, config, *, workers):
        self.config = with_code_digests(config)
        self.run = create_or_open(home, "in-turn")
        self.models = [ResidentModels() for _ in range(workers)]

    def __call__(self, stage, place, settings, **inputs):
        call = stage_call(self.run, self.config, stage, place, settings, {}).with_inputs(inputs)
        models = self.models[(place.shard or 0) % len(self.models)]
        return execution.execute(call, models, lambda event: None)

    def go(self):
        rlhf_round(self, self.config, 1, None, external_models(self.config, self.run.home))
        return {str(path.relative_to(self.run.root)): manifest.digest for path, manifest in self.run.store.manifests()}


def test_a_checkpoint_that_is_not_kept_is_there_for_every_worker_and_made_again_once(tmp_path, monkeypatch):
    made_again, remade = [], execution.remade
    monkeypatch.setattr(execution, "remade", lambda ref, *rest: made_again.append(ref.path) or remade(ref, *rest))
    settings = ["rounds=1", "iterations=3", "warm_up=null"]
    expected = InTurn(tmp_path / "one", load_config(str(TINY), settings), workers=1).go()

    config = load_config(str(TINY), [*settings, "checkpoint_every=3", "execution.workers=2"])
    pool = InTurn(tmp_path / "two", config, workers=2)
    assert pool.go() == expected
    assert made_again == []
    stages, store = pool.run.root / "stages", pool.run.store
    assert weights(stages) == [f"round-001/iteration-00{number}" for number in (1, 2, 3)]
    second = next(stages.rglob("iteration-002/update_policy/*/manifest.json")).parent
    store.drop_handed_on(but=[second.name])
    assert weights(stages) == ["round-001/iteration-002", "round-001/iteration-003"]

    # After an interruption nobody has them: one worker makes them again, from the beginning.
    for output in [*stages.rglob("iteration-003/*_rollouts"), *stages.rglob("iteration-003/update_policy")]:
        for path in sorted(output.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    store.sweep()
    assert weights(stages) == []
    assert not list((pool.run.root / "scratch").iterdir())
    pool.models = [ResidentModels(), ResidentModels()]
    assert pool.go() == expected
    assert [path.split("/")[-3] for path in made_again] == ["iteration-002", "iteration-001"]
    store.drop_handed_on()
    assert weights(stages) == ["round-001/iteration-003"]


# What is told of shards that run


def test_the_status_of_a_run_in_progress_counts_the_shards_that_workers_have(tmp_path, monkeypatch):
    run = finished_run(tmp_path, "run", document(tmp_path), stop_before=("score_rollouts", 1, 1))
    monkeypatch.setattr(Store, "is_in_the_making", lambda store, recipe: True)

    def told():
        (status,) = [
            s for s in stage_statuses(plan_of(run)) if (s.round, s.iteration, s.stage) == (1, 1, "score_rollouts")
        ]
        return status.state, status.as_dict()["executing"]

    assert told() == ("pending", 0), "what an interrupted run has left is not in the making"
    with run.locked():
        assert told() == ("2 running", 2)
