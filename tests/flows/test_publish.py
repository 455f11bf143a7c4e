"""From committed stages to MLflow and Prefect: what is found, that nothing stops training, that nothing is injected."""

import contextlib
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.config.reading import checked
from flows.config.run_config import RunConfig, TrackingConfig
from flows.orchestration import publish as publishing
from flows.orchestration.publish import publish, publish_round
from flows.orchestration.round_page import artifact_key, escaped, round_markdown
from flows.runs.committed import committed_round, committed_rounds
from flows.runs.workspace import Run, create_or_open
from tasks.contract.call import StageCall
from tasks.contract.execution import execute
from tasks.contract.resident import ResidentModels
from tasks.store.data_sets import write_dataset
from tasks.store.files import write_json
from tasks.store.manifest import Inputs, Place, Recipe, Ref, input_digests
from tasks.tracking import outbox as tracking
from tasks.tracking.tracked import Published

INJECTION = (
    "</td><script>alert(1)</script> [x](javascript:alert(1)) ![i](http://evil/p.png)\n# head | `code` \x1b[31m \u202e"
)


@dataclass
class FakeRun:
    """A run whose stages are committed by hand; only its reports are made by the real stage."""

    run: Run
    config: RunConfig

    def commit(
        self,
        stage: str,
        place: Place,
        inputs: Inputs,
        metrics: Mapping[str, float],
        files: Mapping[str, Any],
        **settings: Any,
    ) -> Ref:
        recipe = Recipe(
            stage=stage, version="1", place=place, seed=0, settings=settings, inputs=input_digests(inputs), generation=0
        )
        if done := self.run.store.find(recipe):
            return done
        scratch = self.run.store.scratch(recipe)
        for name, content in files.items():
            if isinstance(content, pa.Table):
                write_dataset(scratch / name, content)
            else:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                write_json(scratch / name, content)
        return self.run.store.commit(recipe, scratch, inputs=inputs, rows=4, metrics=metrics, seconds=1.5)

    def data(self) -> Ref:
        sources = {
            "prompts": [source("p.jsonl")],
            "held_out_prompts": [],
            "preferences": [source("q.jsonl")],
            "texts": [],
        }
        digests = ["a" * 32, "b" * 32]
        prompts = pa.table({"prompt": ["x", "y"]})
        metrics = {"data/prompts": 2.0, "data/dropped": 0.0}
        return self.commit(
            "prepare_data",
            Place(1),
            {"base": None},
            metrics,
            {"prompts": prompts},
            data=sources,
            source_digests=digests,
        )

    def round(
        self, number: int, before: Ref | None, data: Ref, start: Ref, *, learning_rate: float = 0.1
    ) -> tuple[Ref, Ref]:
        """Its report and its last checkpoint, begun from ``start``."""
        reward_model = self.commit(
            "train_reward_model",
            Place(1),
            {"data": data},
            {"reward_model/accuracy": 0.75, "reward_model/calibration_error": 0.05},
            {"calibration.json": calibration()},
        )
        groups: dict[str, list[Ref]] = {
            "rollouts": [],
            "scored": [],
            "experience": [],
            "checkpoints": [],
            "audits": [],
        }
        policy = start
        for iteration in (1, 2):
            place = Place(number, iteration)
            value = 0.1 * iteration + number
            shards = []
            for shard in (0, 1):
                at = Place(number, iteration, shard)
                metrics = {"rollouts/response_length": 10.0 + 2 * shard}
                rolled = self.commit(
                    "generate_rollouts", at, {"policy": policy, "data": data}, metrics, {"r.json": value}
                )
                scored = self.commit(
                    "score_rollouts", at, {"rollouts": rolled}, {"score/mean": value}, {"s.json": value}
                )
                groups["rollouts"].append(rolled)
                shards.append(scored)
            rows = pa.table(
                {
                    "rollout_id": ["r0", "r1"],
                    "prompt": ["say <hi>", "p|q"],
                    "response": [INJECTION, "fine"],
                    "finish_reason": ["stop", "length"],
                    "score": pa.array([0.25, 1.5], pa.float32()),
                }
            )
            experience = self.commit(
                "compute_advantages", place, {"scored": shards}, {"kl/mean": value}, {"rollouts": rows}
            )
            audit = self.commit(
                "audit_rollouts",
                place,
                {"scored": shards, "policy": policy},
                {"audit/length_correlation": value / 10},
                {"a.json": value},
            )
            policy = self.commit(
                "update_policy",
                place,
                {"experience": experience, "policy": policy},
                {
                    "update/entropy": 3.0 - value,
                    "update/approx_kl": 0.01 if number == 1 else 0.2,
                    "health/warnings": 0.0,
                },
                {"policy/config.json": {"step": value, "learning_rate": learning_rate}, "critic/config.json": {}},
                learning_rate=learning_rate,
            )
            groups["scored"] += shards
            groups["experience"].append(experience)
            groups["checkpoints"].append(policy)
            groups["audits"].append(audit)
        evaluation = self.commit(
            "evaluate_policy",
            Place(number),
            {"policy": policy, "reference": data, "reward_model": reward_model, "external": {}, "data": data},
            {
                "evaluation/score": 1.0 + number,
                "evaluation/reference_score": 0.5,
                "evaluation/reference_score_std": 2.0,
                "evaluation/score_gain": 0.25 + number / 2,
                "evaluation/kl": 3.25,
            },
            {"evaluation": evaluated()},
        )
        call = StageCall(
            stage="report_round",
            place=Place(number),
            settings={},
            seed=0,
            run_root=str(self.run.root),
            execution={"dtype": "auto"},
            inputs={**groups, "evaluation": evaluation, "reward_model": reward_model, "previous": before},
        )
        return execute(call, models=ResidentModels(), report=lambda _: None), policy


