"""The tables and numbers of the READMEs are what the code has."""

import json
import math
import re
import tomllib

import pytest
import typer
from documents import ROOMS, ROOT, blocks, read, rows, section

import ppo_core
from flows.cli import options
from flows.cli.main import app
from flows.config import PRESETS, RunConfig, dump, load_config
from flows.iteration import advantages_config
from tasks.contract import StageCall
from tasks.sampling.engines import PROOF_PROMPTS
from tasks.stages import STAGES
from tasks.store import (
    PREFERENCES,
    PROMPTS,
    ROLLOUTS,
    TEXTS,
    Place,
    advantages_schema,
    audit_schema,
    evaluation_schema,
    rollouts_schema,
    scored_schema,
)

OF_EXCLUSION = "advantages/excluded_share"
OF_OTHER_ENGINES = {
    "rollouts/engine_logprob_difference",
    "rollouts/engine_logprob_max_difference",
    "update/importance_mean",
    "update/importance_capped",
    "update/sampling_approx_kl",
}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: f"{room.parent.name}/{room.name}")
def test_every_room_says_what_it_holds_what_may_be_touched_and_its_door(room):
    name = str((room / "README.md").relative_to(ROOT))
    assert read(name).startswith(f"# {room.parent.name}/{room.name}: ")
    assert "**What may be touched**: " in read(name)
    assert "**Door**: " in read(name)
    assert f"({room.name}/README.md)" in read(f"{room.parent.name}/README.md")


def test_the_manual_lists_every_command_and_exit_code():
    of_commands, of_codes = section("flows/README.md", "The command line").split("`--json`")
    listed = {name for row in rows(of_commands) for name in re.findall(r"`rounds ([a-z-]+)", row[0])}
    assert listed == {*typer.main.get_command(app).commands}
    codes = {options.FAILED, options.MISTAKE, options.UNREPORTED, options.CANCELLED, options.NO_READER}
    assert {int(row[0]) for row in rows(of_codes)} == {0, *codes}


def test_the_presets_are_listed():
    (row,) = [row for row in rows(read("flows/README.md")) if "presets/" in row[0]]
    assert set(re.findall(r"`(\w+)`", row[1])) == {path.stem for path in PRESETS.glob("*.yaml")} - {"template"}


def test_every_stage_is_listed_with_its_inputs():
    listed = rows(section("tasks/README.md", "The stages"))
    assert [(row[0].strip("`"), row[1], re.findall(r"`(\w+)`", row[2])) for row in listed] == [
        (stage.name, stage.belongs_to, list(stage.inputs)) for stage in STAGES
    ]


def test_every_column_of_a_data_set_is_listed_with_the_stage_that_adds_it():
    of_scored = scored_schema(["<reward>"], has_exact_kl=True, has_values=True, has_sampling_logprobs=True)
    steps = [
        ([], PROMPTS, "prepare_data"),
        ([], PREFERENCES, "prepare_data"),
        ([], TEXTS, "prepare_data"),
        (PROMPTS, rollouts_schema(has_sampling_logprobs=True), "generate_rollouts"),
        ([], [], "generate_candidates"),
        (rollouts_schema(has_sampling_logprobs=True), of_scored, "score_rollouts"),
        (of_scored, advantages_schema(of_scored, has_returns=True), "compute_advantages"),
        ([], audit_schema(["<reward>"]), "audit_rollouts"),
        (ROLLOUTS, evaluation_schema(["<reward>"]), "evaluate_policy"),
    ]

    def columns(schema):
        return {field.name for field in schema}

    data_sets = {"prompts", "rollouts"}
    listed = [
        ({*re.findall(r"`([\w<>]+)`", row[1])} - data_sets, row[2].strip("`"))
        for row in rows(section("tasks/README.md", "The way of one row"))
    ]
    assert listed == [(columns(after) - columns(before), stage) for before, after, stage in steps]


def test_the_setting_that_is_followed_comes_to_that_recipe():
    (text,) = blocks("tasks/README.md", "json")
    config = load_config("quickstart", ["advantages.lam=0.9"])
    call = StageCall(
        stage="compute_advantages",
        place=Place(1, 2),
        settings=dump(advantages_config(config)),
        seed=config.seed,
        run_root="",
        execution=dump(config.execution),
    )
    shown = json.loads(text)
    assert tuple(shown.pop("inputs")) == STAGES[call.stage].inputs
    assert shown == {name: value for name, value in call.recipe().as_dict().items() if name != "inputs"}


def test_every_public_name_of_the_mathematics_is_listed():
    listed = [
        name for row in rows(section("ppo_core/README.md", "The names")) for name in re.findall(r"`(\w+)`", row[1])
    ]
    assert sorted(listed) == sorted(ppo_core.__all__)


def test_the_import_contracts_are_listed():
    listed = re.findall(r"^- (.+)$", section("CONTRIBUTING.md", "Import contracts"), re.MULTILINE)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert listed == [contract["name"] for contract in contracts]


def test_the_environment_variables_that_are_listed_are_read():
    code = (ROOT / "tasks" / "environment.py").read_text()
    listed = [row[0].strip("`") for row in rows(section("infra/README.md", "Named servers"))]
    assert len(listed) > 3
    assert [name for name in listed if f'environ.get("{name}"' not in code] == []


def leading(text):
    return float(re.match(r"[\d.]+", text)[0])


def test_the_speeds_are_those_that_the_benchmark_wrote():
    measured = {row[5]: row for row in rows(section("tests/benchmarks/README.md", "A PPO iteration, against TRL"))}
    shown = rows(section("tests/README.md", "Speed"))
    assert len(shown) == 4
    for _, _, theirs, ours, faster, memory in shown:
        row = measured[faster]
        for cell, number in ((ours, row[3]), (theirs, row[4])):
            digits = len(re.match(r"[\d.]+", cell)[0].partition(".")[2])
            assert abs(leading(number) - leading(cell)) <= 0.5001 * 10**-digits
        assert row[8].startswith(f"{memory} (")
    speeds = [leading(row[4]) for row in shown if row[1] == "ragged"]
    (unpadded,) = [leading(row[4]) for row in shown if row[1] == "all of one length"]
    memory = [row[5] for row in shown]
    told = " ".join(section("README.md", "Speed").split())
    assert f"{min(speeds)} to {max(speeds)} times" in told
    assert f"{unpadded} times where all have one length" in told
    assert f"{min(memory)} to {max(memory)} of its memory" in told


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("ppo_core/README.md", "The policy's λ is {}.", RunConfig.model_fields["advantages"].default.lam),
        (
            "ppo_core/README.md",
            "a λ of their own, {:g} by default",
            RunConfig.model_fields["advantages"].default.critic_lam,
        ),
        ("tasks/README.md", "each of the run's first {} prompts", PROOF_PROMPTS),
        ("flows/README.md", "one failure a day make m = {}.", round(math.sqrt(2 * 20 * 86400 / (300 * 60)))),
    ],
)
def test_a_number_in_the_text_is_the_code_s(name, words, value):
    assert words.format(value) in " ".join(read(name).split())
