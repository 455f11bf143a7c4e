"""Whole runs by several workers: the same bytes as by one, whatever becomes of a worker or of the run."""

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, TINY, overrides, wait_for
from fake_runs import document, finished_run
from test_preview import InThisProcess

from flows.config.reading import checked, load_config
from flows.outcomes import stage_statuses
from flows.plan import plan_of
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.preview import doubts_about_workers, look_first
from flows.preview import workers as preview_workers
from flows.preview.examination import Preview, too_many_for_memory
from flows.preview.memory import StageMemory
from flows.preview.workers import memory_of_others
from flows.round import rlhf_round
from flows.runs.workspace import create_or_open
from flows.terminal.logs import log_files
from tasks.contract import execution
from tasks.contract.resident import ResidentModels
from tasks.errors import ConfigError
from tasks.models import device_mistakes
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

    def watched(call, models, report):
        note("executed", call.label)

        def tell(event):
            report(event)
            if call.label == os.environ.get("DIES_IN") and not (DIRECTORY / "died").exists():
                note("died", call.label)
                os.kill(os.getpid(), signal.SIGKILL)
            if call.label == os.environ.get("STANDS_IN") and not (DIRECTORY / "stands").exists():
                note("stands", call.label)
                time.sleep(600)

        return execute(call, models, tell)

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


# What is said before anything is spent


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 0}, "execution.workers"),
        (
            {"workers": 2, "device": "cuda:1"},
            "device=cuda:1 with workers=2: it names one device, and each worker needs",
        ),
        (
            {"workers": 2, "device": "mps"},
            "device=mps with workers=2: there is one Metal device, and each worker needs",
        ),
    ],
)
def test_workers_without_a_device_each_are_refused(tmp_path, settings, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        checked(document(tmp_path, execution=settings), where="test")


class Cuda:
    """What torch says of devices."""

    def __init__(self, monkeypatch, *names):
        for name, value in {"is_available": bool(names), "device_count": len(names)}.items():
            monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda number: names[number])


@pytest.mark.parametrize(
    ("names", "settings", "mistake"),
    [
        ((), {"workers": 9}, None),
        (("A",), {}, None),
        (("A", "A"), {"workers": 2}, None),
        (("A", "B"), {"workers": 1}, None),
        (("A", "B"), {"device": "cpu", "workers": 2}, None),
        (
            ("A",),
            {"workers": 2},
            "execution.workers=2: there is 1 CUDA device, and each worker needs one of its own; lower it to 1",
        ),
        (
            ("A", "A"),
            {"workers": 3, "device": "cuda"},
            "execution.workers=3: there are 2 CUDA devices, and each worker needs one of its own; lower it to 2",
        ),
        (
            ("A", "A", "B"),
            {"workers": 3},
            "execution.workers=3: cuda:0 is A and cuda:2 is B, which round otherwise; name equal ones by "
            "CUDA_VISIBLE_DEVICES, or lower it",
        ),
        (
            ("A", "A"),
            {"device": "cuda:2"},
            "execution.device=cuda:2: there are 2 CUDA devices, the last of which is cuda:1; name that",
        ),
        ((), {"device": "cuda"}, "execution.device=cuda: this PyTorch sees no CUDA device; set it to auto or cpu"),
    ],
)
def test_devices_that_are_not_there_are_told_in_one_sentence(monkeypatch, tmp_path, names, settings, mistake):
    Cuda(monkeypatch, *names)
    config = checked(document(tmp_path, execution=settings), where="test")
    assert device_mistakes(config.execution) == ([] if mistake is None else [mistake])


def test_a_device_that_is_not_there_stops_a_run_in_its_first_look(tmp_path, monkeypatch):
    Cuda(monkeypatch, "A", "A")
    config = load_config(str(TINY), ["execution.workers=3"])
    with pytest.raises(ConfigError, match="there are 2 CUDA devices, and each worker needs one of its own"):
        look_first(InThisProcess(None), config, {})


def test_more_workers_than_shards_or_cores_are_doubts_since_the_results_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(preview_workers, "num_cores", lambda: 2)

    def doubts(lag=0, **settings):
        rollouts = {"shards": 2, "lag": lag, "sampling": {"max_new_tokens": 4}}
        return doubts_about_workers(checked(document(tmp_path, execution=settings, rollouts=rollouts), where="test"))

    assert doubts() == doubts(workers=2) == []
    (of_shards,) = doubts(workers=3, device="cuda")
    assert of_shards == (
        "execution.workers=3: an iteration has 2 shards, so that no more workers have something to do; raise "
        "rollouts.shards, or lower it"
    )
    assert doubts(workers=3)[1].startswith("execution.workers=3: there are 2 cores, for which workers on the processor")
    # With a lag one more updates meanwhile, and one alone does nothing meanwhile.
    assert doubts(lag=1, workers=3, device="cuda") == doubts(lag=1, workers=2) == []
    assert doubts(lag=1) == [
        "rollouts.lag=1: with execution.workers=1 nothing is sampled while the policy is updated, so that nothing is gained "
        "for what is learned from older rollouts; raise execution.workers, or leave it out"
    ]


def test_each_worker_but_the_first_holds_what_shards_need():
    stages = [
        StageMemory(stage="update_policy", weights=2**30, gradients=2**30, moments=2**31),
        StageMemory(stage="generate_rollouts", weights=2**30, cache=2**29),
        StageMemory(stage="score_rollouts", weights=2**30),
    ]
    assert memory_of_others(stages, 1) == 0
    assert memory_of_others(stages, 3) == 2 * (2**30 + 2**29)
    # 4 GiB for the first and 1.5 GiB for each other one.
    preview = Preview(memory=stages, other_workers=2 * (2**30 + 2**29), device={"name": "the processor"})
    for free, fits in [(7 * 2**30, True), (6 * 2**30, False)]:
        preview.device["free"] = free
        assert preview.fits is fits
    assert too_many_for_memory(preview, 3) == [
        "execution.workers=3: together they take 7.0 GiB (4.0 GiB for the first, 1.5 GiB for each other), and the "
        "processor has 6.0 GiB free; lower it to 2"
    ]
    # Where not even one fits, it is not their number.
    preview.device["free"] = 2**30
    assert too_many_for_memory(preview, 3) == []