def evaluated() -> pa.Table:
    """Two prompts, answered by policy and reference; the policy twice."""
    rows = [
        ("policy", "a", 0, INJECTION, 1.5),
        ("policy", "a", 1, "again", 1.0),
        ("policy", "b", 0, "fine", 0.5),
        ("reference", "b", 0, "well", 0.25),
        ("reference", "a", 0, "hm", -0.5),
    ]
    names = ["sampled_by", "prompt_id", "sample_index", "response", "score"]
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return pa.table({**columns, "prompt": [f"prompt {prompt_id}" for prompt_id in columns["prompt_id"]]})


def source(path: str) -> dict[str, Any]:
    return {"path": path, "dataset": None, "function": None}


def calibration() -> dict[str, Any]:
    bins = [{"lower": 0.8, "pairs": 4, "mean_confidence": 0.8, "accuracy": 0.75}]
    return {"pairs": 4, "accuracy": 0.75, "calibration_error": 0.05, "bins": bins}


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> FakeRun:
    config = checked(
        {
            "rounds": 2,
            "iterations": 2,
            "model": {"policy": "unused"},
            "data": {"prompts": ["p.jsonl"], "preferences": ["q.jsonl"]},
            "rewards": {"preferred": {"model": "trained"}},
            "reward_model": {},
            "rollouts": {"sampling": {"max_new_tokens": 8}},
        },
        where="test",
    )
    run = create_or_open(tmp_path_factory.mktemp("home"), "Quick_Start")
    run.set_config(config)
    return FakeRun(run, config)


@pytest.fixture(scope="module")
def reports(fake) -> list[Ref]:
    data = fake.data()
    first, policy = fake.round(1, None, data, data)
    second, _ = fake.round(2, first, data, policy)
    return [first, second]


@pytest.fixture(autouse=True)
def _embedded(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client(fake: FakeRun) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking.tracking_uri(fake.run.home))


def runs_of(fake: FakeRun) -> list[Any]:
    store = client(fake)
    experiment = store.get_experiment_by_name("rlhf-rounds")
    found = store.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [r for r in found if r.data.tags["rounds.run_uid"] == fake.run.uid]


def test_a_round_is_found_from_its_report_alone(fake, reports):
    rounds = committed_rounds(fake.run.root, reports[1].directory)
    assert [found.number for found in rounds] == [1, 2]
    stages = [(m.stage, str(m.place)) for m in rounds[1].of_this_round()]
    assert len(stages) == 2 * (2 + 2 + 1 + 1 + 1) + 2
    assert all("round-002" in place for _, place in stages)
    assert {m.stage for m in rounds[0].of_this_round()} > {"prepare_data", "train_reward_model"}
    assert (rounds[1].checkpoint / "policy" / "config.json").is_file()


