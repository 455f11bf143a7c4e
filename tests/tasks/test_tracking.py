"""MLflow as an outbox: what is logged, and that no number of attempts logs anything twice."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import pytest

from tasks import environment
from tasks.charts import plotly_script
from tasks.errors import TrackingError
from tasks.store.digests import canonical_json, digest_text
from tasks.tracking import outbox as tracking
from tasks.tracking.addresses import run_page
from tasks.tracking.database import database, is_logged
from tasks.tracking.outbox import Tracking
from tasks.tracking.tracked import Point, Published, TrackedData, TrackedRound, TrackedRun

EXPERIMENT = "tests"


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(scope="session")
def fresh_home(tmp_path_factory) -> Path:
    """A home with an initialised database: MLflow takes seconds to make one."""
    home = tmp_path_factory.mktemp("fresh")
    Tracking(home, "unused")
    return home


@pytest.fixture
def home(fresh_home, tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(fresh_home / "mlflow", tmp_path / "home" / "mlflow")
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path) -> TrackedRun:
    """A finished run of two rounds."""
    files = tmp_path / "files"
    for name, text in {"plots/kl.png": "kl", "plots/reward.png": "reward", "calibration.json": "{}"}.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text)
    (files / "policy").mkdir()
    (files / "policy" / "config.json").write_text('{"model": 1}')
    return TrackedRun(
        uid="u1",
        name="run-a",
        created_at=1000.0,
        config=config(),
        rounds=[round_(1, files), round_(2, files)],
        policy=files / "policy",
        policy_digest="p1",
        headline={"kl/mean": "0 headline/kl", "score/mean": "0 headline/score"},
        charts={"kl": {"data": [{"y": [1.0]}], "layout": {"title": {"text": "KL </script>"}}}},
        tables={"evaluation.json": [{"prompt": "p", "response": "<i>"}]},
        tags={"rounds.directory": "/somewhere"},
    )


def config(**changes: Any) -> dict[str, Any]:
    base = {
        "seed": 7,
        "model": {"policy": None},
        "rewards": {"good": {"weight": 1.0, "code": ""}},
        "data": [{"path": "a"}],
    }
    return {**base, **changes}


def round_(number: int, files: Path, *, variant: str = "v1") -> TrackedRound:
    return TrackedRound(
        number=number,
        variant=f"{variant}-{number}",
        started_at=1000.0 * number,
        ended_at=1000.0 * number + 500,
        points=[
            Point(name, value * number, step, 1000.0 * number + step)
            for name, value in {"score/mean": 0.5, "kl/mean": float("nan"), "rewards/mean_stderr": 0.1}.items()
            for step in (1, 2, 3)
        ],
        num_iterations=3,
        data=[
            TrackedData(name="prompts", digest="d" * 32, source="file:///p", used_as="prompts", rows=3),
            TrackedData(name="prompts", digest="d" * 32, source="file:///p", used_as="texts", rows=3),
        ],
        tables={"samples.json": [{"response": "<b>hi</b>", "score": float("nan")}, {"response": "ho", "extra": 1}]},
        files={"plots": files / "plots", "reward_model/calibration.json": files / "calibration.json"},
        tags={"rounds.report": f"report-{number}"},
    )


def client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking.tracking_uri(home))


def path_of(uri: str) -> Path:
    return Path(url2pathname(uri.removeprefix("file://")))


def files_below(uri: str) -> dict[str, str]:
    root = path_of(uri)
    found = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def policies(home: Path) -> list[Any]:
    """The policies that MLflow has of all runs of the experiment."""
    store = client(home)
    return list(store.search_logged_models([store.get_experiment_by_name(EXPERIMENT).experiment_id]))


def contents(home: Path, experiment: str = EXPERIMENT) -> list[dict[str, Any]]:
    """All that MLflow holds of the experiment, without the ids that it made up."""
    store = client(home)
    runs = store.search_runs(
        [store.get_experiment_by_name(experiment).experiment_id], order_by=["attributes.start_time"]
    )
    names = {r.info.run_id: f"{r.info.run_name}/{r.data.tags.get('rounds.variant')}" for r in runs}

    def history(run_id: str, key: str) -> list[tuple[int, int, str]]:
        return sorted((m.step, m.timestamp, str(m.value)) for m in store.get_metric_history(run_id, key))

    def data(known: Any) -> tuple[Any, ...]:
        tags = [(tag.key, tag.value) for tag in known.tags]
        return (known.dataset.name, known.dataset.digest, known.dataset.source, known.dataset.profile, tags)

    found = [
        {
            "name": names[r.info.run_id],
            "status": (r.info.status, r.info.start_time, r.info.end_time),
            "tags": {key: names.get(value, value) for key, value in r.data.tags.items()},
            "params": r.data.params,
            "metrics": {key: history(r.info.run_id, key) for key in r.data.metrics},
            "inputs": sorted(map(data, r.inputs.dataset_inputs)),
            "artifacts": files_below(r.info.artifact_uri),
        }
        for r in runs
    ]
    found += [
        {
            "name": f"{model.name} of {names[model.source_run_id]}",
            "status": model.status,
            "tags": model.tags,
            "files": files_below(model.artifact_location),
        }
        for model in store.search_logged_models([store.get_experiment_by_name(experiment).experiment_id])
    ]
    return sorted(found, key=lambda entry: entry["name"])


def text_of(home: Path, run_id: str, name: str) -> str:
    from mlflow.artifacts import download_artifacts

    path = download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=tracking.tracking_uri(home))
    return Path(path).read_text()


def test_a_run_has_a_child_per_round_with_all_that_was_measured(home, run):
    published = Tracking(home, EXPERIMENT).publish(run)
    store = client(home)
    parent, child = store.get_run(published.run_id), store.get_run(published.rounds[2])

    assert parent.info.run_name == "run-a"
    assert (parent.info.start_time, parent.info.end_time) == (1_000_000, 2_500_000)
    assert parent.info.status == child.info.status == "FINISHED"
    (policy,) = policies(home)
    assert (policy.source_run_id, policy.status.value, policy.tags["rounds.policy"]) == (
        parent.info.run_id,
        "READY",
        "p1",
    )
    assert policy.name == "run-a-policy"
    assert parent.data.tags["rounds.round_2"] == published.rounds[2]

    assert child.info.run_name == "run-a-round-2"
    assert child.data.tags["mlflow.parentRunId"] == published.run_id
    history = store.get_metric_history(published.rounds[2], "score/mean")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(s, 1.0, 2_000_000 + 1000 * s) for s in (1, 2, 3)]
    for logged in (parent, child):
        assert logged.data.params == {
            "seed": "7",
            "model.policy": "null",
            "rewards.good.weight": "1.0",
            "data.0.path": "a",
        }
        (prompts,) = logged.inputs.dataset_inputs
        assert (prompts.dataset.name, prompts.dataset.digest) == ("prompts", "d" * 32)
        assert text_of(home, logged.info.run_id, "config.yaml").startswith("seed: 7\nmodel:\n  policy: null\n")
    assert text_of(home, published.rounds[1], "plots/kl.png") == "kl"
    assert text_of(home, published.rounds[1], "reward_model/calibration.json") == "{}"
    assert text_of_policy(home, "config.json") == '{"model": 1}'


def text_of_policy(home: Path, name: str) -> str:
    (policy,) = policies(home)
    return (path_of(policy.artifact_location) / name).read_text()


def test_a_metric_is_one_curve_through_all_rounds_and_headline_metrics_come_first(home, run):
    published = Tracking(home, EXPERIMENT).publish(run)
    store = client(home)
    curve = [(1, 0.5), (2, 0.5), (3, 0.5), (4, 1.0), (5, 1.0), (6, 1.0)]
    for name in ("score/mean", "0 headline/score"):
        assert [(m.step, m.value) for m in store.get_metric_history(published.run_id, name)] == curve
    parent, child = store.get_run(published.run_id), store.get_run(published.rounds[1])
    assert list(parent.data.metrics) == ["0 headline/kl", "0 headline/score", "score/mean", "kl/mean"]
    # Standard errors are with the round.
    assert "rewards/mean_stderr" in child.data.metrics


def test_the_charts_are_a_page_that_needs_no_network(home, run):
    published = Tracking(home, EXPERIMENT).publish(run)
    page = text_of(home, published.run_id, "charts.html")
    assert plotly_script().read_text() in page
    assert "<figcaption>KL &lt;/script&gt;</figcaption>" in page
    assert page.replace(plotly_script().read_text(), "").count("</script") == 3
    assert not re.search(r"(src|href)=", page.replace(plotly_script().read_text(), ""))
    assert json.loads(text_of(home, published.run_id, "evaluation.json"))["data"] == [["p", "<i>"]]
    tagged = json.loads(client(home).get_run(published.run_id).data.tags["mlflow.loggedArtifacts"])
    assert tagged == [{"path": "evaluation.json", "type": "table"}]


def test_samples_are_a_table_that_mlflow_loads(home, run, monkeypatch):
    published = Tracking(home, EXPERIMENT).publish(run)
    table = json.loads(text_of(home, published.rounds[1], "samples.json"))
    assert table == {
        "columns": ["response", "score", "extra"],
        "data": [["<b>hi</b>", None, None], ["ho", None, 1]],
    }
    experiment = client(home).get_experiment_by_name(EXPERIMENT).experiment_id
    # Of all of MLflow's client, load_table alone asks the store that the environment names.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(home))
    loaded = client(home).load_table(experiment, "samples.json", run_ids=[published.rounds[1]])
    assert loaded["response"].tolist() == ["<b>hi</b>", "ho"]


def test_a_data_set_can_be_found_from_the_run(home, run):
    from mlflow.data import get_source

    published = Tracking(home, EXPERIMENT).publish(run)
    (prompts,) = client(home).get_run(published.rounds[1]).inputs.dataset_inputs
    assert get_source(prompts).uri == "file:///p"


def test_publishing_again_adds_nothing(home, run):
    first = Tracking(home, EXPERIMENT).publish(run)
    before = contents(home)
    assert Tracking(home, EXPERIMENT).publish(run) == first
    assert contents(home) == before
    assert len(before) == 4


def test_publishing_round_by_round_gives_what_publishing_at_the_end_gives(home, run):
    half = replace(run, rounds=run.rounds[:1], policy=None, policy_digest="")
    published = Tracking(home, EXPERIMENT).publish(half)
    assert client(home).get_run(published.run_id).info.status == "RUNNING"
    Tracking(home, EXPERIMENT).publish(run)
    Tracking(home, "at the end").publish(run)
    assert contents(home) == contents(home, "at the end")


def test_a_round_that_is_replaced_starts_a_new_curve_and_the_old_one_stays(home, run, tmp_path):
    first = Tracking(home, EXPERIMENT).publish(run)
    before = {entry["name"]: entry for entry in contents(home)}
    changed = replace(run, config=config(seed=8), rounds=[run.rounds[0], round_(2, tmp_path / "files", variant="v2")])
    second = Tracking(home, EXPERIMENT).publish(changed)

    store = client(home)
    assert second.rounds[1] == first.rounds[1]
    assert second.rounds[2] != first.rounds[2]
    assert second.run_id != first.run_id
    old, new = store.get_run(first.run_id), store.get_run(second.run_id)
    assert (old.info.run_name, new.info.run_name) == ("run-a (earlier settings)", "run-a")
    assert (old.data.params["seed"], new.data.params["seed"]) == ("7", "8")
    for run_id in (first.run_id, second.run_id):
        assert [m.step for m in store.get_metric_history(run_id, "score/mean")] == [1, 2, 3, 4, 5, 6]
    # The round that stays is now part of the new one; the replaced one stays with the old one, as it was.
    parents = [store.get_run(child).data.tags["mlflow.parentRunId"] for child in second.rounds.values()]
    assert parents == [second.run_id, second.run_id]
    after = {entry["name"]: entry for entry in contents(home)}
    old_child = after["run-a-round-2/v1-2"] | {"tags": before["run-a-round-2/v1-2"]["tags"]}
    assert old_child == before["run-a-round-2/v1-2"]
    assert store.get_run(first.rounds[2]).data.tags["mlflow.parentRunId"] == first.run_id
    assert [policy.source_run_id for policy in policies(home)] == [second.run_id]

    # Back to the old settings: its curves and its child are still there.
    assert Tracking(home, EXPERIMENT).publish(run) == first
    assert {entry["name"] for entry in contents(home)} == {
        "run-a/None",
        "run-a (earlier settings)/None",
        "run-a-round-1/v1-1",
        "run-a-round-2/v1-2",
        "run-a-round-2/v2-2",
        "run-a-policy of run-a/None",
    }
    assert Tracking(home, EXPERIMENT).publish(changed) == second


def test_a_replaced_round_does_not_leave_a_run_that_seems_to_go_on(home, run, tmp_path):
    first = Tracking(home, EXPERIMENT).publish(replace(run, rounds=run.rounds[:1], policy=None, policy_digest=""))
    Tracking(home, EXPERIMENT).publish(replace(run, rounds=[round_(1, tmp_path / "files", variant="v2")]))
    assert client(home).get_run(first.run_id).info.status == "KILLED"


def test_another_policy_replaces_the_one_before_with_its_files(home, run, tmp_path):
    Tracking(home, EXPERIMENT).publish(run)
    (before,) = policies(home)
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_text("weights")
    Tracking(home, EXPERIMENT).publish(replace(run, policy=other, policy_digest="p2"))
    (after,) = policies(home)
    assert files_below(after.artifact_location).keys() == {"model.safetensors"}
    assert files_below(before.artifact_location) == {}


def test_a_policy_whose_replacement_was_interrupted_is_logged_again(home, run, tmp_path, monkeypatch):
    Tracking(home, EXPERIMENT).publish(run)
    before = contents(home)
    other = replace(run, policy=tmp_path / "files" / "plots", policy_digest="p2")

    def kill(*_: Any) -> None:
        raise Killed

    from mlflow import MlflowClient

    for name in ("log_model_artifacts", "finalize_logged_model", "delete_logged_model"):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, name, kill)
            with pytest.raises(Killed):
                Tracking(home, EXPERIMENT).publish(other)
        Tracking(home, EXPERIMENT).publish(run)
        assert contents(home) == before


def test_the_model_loads_as_any_other(home, run, tmp_path, monkeypatch):
    from mlflow.artifacts import download_artifacts
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=8))
    model.save_pretrained(tmp_path / "llama")
    Tracking(home, EXPERIMENT).publish(replace(run, policy=tmp_path / "llama", policy_digest="llama"))
    (policy,) = policies(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(home))
    where = download_artifacts(f"models:/{policy.model_id}")
    loaded = AutoModelForCausalLM.from_pretrained(where).state_dict()
    assert all((loaded[name] == value).all() for name, value in model.state_dict().items())


def test_two_runs_do_not_mix(home, run):
    a = Tracking(home, EXPERIMENT).publish(run)
    b = Tracking(home, EXPERIMENT).publish(replace(run, uid="u2", name="run-b"))
    assert a.run_id != b.run_id
    assert not set(a.rounds.values()) & set(b.rounds.values())


def calls_counted(monkeypatch: pytest.MonkeyPatch, on_call: Callable[[int, bool], None]) -> list[str]:
    """Report every write to MLflow with its number, before (False) and after (True) it happens."""
    from mlflow import MlflowClient

    made: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(MlflowClient, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            number = len(made)
            on_call(number, False)
            result = original(*args, **kwargs)
            on_call(number, True)
            return result

        return call

    for name in (
        "create_logged_model",
        "create_run",
        "delete_logged_model",
        "finalize_logged_model",
        "log_batch",
        "log_inputs",
        "log_model_artifacts",
        "log_outputs",
        "log_text",
        "log_artifact",
        "log_artifacts",
        "set_tag",
        "set_terminated",
        "update_run",
    ):
        monkeypatch.setattr(MlflowClient, name, counted(name))
    return made


def test_killed_at_any_write_and_published_again_it_holds_the_same(home, run, monkeypatch):
    one = replace(run, rounds=run.rounds[1:])
    with monkeypatch.context() as patch:
        made = calls_counted(patch, lambda *_: None)
        Tracking(home, "whole").publish(one)
    whole = contents(home, "whole")
    assert len(made) > 15
    for kill_at in range(1, len(made) + 1):

        def kill(number: int, done: bool, kill_at: int = kill_at) -> None:
            # Odd ones die before the write, even ones after it and before anybody hears of it.
            if number == kill_at and done == (kill_at % 2 == 0):
                raise Killed

        experiment = f"killed-{kill_at}"
        with monkeypatch.context() as patch:
            calls_counted(patch, kill)
            with pytest.raises(Killed):
                Tracking(home, experiment).publish(one)
        Tracking(home, experiment).publish(one)
        assert contents(home, experiment) == whole, (kill_at, made[kill_at - 1])


def test_an_interrupted_child_is_finished_even_if_a_setting_that_changes_no_result_changed(home, run, monkeypatch):
    def kill(number: int, done: bool) -> None:
        if number == 6 and not done:
            raise Killed

    with monkeypatch.context() as patch:
        calls_counted(patch, kill)
        with pytest.raises(Killed):
            Tracking(home, EXPERIMENT).publish(run)
    Tracking(home, EXPERIMENT).publish(replace(run, config=config(seed=9, extra=1)))
    assert all("rounds.complete" in e["tags"] for e in contents(home) if "-round-" in e["name"])


def test_many_values_and_long_ones_are_logged(home, run):
    wide = {f"p{i}": "x" * 7000 for i in range(250)} | {"free": {"any key: /..": 1}, "n" * 300: 1}
    points = [Point("score/mean", float(i), i, 5.0) for i in range(2500)]
    one = replace(run, config=wide, rounds=[replace(run.rounds[0], points=points)])
    published = Tracking(home, EXPERIMENT).publish(one)
    child = client(home).get_run(published.rounds[1])
    assert len(client(home).get_metric_history(published.rounds[1], "score/mean")) == 2500
    assert len(child.data.params) == 251
    assert len(child.data.params["p0"]) == 6000
    assert child.data.params["free"] == '{"any key: /..": 1}'


def located(home: Path) -> set[str]:
    """The prefixes of all addresses that the database holds."""
    store = client(home)
    experiments = store.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    runs = store.search_runs([e.experiment_id for e in experiments])
    return {e.artifact_location for e in experiments} | {r.info.artifact_uri.rsplit("/", 2)[0] for r in runs}


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_home_that_is_moved_or_copied_logs_beside_its_own_database(home, run, tmp_path, how):
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    first = replace(run, rounds=run.rounds[:1], policy=None, policy_digest="")
    Tracking(home, EXPERIMENT).publish(first)
    before = sorted(path.relative_to(home) for path in home.rglob("*"))
    there = tmp_path / "other place"
    if how == "moved":
        home.rename(there)
    else:
        shutil.copytree(home, there)
    # Another process would not remember where artifacts of a run went before.
    _artifact_repos_cache.clear()
    published = Tracking(there, EXPERIMENT).publish(run)
    assert located(there) == {(there / "mlflow" / "artifacts").as_uri()}
    assert (there / "mlflow" / "artifacts" / published.run_id / "artifacts" / "config.yaml").exists()
    assert text_of_policy(there, "config.json") == '{"model": 1}'
    child = published.rounds[1]
    assert "config.yaml" in {entry.path for entry in client(there).list_artifacts(child)}
    if how == "moved":
        assert not home.exists()
    else:
        assert sorted(path.relative_to(home) for path in home.rglob("*")) == before
        assert located(home) == {(home / "mlflow" / "artifacts").as_uri()}


def test_a_copied_home_reads_its_own_files_without_those_of_the_first(home, run, tmp_path):
    published = Tracking(home, EXPERIMENT).publish(run)
    there = tmp_path / "copy"
    shutil.copytree(home, there)
    Tracking(there, EXPERIMENT)
    shutil.rmtree(home)
    assert text_of(there, published.run_id, "charts.html").startswith("<!doctype html>")
    assert text_of_policy(there, "config.json") == '{"model": 1}'
    assert Tracking(there, EXPERIMENT).publish(run) == published


def test_settings_of_another_mlflow_are_not_for_the_homes_database(home, run, monkeypatch):
    others = {
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_WORKSPACE": "team",
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "Nonsense",
        "MLFLOW_REGISTRY_URI": "http://127.0.0.1:9",
        "MLFLOW_EXPERIMENT_ID": "77",
        "MLFLOW_RUN_ID": "f" * 32,
    }
    with monkeypatch.context() as patch:
        # What is not there is put back as it was.
        for name in [*os.environ, *others]:
            if name.startswith("MLFLOW_"):
                patch.setenv(name, others.get(name, os.environ.get(name, "")))
        Tracking(home, EXPERIMENT).publish(run)
        assert not others.keys() & os.environ.keys()
    assert len(contents(home)) == 4


def test_artifacts_that_somebody_put_elsewhere_stay_there(home, run, tmp_path):
    (tmp_path / "shared").mkdir()
    elsewhere = (tmp_path / "shared" / "files").as_uri()
    client(home).create_experiment("theirs", artifact_location=elsewhere)
    home = home.rename(tmp_path / "moved")
    Tracking(home, EXPERIMENT)
    assert client(home).get_experiment_by_name("theirs").artifact_location == elsewhere


@pytest.mark.parametrize("name", ["what?mode=ro", "a?b#c%25 ü", "50%25 done #1"])
def test_an_odd_path_keeps_the_database_and_the_artifacts_inside_the_home(fresh_home, run, tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # MLflow takes an address for a path too, and makes directories of it where it is.
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "odd" / name / "home"
    shutil.copytree(fresh_home / "mlflow", home / "mlflow")
    published = Tracking(home, EXPERIMENT).publish(run)
    assert [path.name for path in (tmp_path / "odd").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "odd" / name).iterdir()] == ["home"]
    assert (home / "mlflow" / "artifacts" / published.run_id / "artifacts" / "config.yaml").exists()
    assert list((home / "mlflow" / "artifacts" / "models").glob("*/artifacts/config.json"))
    assert len(contents(home)) == 4


def test_a_deleted_experiment_is_named(home, run):
    Tracking(home, EXPERIMENT).publish(run)
    client(home).delete_experiment(client(home).get_experiment_by_name(EXPERIMENT).experiment_id)
    with pytest.raises(TrackingError, match=r"'tests' is deleted; restore it, or set tracking\.experiment"):
        Tracking(home, EXPERIMENT)


FIRST_USE = """
import sys, time
from pathlib import Path
from tasks import environment
environment.quieten(hub=False)
from tasks.tracking.tracked import TrackedRun
from tasks.tracking.outbox import Tracking
while time.time() < float(sys.argv[2]):
    pass
