"""Runs that are started from Python, with rows in memory as their data."""

import json
import os
import subprocess
import sys

import datasets
import pandas as pd
import pytest
import yaml
from conftest import TINY

import flows
from flows.config import checked
from flows.starting import with_sources
from tasks.errors import ConfigError, DataError
from tasks.store.given_rows import write_once

FRAME = pd.DataFrame({"prompt": ["where is the lamp?", "who are you?"], "place": [1, None]})
SCRIPT = """
import datasets, json, pandas, sys, yaml
import flows

home, config = sys.argv[1], yaml.safe_load(open(sys.argv[2]))
frame = pandas.DataFrame({"prompt": [f"where is lamp {number}?" for number in range(12)]})
config |= {"rounds": 1, "iterations": 1, "algorithm": "reinforce", "warm_up": None, "reward_model": None}
config |= {"rewards": {"long": {"function": "lengths:long"}}, "evaluation": {}}
config["data"] = {"texts": config["data"]["texts"], "num_held_out_prompts": 2}
run = flows.start(config, name="frames", home=home, prompts=frame[frame.index % 2 == 0])
first = {"state": run.state, "prompts": [s["path"] for s in run.config["data"]["prompts"]]}
first["report"] = run.stage("report_round", round=1).manifest.origin
config["data"]["prompts"] = datasets.Dataset.from_pandas(frame).select(range(0, 12, 2))
again = flows.start(config, name="frames", home=home)
second = {"state": again.state, "prompts": [s["path"] for s in again.config["data"]["prompts"]]}
second["report"] = again.stage("report_round", round=1).manifest.origin
print(json.dumps([first, second, sorted(row["prompt"] for row in again.rollouts())]))
"""


def test_rows_in_memory_are_the_data_of_a_run_and_the_same_rows_reuse_it(home, tmp_path):
    (tmp_path / "lengths.py").write_text(
        "def long(prompts, responses, rows):\n    return [len(r) for r in responses]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home.path), str(TINY)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TINY.parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second, prompts = json.loads(done.stdout)
    assert first == second
    assert first["state"] == "finished"
    (path,) = first["prompts"]
    assert path.startswith(str(home.path / "data"))
    # Two of the six are held out.
    assert len(set(prompts)) == 4
    assert set(prompts) <= {f"where is lamp {number}?" for number in range(0, 12, 2)}


def test_the_same_rows_are_one_file_whatever_held_them(tmp_path):
    file = write_once(tmp_path, FRAME, field="data.prompts")
    more = pd.concat([FRAME, pd.DataFrame({"prompt": ["no"], "place": [2]})])
    selected = datasets.Dataset.from_pandas(more, preserve_index=False).select([0, 1])
    assert write_once(tmp_path, selected, field="data.prompts") == file
    assert write_once(tmp_path, more[:2], field="data.prompts") == file
    assert write_once(tmp_path, more, field="data.prompts") != file
    assert pd.read_parquet(file)["prompt"].tolist() == FRAME["prompt"].tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_stand_wherever_the_path_of_a_source_may(tmp_path):
    document = {"data": {"prompts": FRAME, "preferences": ["a.jsonl", {"path": FRAME, "from_round": 2}]}, "seed": 1}
    found = with_sources(document, {"prompts": None, "preferences": None, "texts": "t.jsonl"}, tmp_path)
    path = str(write_once(tmp_path, FRAME, field=""))
    assert found == {
        "seed": 1,
        "data": {
            "prompts": [{"path": path}],
            "preferences": ["a.jsonl", {"path": path, "from_round": 2}],
            "texts": ["t.jsonl"],
        },
    }
    (one,) = with_sources(document, {"prompts": FRAME}, tmp_path)["data"]["prompts"]
    assert one == {"path": path}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": 3}, "config: a int is none; give a preset's name, a file, a dict or a RunConfig"),
        ({"config": "nothing"}, "nothing: no such file, and no preset of that name"),
        ({"config": {}}, 'name: missing; a configuration in memory has none, so say for example name="mine"'),
        ({"config": {}, "name": "a/b"}, "a/b"),
        ({"config": {"data": {"prompts": FRAME[:0]}}, "name": "x"}, "data.prompts: a DataFrame without a row"),
        ({"config": {}, "name": "x", "texts": FRAME["prompt"]}, "data.texts: a Series is no source; give a pandas"),
        (
            {"config": {}, "name": "x", "prompts": pd.DataFrame({"prompt": ["a", 3]})},
            "data.prompts: these rows are no table (.*prompt.*); give each column values of one type",
        ),
        ({"config": {"seed": -1}, "name": "x", "prompts": FRAME}, "x: "),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_run(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(", 0)) as told:
        flows.start(**{**arguments, "home": tmp_path})
    assert "\n" not in str(told.value)
    assert not (tmp_path / "runs").exists()


def test_a_configuration_in_memory_is_taken_as_it_is(tmp_path):
    config = checked(yaml.safe_load(TINY.read_text()), where="tiny")
    with pytest.raises(DataError, match=r"nowhere.jsonl does not exist"):
        flows.start(config, name="x", home=tmp_path, prompts="nowhere.jsonl")
    assert not (tmp_path / "runs").exists()