def test_both_rounds_are_logged_and_publishing_again_adds_nothing(fake, reports):
    published = publish(fake.run, fake.config, committed_rounds(fake.run.root, reports[1].directory))
    store = client(fake)
    child = store.get_run(published.rounds[2])

    def values(name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in store.get_metric_history(published.rounds[2], name)]

    assert values("score/mean") == [(1, pytest.approx(2.1)), (2, pytest.approx(2.2))]
    assert values("rollouts/response_length") == [(1, 11.0), (2, 11.0)]
    assert values("audit/length_correlation") == [(1, pytest.approx(0.21)), (2, pytest.approx(0.22))]
    assert values("evaluation/score") == [(2, 3.0)]
    assert values("reward_model/accuracy") == [(0, 0.75)]
    assert values("data/prompts") == [(0, 2.0)]
    assert values("seconds/generate_rollouts") == [(1, 3.0), (2, 3.0)]
    inputs = {(d.dataset.name, d.dataset.digest) for d in child.inputs.dataset_inputs}
    assert {("p.jsonl", "a" * 32), ("q.jsonl", "b" * 32)} < inputs
    assert {name for name, _ in inputs} == {"p.jsonl", "q.jsonl", "prompts"}
    assert values("health/warnings") == [(1, 1.0), (2, 1.0)]
    artifacts = {entry.path for entry in store.list_artifacts(published.rounds[2])}
    assert artifacts == {"config.yaml", "evaluation.json", "reward_model", "samples.json", "stages.json"}
    assert {entry.path for entry in store.list_artifacts(published.run_id)} == {
        "charts.html",
        "config.yaml",
        "evaluation.json",
    }
    assert child.data.params["rollouts.sampling.max_new_tokens"] == "8"
    from mlflow.artifacts import download_artifacts

    (model,) = store.search_logged_models([published.experiment_id], filter_string="name = 'Quick_Start-policy'")
    directory = download_artifacts(model.artifact_location)
    assert (Path(directory) / "config.json").read_text() == (
        committed_round(fake.run.root, reports[1].directory).checkpoint / "policy" / "config.json"
    ).read_text()

    before = [(r.info.run_id, r.data.to_dictionary(), r.info.end_time) for r in runs_of(fake)]
    assert publish_round(fake.run, fake.config, reports[1]) == []
    assert [(r.info.run_id, r.data.to_dictionary(), r.info.end_time) for r in runs_of(fake)] == before
    assert len(before) == 3


def test_a_metric_is_one_curve_through_both_rounds_also_in_the_headline(fake, reports):
    published = publish(fake.run, fake.config, committed_rounds(fake.run.root, reports[1].directory))
    store = client(fake)

    def values(name: str) -> list[tuple[int, Any]]:
        return [(m.step, pytest.approx(m.value)) for m in store.get_metric_history(published.run_id, name)]

    assert values("score/mean") == values("0 headline/score") == [(1, 1.1), (2, 1.2), (3, 2.1), (4, 2.2)]
    # The reward model of the first round serves the second too.
    assert values("0 headline/reward_model_accuracy") == [(0, 0.75), (2, 0.75)]
    assert values("0 headline/score_gain") == [(2, 0.75), (4, 1.25)]
    # What stages warned of is in the count of the iteration.
    assert values("health/warnings") == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0)]
    page = download(fake, published.run_id, "charts.html").read_text()
    charts = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    accuracy = next(c for c in charts if c["layout"]["title"]["text"] == "Accuracy of the reward model")
    assert accuracy["data"][0]["x"] == [2]
    assert accuracy["data"][0]["customdata"] == [[1, 2]]


def download(fake: FakeRun, run_id: str, name: str) -> Path:
    from mlflow.artifacts import download_artifacts

    uri = tracking.tracking_uri(fake.run.home)
    return Path(download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=uri))