run = TrackedRun(uid=sys.argv[3], name=sys.argv[3], created_at=1.0, config={"seed": 1}, rounds=[])
Tracking(Path(sys.argv[1]), "tests").publish(run)
"""


def test_three_first_users_at_once_of_a_fresh_database_all_succeed_and_print_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    start = str(time.time() + 1)
    users = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE, str(tmp_path), start, f"run-{i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(3)
    ]
    output = [user.communicate(timeout=120)[0] for user in users]
    assert [user.returncode for user in users] == [0, 0, 0], output
    assert output == ["", "", ""]
    assert [entry["name"] for entry in contents(tmp_path)] == [f"run-{i}/None" for i in range(3)]


def test_a_server_that_refuses_connections_is_an_error_within_seconds(tmp_path, monkeypatch, capfd):
    for name, value in environment.MLFLOW_CLIENT.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(Exception, match="refused"):
            Tracking(tmp_path, EXPERIMENT)
    assert time.monotonic() - started < 20
    assert capfd.readouterr() == ("", "")


def test_a_page_is_linked_only_where_there_is_a_server_and_never_with_a_password(tmp_path, monkeypatch):
    published = Published(experiment_id="3", run_id="r", rounds={})
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run_page(tmp_path, published, "r") is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host:5000/base/")
    assert (
        run_page(tmp_path, published, "r")
        == "https://host:5000/base/#/experiments/3/runs/r?workflowType=machine_learning"
    )


def test_importing_it_does_not_import_mlflow():
    modules = "tasks.tracking.outbox, tasks.charts"
    code = f"import sys, {modules}; sys.exit('mlflow' in sys.modules or 'plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_is_known_without_mlflow_whether_all_of_a_finished_run_is_logged(home, run, monkeypatch):
    asked = {
        "experiment": EXPERIMENT,
        "run_uid": run.uid,
        "config": digest_text(canonical_json(run.config)),
        "num_rounds": len(run.rounds),
    }
    assert not is_logged(home, **asked)
    Tracking(home, EXPERIMENT).publish(replace(run, rounds=run.rounds[:1], policy=None))
    assert not is_logged(home, **asked), "it goes on"
    Tracking(home, EXPERIMENT).publish(run)
    assert is_logged(home, **asked)
    for changed in ({"experiment": "other"}, {"run_uid": "other"}, {"config": "other"}, {"num_rounds": 3}):
        assert not is_logged(home, **asked | changed), changed
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
        assert not is_logged(home, **asked), "it is logged to somewhere else"
    moved = home.rename(home.with_name("moved"))
    assert not is_logged(moved, **asked), "its artifacts are said to be where it was"
    Tracking(moved, EXPERIMENT)
    assert is_logged(moved, **asked)
    experiment = client(moved).get_experiment_by_name(EXPERIMENT).experiment_id
    child = next(found for found in client(moved).search_runs([experiment]) if "rounds.variant" in found.data.tags)
    client(moved).delete_run(child.info.run_id)
    assert not is_logged(moved, **asked), "one round is missing"
    database(moved).write_bytes(b"damaged")
    assert not is_logged(moved, **asked)
