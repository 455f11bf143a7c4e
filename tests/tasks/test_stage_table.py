"""The table of stages says what the stages' files are."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from stage_defaults import RECORDED, now

import tasks
from tasks.contract import StageContext, StageOutput, stage_function
from tasks.stages import STAGES

NO_STAGES = {"__init__", "environment", "errors", "paths", "stages", "yaml_text"}


def test_each_file_beside_the_rooms_is_a_stage_and_each_stage_a_file():
    files = {path.stem for path in Path(tasks.__path__[0]).glob("*.py")}
    assert files - NO_STAGES == set(STAGES.names)
    assert len(set(STAGES.names)) == len(STAGES.names)


@pytest.mark.parametrize("name", STAGES.names)
def test_a_stage_takes_what_the_table_says(name):
    signature = inspect.signature(stage_function(name))
    context, config, *inputs = signature.parameters.values()
    assert context.annotation is StageContext
    assert config.annotation is STAGES[name].config
    assert signature.return_annotation is StageOutput
    assert tuple(parameter.name for parameter in inputs) == STAGES[name].inputs
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in inputs)


def test_the_table_is_asked_by_what_is_wanted():
    assert STAGES.of_an_iteration == (
        "generate_rollouts",
        "score_rollouts",
        "compute_advantages",
        "update_policy",
        "audit_rollouts",
    )
    assert STAGES.with_data_set("rollouts") == ("compute_advantages", "score_rollouts", "generate_rollouts")
    assert STAGES.replayed == ("score_rollouts", "compute_advantages", "update_policy")
    assert STAGES.that_makes("critic") == STAGES.that_makes("policy") == "update_policy"
    assert STAGES.that_makes("reward_model") == "train_reward_model"
    assert "update_policy" in STAGES
    assert "update" not in STAGES


def test_the_table_is_read_without_what_stages_compute_with():
    heavy = {"torch", "transformers", "datasets", "pyarrow", "mlflow", "prefect"}
    code = f"import sys, tasks.stages; sys.exit(', '.join({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("name", STAGES.names)
def test_a_version_stands_for_the_defaults_that_it_had(name):
    # What a recipe leaves out is the default: with another one, the same recipe would mean something else.
    recorded, here = json.loads(RECORDED.read_text())[name], now()[name]
    if recorded["version"] == here["version"]:
        same = {setting: here["defaults"].get(setting) for setting in recorded["defaults"]}
        assert same == recorded["defaults"], "raise the stage's version, then run tests/tasks/stage_defaults.py"
    else:
        assert recorded == here, "run tests/tasks/stage_defaults.py"