def test_notes_have_the_sentence_the_warnings_and_where_to_look(fake, reports):
    published = publish(fake.run, fake.config, committed_rounds(fake.run.root, reports[1].directory))
    store = client(fake)
    note, second, first = (
        store.get_run(run_id).data.tags["mlflow.note.content"]
        for run_id in (published.run_id, published.rounds[2], published.rounds[1])
    )
    sentence, links, warnings = note.split("\n\n")
    assert sentence.replace("\\", "") == "**Round 2 of 2, finished. Score +1.25 sd, KL 3.2 nats; 1 warning.**"
    assert "[Pages of the run](http://127.0.0.1:7400/runs/Quick_Start)" in links
    assert f"`rounds --home {fake.run.home} status Quick_Start`" in links
    assert "moves the policy far" in warnings
    assert second.startswith("**1 warning** · [Rollouts](http://127.0.0.1:7400/runs/Quick_Start/rollouts?round=2&")
    assert second.endswith(warnings)
    assert first.startswith("**No warnings** · ")
    halfway = publish(fake.run, fake.config, committed_rounds(fake.run.root, reports[0].directory))
    note = store.get_run(halfway.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("**Round 1 of 2, running")


def test_policy_and_reference_answer_the_same_prompts_in_a_table(fake, reports):
    published = publish(fake.run, fake.config, committed_rounds(fake.run.root, reports[1].directory))
    for run_id in (published.run_id, published.rounds[1]):
        table = json.loads(download(fake, run_id, "evaluation.json").read_text())
        assert table["columns"] == ["prompt", "response", "reference_response", "score", "reference_score"]
        assert table["data"][1] == ["prompt b", "fine", "well", 0.5, 0.25]
        assert [row[0] for row in table["data"]] == ["prompt a", "prompt b"]


def test_what_a_model_wrote_is_shown_in_mlflow_and_never_obeyed(fake, reports):
    published = publish(fake.run, fake.config, committed_rounds(fake.run.root, reports[1].directory))
    shown = INJECTION.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    texts = {
        name: download(fake, published.rounds[2], name).read_text() for name in ("samples.json", "evaluation.json")
    }
    for text in texts.values():
        # A table's cells are shown as they are: nothing is markup there, but a browser obeys these signs in any text.
        assert not set("\u202e\x1b") & set(text)
        assert shown in [row[json.loads(text)["columns"].index("response")] for row in json.loads(text)["data"]]
    # A note is Markdown, a page HTML: no model's text is in either.
    notes = [store_run.data.tags["mlflow.note.content"] for store_run in runs_of(fake)]
    for text in [*notes, download(fake, published.run_id, "charts.html").read_text()]:
        assert "evil/p.png" not in text


def test_a_round_that_could_not_be_logged_is_logged_with_the_next_one(fake, reports, monkeypatch):
    config = fake.config.model_copy(update={"tracking": TrackingConfig(experiment="late")})
    with monkeypatch.context() as patch, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        (problem,) = publish_round(fake.run, config, reports[0])
    assert problem.startswith("MLflow: ")
    assert "\n" not in problem
    assert publish_round(fake.run, config, reports[1]) == []
    store = client(fake)
    found = store.search_runs([store.get_experiment_by_name("late").experiment_id])
    assert len(found) == 3


def test_a_report_that_has_changed_since_is_reported_nowhere(fake, reports):
    metrics = reports[0].directory / "metrics.json"
    whole = metrics.read_bytes()
    assert b"1.1" in whole
    config = fake.config.model_copy(update={"tracking": TrackingConfig(experiment="changed")})
    metrics.write_bytes(whole.replace(b"1.1", b"9.1"))
    try:
        problems = publish_round(fake.run, config, reports[0])
    finally:
        metrics.write_bytes(whole)
    assert [problem.partition(":")[0] for problem in problems] == ["MLflow", "Prefect"]
    assert all("metrics.json has another content than was committed" in problem for problem in problems)
    assert client(fake).get_experiment_by_name("changed") is None


def test_a_replaced_round_is_a_new_curve_with_its_child(fake, reports):
    publish(fake.run, fake.config, committed_rounds(fake.run.root, reports[1].directory))
    data = fake.data()
    first = committed_round(fake.run.root, reports[0].directory)
    again, _ = fake.round(2, reports[0], data, Ref(str(first.checkpoint), "changed"), learning_rate=0.2)
    known = {r.info.run_id for r in runs_of(fake)}
    publish(fake.run, fake.config, committed_rounds(fake.run.root, again.directory))
    new = [r for r in runs_of(fake) if r.info.run_id not in known]
    assert sorted(r.info.run_name for r in new) == ["Quick_Start", "Quick_Start-round-2"]


def test_no_failure_of_either_side_is_raised(fake, reports, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError("no space\nsecond line")

    monkeypatch.setattr(publishing, "publish", fail)
    monkeypatch.setattr(publishing, "show_round", fail)
    problems = publish_round(fake.run, fake.config, reports[0])
    assert [problem.partition(":")[0] for problem in problems] == ["MLflow", "Prefect"]
    assert "no space" in problems[0]
    assert "second line" not in problems[0]


def test_a_rounds_page_has_its_warnings_under_the_gains(fake, reports):
    well, ill = (round_markdown(fake.run, committed_round(fake.run.root, r.directory), None) for r in reports)
    assert "**" not in well
    assert ill.count("**1 warning**") == 1
    assert ill.index("gain, reference std") < ill.index("**1 warning**") < ill.index("## Iterations")
    told = next(line for line in ill.splitlines() if line.startswith("- update"))
    assert "update/approx_kl is 0.2, above 0.1 (round 2, iteration 1, and 1 more)" in told.replace("\\", "")


def test_what_a_model_wrote_is_shown_and_never_read_as_markup(fake, reports):
    page = round_markdown(fake.run, committed_round(fake.run.root, reports[0].directory), None)
    for markup in (r"(?<!\\)<script", r"\]\(java", r"(?<!\\)!", "http://evil", "\u202e", "\x1b"):
        assert not re.search(markup, page)
    rows = [line for line in page.splitlines() if "evil" in line]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 4
    assert r"\<script\>" in rows[0]


@pytest.mark.parametrize(
    "text",
    [
        'a_b *c* <d> [e](f) ![g](h) `i` ~j~ | # 1. - + "x" \\ \\| \\\\ é 日本 :smile: @me https://x.y www.z.com &lt; &#60;',
        "trailing \\",
        "| --- | \\| |",
    ],
)
def test_escaped_text_is_shown_as_it_was_and_holds_no_markup(text):
    # CommonMark 0.31, 2.4: any ASCII punctuation after a backslash is literal; nothing else is special in a line.
    shown = escaped(text)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown) == text
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"\\.", "", shown))


