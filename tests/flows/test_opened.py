"""A run looked at in Python."""

import re
import subprocess
import sys

import pandas as pd
import pytest
from fake_runs import document, finished_run

import flows
from tasks.errors import ConfigError, DamagedError, RunError

HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """A home with a finished run."""
    directory = tmp_path_factory.mktemp("home")
    finished_run(directory, "fake", document(directory))
    return directory


@pytest.fixture
def run(fakes):
    return flows.open("fake", home=fakes)


def test_a_run_is_found_by_name_and_by_directory_and_else_the_latest(fakes, run):
    assert (run.name, run.directory) == ("fake", fakes / "runs" / "fake")
    assert flows.open(str(run.directory)).name == flows.open(home=fakes).name == "fake"
    assert repr(run) == f"<run fake: {run.state}>"
    assert run.config["rounds"] == 2
    with pytest.raises(RunError, match="gone: no run of that name"):
        flows.open("gone", home=fakes)


def test_metrics_are_a_row_for_each_iteration(run):
    metrics = run.metrics()
    assert metrics[["round", "iteration"]].to_numpy().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert metrics["kl/mean"].tolist() == [0.5] * 4
    # What a round measures once stands in the row of its last iteration.
    assert metrics["data/prompts"].notna().tolist() == [False, True, False, False]


def test_rollouts_are_those_of_the_latest_iteration_or_of_all_that_are_asked_for(run):
    assert [row["rollout_id"] for row in run.rollouts()] == ["r2.i2.s0.aa.0", "r2.i2.s0.bb.0"]
    everywhere = run.rollouts("score<0 sort:-round", rounds="all")
    frame = everywhere.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["round"].tolist() == [2, 2, 1, 1]
    assert everywhere.to_arrow().num_rows == everywhere.to_dataset().num_rows == 4
    assert len(run.rollouts(rounds=1, iterations=2)) == 2
    assert [row["distinct_2"] for row in run.rollouts(data="audit", rounds=1, iterations=1)] == [1.0, None]
    with pytest.raises(ConfigError, match="nope: no such column"):
        run.rollouts("nope<1")
    with pytest.raises(ConfigError, match="rounds x: not a number"):
        run.rollouts(rounds="x")


def test_a_rollout_shows_its_tokens_in_a_notebook_and_obeys_none(run):
    shown = run.rollout("r1.i1.s0.aa.0")._repr_html_()
    assert re.findall(r"<span [^>]*>([^<]*)</span>", shown) == ["good", " dog", "&lt;/s&gt;"]
    assert 'title="logprob -1, ref_logprob -1.5, kl 0.5, reward 0.75, value 0.25, advantage 2, return 1.25"' in shown
    hostile = run.rollout("r1.i1.s0.aa.0")
    hostile.row["prompt"] = hostile.row["rollout_id"] = HOSTILE
    hostile.tokens[0]["token"] = HOSTILE
    shown = hostile._repr_html_()
    assert shown.count("&lt;script&gt;") == 3
    assert "<script" not in shown
    assert "\x1b" not in shown


def test_a_run_shows_its_state_and_results_in_a_notebook(run):
    shown = run._repr_html_()
    assert shown.startswith(f"<p><b>fake</b>: {run.state} <svg")
    assert "<table" in shown
    assert "<th>round</th>" in shown


def test_a_stage_s_data_set_is_checked_and_opened(run):
    stage = run.stage("compute_advantages", round=1, iteration=2)
    assert stage.manifest.stage == "compute_advantages"
    assert stage.dataset()["rollout_id"][:] == ["r1.i2.s0.aa.0", "r1.i2.s0.bb.0"]
    with pytest.raises(RunError, match="scores: none of its data sets rollouts"):
        stage.dataset("scores")
    with pytest.raises(RunError, match="no such stage; stages are prepare_data"):
        run.stage("scoring", round=1)
    with pytest.raises(RunError, match="run fake has no committed score_rollouts in round 1, iteration 7"):
        run.stage("score_rollouts", round=1, iteration=7)
    (file,) = stage.directory.glob("rollouts/*.arrow")
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(DamagedError):
            stage.dataset()
    finally:
        file.write_bytes(before)


def test_models_are_those_of_the_run(home, tiny):
    """Of a real run: the policy gives its rollouts' log-probabilities, the reward model their scores."""
    import torch

    run = flows.open(tiny, home=home.path)
    policy = run.policy()
    assert not policy.training
    rows = run.rollouts("sampled_by:policy", data="evaluation", rounds="all").dicts()
    rows = [row for row in rows if row["round"] == 2][:4]
    assert rows
    for row in rows:
        prompt, response = row["prompt_token_ids"], row["response_token_ids"]
        with torch.inference_mode():
            logprobs = policy(input_ids=torch.tensor([prompt + response])).logits.log_softmax(-1)[0]
        ours = [float(logprobs[len(prompt) + t - 1, token]) for t, token in enumerate(response)]
        assert ours == pytest.approx(row["logprobs"], abs=1e-4)
    reward_model = run.reward_model()
    (name,) = [name for name, reward in run.config["rewards"].items() if reward.get("model") == "trained"]
    scores = reward_model.score([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert scores == pytest.approx([row[f"score_{name}"] for row in rows], abs=1e-4)
    with pytest.raises(ValueError, match="zip"):
        reward_model.score(["a"], [])


def test_opening_costs_nothing_before_it_is_used():
    code = "import sys, flows; print(*sorted({'pandas', 'pyarrow', 'torch', 'prefect', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
