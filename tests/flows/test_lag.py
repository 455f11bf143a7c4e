"""Rollouts of an earlier policy, in whole runs: the order in which stages execute, and where, changes no byte."""

import os
from dataclasses import dataclass

import pytest
from conftest import ROOT, TINY
from direct_run import run_directly

from flows.config.reading import load_config
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.round import rlhf_round
from flows.runs.workspace import create_or_open
from tasks.config.execution import ExecutionConfig
from tasks.contract.execution import execute
from tasks.contract.resident import ResidentModels
from tasks.store.data_sets import read_dataset
from tasks.store.manifest import Ref, each, flat
from tasks.worker.replay import replay

LAGGING = ["rounds=1", "iterations=3", "rollouts.lag=1", "keep_checkpoints=2"]


@dataclass(eq=False)
class Asked:
    """A stage that the flow has asked for."""

    call: object
    inputs: dict
    ref: Ref | None = None


class Workers:
    """Executes stages when their inputs are there, in an order and with the memory of a worker that ``choose`` gives."""

    def __init__(self, home, config, choose):
        self.config, self.choose = with_code_digests(config), choose
        self.run = create_or_open(home, "run")
        self.run.set_config(config)
        self.models = [ResidentModels(), ResidentModels()]
        self.asked = []
        self.executed = []

    def __call__(self, stage, place, settings, **inputs):
        call = stage_call(self.run, self.config, stage, place, settings, self.run.generations)
        self.asked.append(Asked(call, inputs))
        return self.asked[-1]

    def go(self):
        rlhf_round(self, self.config, 1, None, external_models(self.config, self.run.home))
        while left := [asked for asked in self.asked if asked.ref is None]:
            ready = [a for a in left if all(made.ref for made in flat(a.inputs) if isinstance(made, Asked))]
            chosen, worker = self.choose(ready)
            inputs = each(lambda made: made.ref if isinstance(made, Asked) else made, chosen.inputs)
            chosen.ref = execute(chosen.call.with_inputs(inputs), self.models[worker], lambda event: None)
            self.executed.append(chosen.call.label)
        return self.run


def generation_last(ready):
    """Updates before the rollouts that overlap them, which are a worker's of their own."""
    generating = [asked for asked in ready if asked.call.stage == "generate_rollouts"]
    others = [asked for asked in ready if asked not in generating]
    return (others[0], 0) if others else (generating[-1], 1)


def digests(run):
    return {str(path.relative_to(run.root / "stages")): manifest.digest for path, manifest in run.store.manifests()}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    """A run by one worker, one stage after the other."""
    return run_directly(tmp_path_factory.mktemp("in-turn"), "run", load_config(str(TINY), LAGGING))


def test_all_outputs_have_the_same_digests_whichever_stage_executes_first_and_where(in_turn, tmp_path):
    workers = Workers(tmp_path, load_config(str(TINY), LAGGING), generation_last)
    found = digests(workers.go())
    assert found == digests(in_turn)
    assert len(found) == 4 + 3 * 7 + 2
    # It was another order: in turn, rollouts are sampled before the update that they need not wait for.
    order = workers.executed
    assert order.index("generate_rollouts-r1.i3.s0") > order.index("update_policy-r1.i2") > 0


# Imported by every process: an update and the first rollouts of the next iteration wait until both are under way.
TOGETHER = """
import sys

if "tasks.worker.child" in sys.orig_argv:
    import os, pathlib, time
    import tasks.contract

    DIRECTORY = pathlib.Path(os.environ["NOTED"])
    execute = tasks.contract.execute

    def together(call, models, report, **how):
        (DIRECTORY / call.label).touch()
        update, iteration = call.stage == "update_policy", call.place.iteration
        if update and iteration < 3:
            wait_for(f"generate_rollouts-r1.i{iteration + 1}.s0")
        if call.stage == "generate_rollouts" and iteration > 1 and call.place.shard == 0:
            wait_for(f"update_policy-r1.i{iteration - 1}")
        return execute(call, models, report, **how)

    def wait_for(label):
        until = time.monotonic() + 120
        while not (DIRECTORY / label).exists():
            assert time.monotonic() < until, f"{label} has not begun"
            time.sleep(0.01)

    tasks.contract.execute = together
"""


def test_two_workers_sample_while_they_update_and_all_outputs_have_the_same_digests(home, in_turn, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(TOGETHER)
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "NOTED": str(tmp_path)}
    settings = [part for setting in (*LAGGING, "execution.workers=2") for part in ("--set", setting)]
    home.rounds("run", TINY, "--name", "overlapped", *settings, env={**os.environ, "OMP_NUM_THREADS": "1", **paths})
    assert home.digests("overlapped") == digests(in_turn)
    kept = (home.path / "runs" / "overlapped").rglob("update_policy/*/policy/model.safetensors")
    assert sorted(path.parents[3].name for path in kept) == ["iteration-002", "iteration-003"]


def outputs(run, stage, iteration):
    return [
        Ref(str(path), manifest.digest)
        for path, manifest in run.store.manifests()
        if (manifest.stage, manifest.place.iteration) == (stage, iteration)
    ]


def test_each_row_names_the_checkpoint_that_sampled_it(in_turn):
    (start,) = outputs(in_turn, "warm_up", 0)
    (first,) = outputs(in_turn, "update_policy", 1)
    samplers = {}
    for iteration in (1, 2, 3):
        (experience,) = outputs(in_turn, "compute_advantages", iteration)
        table = read_dataset(experience.directory / "rollouts")
        samplers[iteration] = table.column("policy_version").unique().to_pylist()
        assert ("sampling_logprobs" in table.column_names) == (iteration > 1)
    assert samplers == {1: [start.digest], 2: [start.digest], 3: [first.digest]}


@pytest.mark.parametrize("stage", ["score_rollouts", "compute_advantages", "update_policy"])
def test_a_replay_gives_the_same_bytes(in_turn, stage):
    for ref in outputs(in_turn, stage, 3):
        found = replay(ref, in_turn.store, ExecutionConfig(), ResidentModels(), lambda event: None)
        assert found.differences == []
        assert found.quantities > 0
