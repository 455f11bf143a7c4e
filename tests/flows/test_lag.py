"""Rollouts of an earlier policy, in whole runs: the order in which stages execute, and where, changes no byte."""

from dataclasses import dataclass, replace

import pytest
from conftest import TINY
from direct_run import run_directly

from flows.config.reading import load_config
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.round import rlhf_round
from flows.runs.workspace import create_or_open
from tasks.contract.execution import execute
from tasks.contract.resident import ResidentModels
from tasks.store.data_sets import read_dataset
from tasks.store.manifest import Ref, each, flat

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
    return {str(path.relative_to(run.root)): manifest.digest for path, manifest in run.store.manifests()}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    return run_directly(tmp_path_factory.mktemp("in-turn"), "run", load_config(str(TINY), LAGGING))


def test_all_outputs_have_the_same_digests_whichever_stage_executes_first_and_where(in_turn, tmp_path):
    workers = Workers(tmp_path, load_config(str(TINY), LAGGING), generation_last)
    found = digests(workers.go())
    assert found == digests(in_turn)
    assert len(found) == 4 + 3 * 7 + 2
    # It was another order: in turn, rollouts are sampled before the update that they need not wait for.
    order = workers.executed
    assert order.index("generate_rollouts-r1.i3.s0") > order.index("update_policy-r1.i2") > 0
