"""A run that samples by a server: the stages agree on the engine, and what the metrics say of it is true."""

import json
import sys

import pytest
from conftest import TINY
from direct_run import run_directly
from test_logged_metrics import OF_OTHER_RUNS
from vllm_stand_in import serving

from flows.config.reading import load_config
from flows.launch import prepared, start
from flows.plan.plan import make_plan
from flows.runs.workspace import named_run
from tasks.errors import ConfigError
from tasks.metrics.declared.glossary import declared
from tasks.store.data_sets import read_dataset
from tasks.store.manifest import Manifest

SMALL = ["rounds=1", "rollouts.engine=vllm"]


def a_run(tmp_path, server, name="run", **settings):
    overrides = [*SMALL, f"execution.engine_servers=[{server.url}]", *(f"{k}={v}" for k, v in settings.items())]
    config = load_config(str(TINY), overrides)
    return run_directly(tmp_path, name, config), config


def stages(run, name):
    found = [Manifest.read(path.parent) for path in run.root.glob(f"stages/**/{name}/**/manifest.json")]
    return sorted(found, key=lambda manifest: manifest.place)


def metric(run, stage, name):
    return [manifest.metrics[name] for manifest in stages(run, stage)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with serving() as server:
        run, config = a_run(tmp_path_factory.mktemp("home"), server)
    return run, config, server


def test_rollouts_and_evaluation_come_from_each_checkpoint_in_turn(finished):
    run, _, server = finished
    (reference,) = run.root.glob("stages/round-001/warm_up/*/policy")
    first, second = sorted(run.root.glob("stages/round-001/iteration-*/update_policy/*/policy"))
    # Two shards an iteration, then policy and reference on the held-out prompts.
    assert server.loaded == [str(path) for path in (reference, reference, first, first, second, reference)]
    assert len(server.drawn) == 2 * 8 + 2 * 4


def test_engine_and_trainer_agree_and_the_update_knows_both(finished):
    run, _, _ = finished
    assert max(metric(run, "generate_rollouts", "rollouts/engine_logprob_difference")) < 1e-4
    assert metric(run, "update_policy", "update/importance_mean") == pytest.approx([1.0, 1.0], abs=1e-4)
    for path in run.root.glob("stages/**/compute_advantages/*/rollouts"):
        for row in read_dataset(path).to_pylist():
            assert row["sampling_logprobs"] == pytest.approx(row["logprobs"], abs=1e-4)
            assert len(row["sampling_logprobs"]) == len(row["response_token_ids"])


def test_every_metric_is_in_the_glossary(finished):
    run, _, _ = finished
    logged = {
        name for path in run.root.glob("stages/**/manifest.json") for name in json.loads(path.read_text())["metrics"]
    }
    assert logged > OF_OTHER_RUNS
    assert sorted(name for name in logged if declared(name) is None) == []


def test_another_server_executes_nothing_again_and_another_engine_does(finished):
    run, config, _ = finished
    elsewhere = config.execution.model_copy(update={"engine_servers": ("http://elsewhere:8000",)})
    assert all(stage.ref for stage in make_plan(run, config.model_copy(update={"execution": elsewhere})).stages)
    builtin = config.model_copy(update={"rollouts": config.rollouts.model_copy(update={"engine": "builtin"})})
    again = {stage.stage: stage.reason for stage in make_plan(run, builtin).stages if stage.ref is None}
    assert again["generate_rollouts"] in ("engine: vllm → builtin", "input update_policy changes")
    assert again["evaluate_policy"] == "input update_policy changes"
    assert not {"prepare_data", "warm_up", "train_reward_model"} & set(again)


def test_an_engine_with_a_bias_is_seen_and_corrected(tmp_path):
    with serving(bias=0.25) as server:
        run, _ = a_run(tmp_path, server, iterations=1, checkpoint_every=2, **{"health.max_engine_difference": 0.5})
    assert metric(run, "generate_rollouts", "rollouts/engine_logprob_difference") == pytest.approx([0.25] * 2, abs=1e-4)
    # e^-0.25
    assert metric(run, "update_policy", "update/importance_mean") == pytest.approx([0.7788], abs=1e-4)
    assert metric(run, "update_policy", "update/first_minibatch_ratio_deviation") == pytest.approx([0], abs=1e-4)


def test_an_engine_that_is_not_installed_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    config, run = load_config(str(TINY), SMALL), named_run(tmp_path, "run")
    with pytest.raises(
        ConfigError, match=r"rollouts\.engine=vllm: the package vllm is not installed here; pip install"
    ):
        start(run, config, prepared(run, config))
    assert not (tmp_path / "runs").exists()
