"""The reward model's held-out pairs, the data of a round, and the report: on small tables for which one sees the answer."""

import json
import math
import re
import shutil

import fake_runs
import numpy as np
import pytest
from test_pages import client
from typer.testing import CliRunner

from flows.analysis.data import source_name
from flows.analysis.reward_model import length_bins, margin_bins, source_bins
from flows.cli.main import app
from flows.config import checked
from flows.pages.report import report_text, script, write_report
from flows.runs import find_run
from tasks.errors import ConfigError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    document = fake_runs.document(home)
    fake_runs.finished_run(home, "done", document)
    fake_runs.finished_run(home, "early", document, stop_before=("generate_rollouts", 1, 1))
    return home


# The reward model


def test_accuracy_by_length_tells_longer_from_shorter():
    longer_by = np.array([-40.0, -31, -30, -2, 0, 0, 1, 3, 4, 31])
    margin = np.array([1.0, -1, 1, 1, 1, -1, -1, 1, 1, 1])
    found = [(own.label, own.pairs, own.accuracy) for own in length_bins(longer_by, margin)]
    assert found == [
        ("shorter by 31 and more", 2, 0.5),
        ("shorter by 11 to 30", 1, 1.0),
        ("shorter by 1 to 3", 1, 1.0),
        ("as long", 2, 0.5),
        ("longer by 1 to 3", 2, 0.5),
        ("longer by 4 to 10", 1, 1.0),
        ("longer by 31 and more", 1, 1.0),
    ]
    assert sum(own.pairs for own in length_bins(longer_by, margin)) == len(margin)


def test_the_error_of_a_bin_is_that_of_a_share():
    (found,) = length_bins(np.zeros(8), np.array([1.0] * 6 + [-1.0] * 2))
    assert (found.accuracy, found.stderr) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 8)))


def test_bins_of_peoples_margins_hold_as_many_pairs_each_and_the_largest_too():
    people = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, math.nan])
    found = margin_bins(people, np.ones(9))
    assert [own.pairs for own in found] == [2, 2, 2, 2]
    assert margin_bins(np.full(3, math.nan), np.ones(3)) == []
    assert [(own.label, own.pairs) for own in margin_bins(np.full(3, 2.0), np.ones(3))] == [("2", 3)]


def test_sources_are_told_apart_where_there_are_several():
    source, margin = np.array([0.0, 2, 0, 0, 2, 0]), np.array([1.0, 1, 1, -1, -1, 1])
    found = source_bins(source, ["a", "b", "c"], margin)
    # No pair of b was held out; of four, a share of 3/4 has an error of √(3/16 / 4), of two at a half √(1/4 / 2).
    expected = [("a", 4, 0.75, math.sqrt(3 / 64)), ("c", 2, 0.5, math.sqrt(1 / 8))]
    assert [(own.label, own.pairs, own.accuracy, pytest.approx(own.stderr)) for own in found] == expected
    assert source_bins(source * 0, ["a"], margin) == []


def test_the_page_tells_the_accuracy_of_each_source(tmp_path):
    document = fake_runs.document(tmp_path)
    (tmp_path / "new.jsonl").write_text('{"prompt": "say", "chosen": "good", "rejected": "dog"}\n')
    document["data"]["preferences"].append(str(tmp_path / "new.jsonl"))
    fake_runs.finished_run(tmp_path, "two", document, stop_before=("generate_rollouts", 1, 1))
    facts = client(tmp_path).get("/json/runs/two/reward-model").json()
    # Of the fake pairs, one of two of the first source is right, and none of the second's one.
    told = [(own["label"].rpartition("/")[2], own["pairs"], own["accuracy"]) for own in facts["by_source"]]
    assert told == [("preferences.jsonl", 2, 0.5), ("new.jsonl", 1, 0.0)]
    assert "new.jsonl" in client(tmp_path).get("/runs/two/reward-model").text


def test_the_page_shows_the_worst_pair_first_and_escapes_it(home):
    facts = client(home).get("/json/runs/done/reward-model").json()
    assert [row["preference_id"] for row in facts["wrong"]] == ["p3", "p2"]
    assert (facts["num_wrong"], facts["pairs"], facts["round"]) == (2, 3, 1)
    assert [own["round"] for own in facts["rounds"]] == [1]
    assert facts["wrong"][0]["words"] == [["a", "bad"], ["b", "good"]]
    page = client(home).get("/runs/done/reward-model?round=1").text
    assert "\x1b" not in page
    assert "<del>" in page
    assert client(home).get("/runs/done/reward-model?round=3").status_code == 400


def test_a_run_without_a_reward_model_says_so(tmp_path):
    rewards = {"quality": {"function": "flows.presets.quickstart:true_quality"}}
    document = fake_runs.document(tmp_path, reward_model=None, rewards=rewards, algorithm="rloo")
    document["data"].pop("preferences")
    document["rollouts"]["samples_per_prompt"] = 2
    fake_runs.finished_run(tmp_path, "none", document)
    answer = client(tmp_path).get("/runs/none/reward-model")
    assert answer.status_code == 404
    assert "trains no reward model; its rewards are" in answer.text