def test_long_text_is_cut_and_lines_are_one():
    assert escaped("x" * 1000).endswith("x …")
    assert escaped("a\nb\x00") == "a ↵ b�"


def test_the_page_compares_reference_and_policy_and_says_where_to_look(fake, reports):
    committed = committed_round(fake.run.root, reports[0].directory)
    page = round_markdown(fake.run, committed, None)
    assert "| score | 0.5 | 2 | +0.75 |" in page
    assert "| 2 | 1.2 | 1.2 | 11 | 1.8 |" in page
    assert "| iteration | score | KL, nats per response | length, tokens | entropy, nats per token |" in page
    assert "75.0% of held-out pairs" in page
    assert "not logged to MLflow yet" in page
    published = Published(experiment_id="1", run_id="p", rounds={1: "c"})
    page = round_markdown(fake.run, committed, published)
    assert "see `rounds mlflow`" in page


def test_a_password_of_the_tracking_store_is_on_no_page(fake, reports, monkeypatch):
    committed = committed_round(fake.run.root, reports[0].directory)
    published = Published(experiment_id="1", run_id="p", rounds={1: "c"})
    for uri in ("postgresql://me:secret@host/db", "https://me:secret@host"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "secret" not in round_markdown(fake.run, committed, published)


def test_the_page_of_a_round_has_its_sentence_and_leads_to_the_pages(fake, reports):
    page = round_markdown(fake.run, committed_round(fake.run.root, reports[1].directory), None)
    assert "Round 2 of 2, done. Score +1.25 sd, KL 3.2 nats; 1 warning." in page.replace("\\", "")
    assert "[Pages of the run](http://127.0.0.1:7400/runs/Quick_Start)" in page
    assert "[rollouts of the round](http://127.0.0.1:7400/runs/Quick_Start/rollouts?round=2&iteration=all)" in page


def test_artifact_keys_are_what_prefect_takes():
    assert artifact_key("Quick_Start.v2-round-1") == "quick-start-v2-round-1"


@pytest.fixture(scope="module")
def prefect_server():
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    with contextlib.ExitStack() as stack:
        stack.enter_context(prefect_test_harness(server_startup_timeout=120))
        stack.enter_context(temporary_settings(quiet))
        yield


@pytest.mark.usefixtures("prefect_server")
def test_prefect_shows_the_round_as_an_artifact_of_the_task_that_published_it(fake, reports):
    from prefect import flow, task
    from prefect.client.orchestration import get_client

    @task
    def publish_in_task() -> list[str]:
        return publish_round(fake.run, fake.config, reports[0])

    @flow
    def publish_in_flow() -> list[str]:
        return publish_in_task.submit().result()

    assert publish_in_flow() == []
    with get_client(sync_client=True) as server:
        (artifact,) = [a for a in server.read_artifacts() if a.key == "quick-start-round-1"]
    assert artifact.task_run_id is not None
    assert r"# Quick\_Start, round 1" in artifact.data
    (parent,) = [r for r in runs_of(fake) if r.info.run_name == "Quick_Start"]
    assert f"/runs/flow-run/{artifact.flow_run_id}" in parent.data.tags["rounds.prefect"]
