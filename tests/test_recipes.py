"""Each recipe of CONTRIBUTING.md, carried out on a copy of the tree: the result is run there, in processes of its own."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
from documents import section
from recipes import DOCUMENT, Step, carried_out

from tasks.store import read_dataset
from tasks.yaml_text import read_yaml, write_yaml

STATUS = "from flows.cli.main import main; import sys; sys.argv[:1] = ['rounds', 'status', 'run', '--json']; main()"
ONE_ITERATION = ("rounds=1", "iterations=1", "rollouts.shards=1")


def python(tree, *arguments):
    """What a Python of the copy prints."""
    packages = {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "tests")]), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **packages, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_with(tree, configuration, *overrides):
    """The outputs of one iteration of the tiny world with the configuration of a recipe."""
    document = read_yaml((tree / "tests/flows/tiny.yaml").read_text())
    for name, value in read_yaml(configuration).items():
        document[name] = {**document[name], **value} if isinstance(document.get(name), dict) else value
    (tree / "recipe.yaml").write_text(write_yaml(document))
    given = [word for override in (*ONE_ITERATION, *overrides) for word in ("--set", override)]
    python(tree, "tests/flows/direct_run.py", "recipe.yaml", tree / "home", "run", *given)
    return tree / "home" / "runs" / "run" / "stages"


def rows(stages, pattern):
    return [row for directory in sorted(stages.glob(pattern)) for row in read_dataset(directory).to_pylist()]


def made(heading, tree):
    """A recipe carried out in a copy of the tree, whose own packages a Python there imports."""
    done = carried_out(heading, tree)
    where = python(tree, "-c", "import flows, ppo_core, tasks; print(*(p.__path__ for p in (flows, ppo_core, tasks)))")
    assert where.count(f"['{tree}") == 3
    return done


def test_a_kind_of_reward(tmp_path):
    done = made("A kind of reward", tmp_path)
    assert len(done.files) == 2
    stages = run_with(tmp_path, done.configuration, "rewards.brief.word_limit=1")
    (weight,) = [reward["weight"] for reward in read_yaml(done.configuration)["rewards"].values()]
    scored = rows(stages, "round-001/iteration-001/score_rollouts/*/*/rollouts")
    for row in scored:
        assert row["score_brief"] == -max(0, len(row["response"].split()) - 1)
        others = row["score_preference"] + 0.5 * row["score_quality"]
        assert row["score"] == pytest.approx(others + weight * row["score_brief"], abs=1e-6)
    assert any(row["score_brief"] for row in scored)
    assert "# word_limit: " in python(tmp_path, "-c", "from flows.config import commented; print(commented())")


def test_an_advantage_estimator(tmp_path):
    done = made("An advantage estimator", tmp_path)
    assert len(done.files) == 2
    stages = run_with(tmp_path, done.configuration)
    experience = rows(stages, "round-001/iteration-001/compute_advantages/*/rollouts")
    groups = {}
    for row in experience:
        groups.setdefault(row["prompt_id"], []).append(sum(row["rewards"]))
    for row in experience:
        own, group = sum(row["rewards"]), groups[row["prompt_id"]]
        sign = math.copysign(1.0, own - sum(group) / len(group)) if len(set(group)) > 1 else 0.0
        assert set(row["advantages"]) == {sign}
    assert {advantage for row in experience for advantage in row["advantages"]} >= {-1.0, 1.0}


@pytest.mark.slow
def test_a_sampling_engine(tmp_path):
    done = made("A sampling engine", tmp_path)
    assert len(done.files) == 3
    stages = run_with(tmp_path, done.configuration)
    rollouts = rows(stages, "round-001/iteration-001/generate_rollouts/*/*/rollouts")
    # Another engine than the trainer: its own log-probabilities are kept too, and are the same but for rounding.
    for row in rollouts:
        assert row["sampling_logprobs"] == pytest.approx(row["logprobs"], abs=1e-4)
    assert rollouts


@pytest.mark.slow
def test_a_metric(tmp_path):
    done = made("A metric", tmp_path)
    assert len(done.files) == 2
    stages = run_with(tmp_path, done.configuration, "rollouts.shards=2")
    longest = {}
    for directory in stages.glob("round-001/iteration-001/generate_rollouts/*/*"):
        lengths = [len(row["response_token_ids"]) for row in read_dataset(directory / "rollouts").to_pylist()]
        longest[json.loads((directory / "manifest.json").read_text())["metrics"]["rollouts/longest"]] = max(lengths)
    assert all(logged == found for logged, found in longest.items())
    (report,) = stages.glob("round-001/report_round/*/metrics.json")
    # Of both shards the longest.
    assert [row["rollouts/longest"] for row in json.loads(report.read_text())] == [max(longest)]
    assert "| `rollouts/longest` | tokens |" in python(tmp_path, "-m", "tasks.metrics")


def test_a_stage(tmp_path):
    done = made("A stage", tmp_path)
    assert len(done.files) == 5
    stages = run_with(tmp_path, done.configuration)
    (counted,) = stages.glob("round-001/count_openings/*/openings.json")
    evaluated = [r for r in rows(stages, "round-001/evaluate_policy/*/evaluation") if r["sampled_by"] == "policy"]
    openings = json.loads(counted.read_text())
    assert sum(openings.values()) == len(evaluated)
    for row in evaluated:
        assert " ".join(row["response"].split()[:2]) in openings
    status = json.loads(python(tmp_path, "-c", STATUS, "--home", tmp_path / "home"))
    assert [stage["state"] for stage in status["stages"] if stage["stage"] == "count_openings"] == ["committed"]


# How a recipe is read


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("before", "def f():\n    b\n    a\n    c\n"),
        ("after", "def f():\n    a\n    b\n    c\n"),
        ("instead of", "def f():\n    b\n    c\n"),
    ],
)
def test_a_block_goes_where_its_line_says_and_is_indented_as_what_is_there(tmp_path, where, expected):
    (tmp_path / "x.py").write_text("def f():\n    a\n    c\n")
    Step(where=where, path="x.py", anchor="a", text="b\n").carry_out(tmp_path)
    assert (tmp_path / "x.py").read_text() == expected


def test_a_block_at_the_end_and_a_new_file(tmp_path):
    Step(where="new file", path="new/x.py", text="a\n").carry_out(tmp_path)
    Step(where="end", path="new/x.py", text="b\n").carry_out(tmp_path)
    assert (tmp_path / "new/x.py").read_text() == "a\nb\n"
    with pytest.raises(AssertionError, match="is there already"):
        Step(where="new file", path="new/x.py", text="a\n").carry_out(tmp_path)


def test_a_text_that_is_not_on_one_line_alone_is_told(tmp_path):
    (tmp_path / "x.py").write_text("a\na\n")
    with pytest.raises(AssertionError, match="has 2 lines with 'a'"):
        Step(where="after", path="x.py", anchor="a", text="b\n").carry_out(tmp_path)


def test_every_recipe_is_carried_out_here():
    text = section(DOCUMENT, "Recipes")
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == [
        "A kind of reward",
        "An advantage estimator",
        "A sampling engine",
        "A metric",
        "A stage",
    ]