def test_a_reward_model_that_is_not_there_yet_is_told(tmp_path):
    fake_runs.finished_run(tmp_path, "begun", fake_runs.document(tmp_path), stop_before=("train_reward_model", 1, 0))
    answer = client(tmp_path).get("/json/runs/begun/reward-model")
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("run begun has trained no reward model yet; rounds status begun")


def test_a_reward_model_of_before_is_shown_as_far_as_it_is_known(tmp_path):
    document = fake_runs.document(tmp_path)
    run = fake_runs.finished_run(tmp_path, "old", document)
    (output,) = (run.root / "stages" / "round-001" / "train_reward_model").iterdir()
    shutil.rmtree(output / "held_out_pairs")
    fake_runs.recommit(output)
    run.set_config(checked({**document, "seed": 7}, where="test"))
    facts = client(tmp_path).get("/json/runs/old/reward-model").json()
    assert (facts["is_current"], facts["has_pairs"], facts["rounds"][0]["accuracy"]) == (False, False, 0.8)
    page = client(tmp_path).get("/runs/old/reward-model").text
    assert "was trained before that" in page
    assert "rounds rerun old --from train_reward_model" in page


# Data


def test_two_sources_of_one_function_are_told_apart():
    source = {"path": None, "dataset": None, "function": None}
    assert source_name({**source, "path": "a/*.jsonl"}) == "a/*.jsonl"
    assert source_name({**source, "function": "m:f", "arguments": {"part": 2, "kind": "x"}}) == "m:f(part=2, kind='x')"
    assert source_name({**source, "function": "m:f"}) == "m:f()"
    assert source_name({**source, "dataset": "org/x", "subset": None, "split": "train"}) == "org/x train"


def test_the_data_of_a_round_names_its_sources_and_what_was_left_out(home):
    facts = client(home).get("/json/runs/done/data").json()
    assert [(source["kind"], source["name"].rpartition("/")[2], source["rows"]) for source in facts["sources"]] == [
        ("prompts", "prompts.jsonl", 3), ("preferences", "preferences.jsonl", 1), ("texts", "texts.jsonl", 1),
    ]  # fmt: skip
    assert facts["findings"]["left_out"] == {"equal responses": 1}
    assert facts["examples"]["prompts"] == [["<s>", "good"], ["<s>", "good", " dog", "</s>"]]
    assert facts["longest"] == {"prompts": 4}
    assert [line["x0"] for line in facts["charts"]["prompts"]["layout"]["shapes"]] == [6]
    page = client(home).get("/runs/done/data").text
    assert "prompts.jsonl, row 3" in page
    assert "preferences.jsonl, row 7-9, 12" in page
    assert "The context of the model is 6 tokens." in page
    assert '<span class="special">&lt;s&gt;</span>' in page
    assert "\x1b" not in page
    assert client(home).get("/runs/done/data?round=9").status_code == 404


# The report


def test_a_report_is_one_file_that_asks_no_network(home):
    text = report_text(find_run(home, "done"), rollouts=8)
    assert "default-src 'none'" in text
    # The scripts come last.
    assert not re.findall(r'(?:src|href)="', text.split("<script>")[0])
    assert "Round 2 of 2, finished." in text
    assert "rollouts.shards" in text
    # Both rollouts of each of two iterations of the last round, each once, with all reasons why it is there.
    assert text.count("<tr data-score=") == 4
    # Charts' data and scripts stand in elements that nothing in them ends.
    assert text.count("<script") == text.count("</script>")


def test_what_a_model_wrote_is_shown_in_a_report_and_not_obeyed(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_runs, "HOSTILE", "</script><script>alert(1)</script>\x1b[2J\u202e")
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path))
    text = report_text(find_run(tmp_path, "done"), rollouts=8)
    assert "<script>alert(1)" not in text
    assert not {"\x1b", "\u202e"} & set(text.split("<script>")[0])


def test_a_run_that_has_not_come_far_has_a_report_too(home):
    text = report_text(find_run(home, "early"), rollouts=8)
    assert "No round of 2 is done yet" in text
    assert "There are none yet" in text


def test_nothing_in_a_script_ends_its_element(tmp_path):
    (tmp_path / "x.js").write_text('x = "</script><!--"')
    assert script(tmp_path / "x.js") == 'x = "<\\/script><\\!--"'


def test_a_report_that_cannot_be_written_is_told_and_leaves_nothing(home, tmp_path):
    with pytest.raises(ConfigError, match=r"--to .*nowhere.*: cannot be written \(No such file or directory\)"):
        write_report(find_run(home, "done"), tmp_path / "nowhere" / "x.html", rollouts=8)
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(app, ["--home", str(home), "report", "done", "--to", str(tmp_path / "r.html")])
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "r.html"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_pages_of_both_are_json_too(home):
    for page in ("reward-model", "data", "hacking"):
        json.loads(client(home).get(f"/json/runs/done/{page}").text)
