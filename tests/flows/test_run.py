"""Whole runs, started as a user starts them: Prefect server, engine, store and tracking are the real ones."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import TINY, kill_group, wait_for
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tasks.store.digests import digest_file

ITERATION = ("generate_rollouts", "score_rollouts", "compute_advantages", "update_policy")


def test_every_stage_commits_one_output_a_place(home, tiny):
    places = [name.rsplit("/", 1)[0] for name in home.stages(tiny)]
    expected = ["round-001/warm_up", "round-001/critic_pretraining"]
    for number in (1, 2):
        expected += [
            f"round-00{number}/{s}" for s in ("prepare_data", "train_reward_model", "evaluate_policy", "report_round")
        ]
        for iteration in (1, 2):
            at = f"round-00{number}/iteration-00{iteration}"
            expected += [f"{at}/{stage}/shard-00{shard}" for stage in ITERATION[:2] for shard in (0, 1)]
            expected += [f"{at}/{stage}" for stage in (*ITERATION[2:], "audit_rollouts")]
    assert sorted(places) == sorted(expected)


def test_every_file_has_the_digest_that_its_manifest_says(home, tiny):
    root = home.path / "runs" / tiny / "stages"
    for name, manifest in home.stages(tiny).items():
        for file, entry in manifest["files"].items():
            assert digest_file(root / name / file) == entry["sha256"]
            assert (root / name / file).stat().st_size == entry["size"]


def test_the_second_round_learns_from_more_preferences_and_goes_on_from_the_first(home, tiny):
    stages = {name.rsplit("/", 1)[0]: manifest for name, manifest in home.stages(tiny).items()}
    first, second = (stages[f"round-00{number}/train_reward_model"]["rows"] for number in (1, 2))
    assert second > first
    last = stages["round-001/iteration-002/update_policy"]["digest"]
    assert stages["round-002/iteration-001/generate_rollouts/shard-000"]["recipe"]["inputs"]["policy"] == last
    # The reference stays what the first round started from.
    warm = stages["round-001/warm_up"]["digest"]
    assert stages["round-002/iteration-002/score_rollouts/shard-001"]["recipe"]["inputs"]["reference"] == warm


IMPORTED = """
import sys
from flows.cli.main import main
sys.argv[0] = "rounds"
try:
    main()
finally:
    print("imported:", *sorted({"prefect", "mlflow", "torch", "transformers"} & set(sys.modules)), file=sys.stderr)
"""


def test_running_it_again_executes_nothing_and_imports_neither_servers_nor_models(home, tiny):
    before = home.stages(tiny)
    command = [sys.executable, "-c", IMPORTED, "--home", home.path, "run", TINY, "--name", tiny, "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, **home.process({}))
    assert home.stages(tiny) == before
    assert done.stderr.splitlines()[-1] == "imported:"
    assert "nothing to do: all 38 stages are committed, and reported" in done.stderr
    assert [round["round"] for round in json.loads(done.stdout)["rounds"]] == [1, 2]


@pytest.mark.slow
def test_another_run_of_the_same_configuration_is_the_same_to_the_last_bit(home, tiny):
    home.rounds("run", TINY, "--name", "twin")
    assert home.digests("twin") == home.digests(tiny)


def test_a_round_that_is_added_learns_from_the_file_that_arrived_and_leaves_what_was_before(home, tiny, tmp_path):
    shutil.copytree(home.path / "runs" / tiny, home.path / "runs" / "grown")
    file = tmp_path / "arrived.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"where is lamp {n}?", "chosen": " on the table.", "rejected": " no."}) + "\n"
            for n in range(12)
        )
    )
    done = home.rounds("add-round", "grown", "--preferences", file)
    assert f"adds round 3 with {file}" in done.stderr
    before, after = home.stages(tiny), home.stages("grown")
    assert before == {name: manifest for name, manifest in after.items() if not name.startswith("round-003")}
    (data,) = [after[name] for name in after if name.startswith("round-003/prepare_data")]
    (data_before,) = [before[name] for name in before if name.startswith("round-002/prepare_data")]
    counts = [
        sum(manifest["metrics"][f"data/{part}preferences"] for part in ("", "held_out_"))
        for manifest in (data_before, data)
    ]
    assert counts[1] == counts[0] + 12
    assert home.json("status", "grown")["state"] == "finished"


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_as_if_it_never_was(home, tiny):
    process = home.start("run", TINY, "--name", "killed", start_new_session=True)
    wait_for(lambda: any("iteration-002/score" in name for name in home.stages("killed")))
    kill_group(process)
    committed = home.stages("killed")
    assert len(committed) < len(home.stages(tiny))
    home.rounds("run", TINY, "--name", "killed")
    assert home.digests("killed") == home.digests(tiny)
    # Nothing that was committed was made again: its manifest still tells the same time.
    assert committed.items() <= home.stages("killed").items()


def worker_of(process):
    """The process id of a run's worker, or None while there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process.pid and b"tasks.worker.child" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    return None


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_run_goes_on(home, tiny):
    process = home.start("run", TINY, "--name", "robbed", start_new_session=True)
    wait_for(lambda: any("iteration-001/score" in name for name in home.stages("robbed")))
    os.killpg(worker_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "killed by signal SIGKILL" in err
    assert home.digests("robbed") == home.digests(tiny)


def test_ctrl_c_ends_a_run_quickly_and_leaves_no_process(home, tiny):
    process = home.start("run", TINY, "--name", "stopped", start_new_session=True)
    wait_for(lambda: any("iteration-001/score" in name for name in home.stages("stopped")))
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert time.monotonic() - started < 30
    home.rounds("run", TINY, "--name", "stopped")
    assert home.digests("stopped") == home.digests(tiny)


def test_a_run_cancelled_in_the_prefect_ui_stops(home, tiny):
    process = home.start("run", TINY, "--name", "unwanted", "--set", "iterations=40", start_new_session=True)
    wait_for(lambda: any("iteration-001/score" in name for name in home.stages("unwanted")))
    (flow_run,) = home.prefect("flow_runs/filter", {"flow_runs": {"name": {"any_": ["unwanted"]}}})
    home.prefect(f"flow_runs/{flow_run['id']}/set_state", {"state": {"type": "CANCELLING"}, "force": False})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (flow_run,) = home.prefect("flow_runs/filter", {"flow_runs": {"name": {"any_": ["unwanted"]}}})
    assert flow_run["state_type"] == "CANCELLED"


@pytest.fixture(scope="session")
def changed(home, tiny):
    """A copy of the finished run, for tests that go on with it."""
    home.rounds("run", TINY, "--name", "changed")
    return "changed"


def executed(home, run, before):
    """Stage and place of what was committed since."""
    return sorted(name.rsplit("/", 1)[0] for name in home.stages(run).keys() - before.keys())


@pytest.mark.slow
def test_another_lambda_generates_and_scores_nothing_again_in_its_iteration(home, changed):
    before = home.stages(changed)
    home.rounds("rerun", changed, "--set", "advantages.lam=0.5")
    new = executed(home, changed, before)
    assert "round-001/iteration-001/compute_advantages" in new
    assert not any(name.startswith("round-001/iteration-001/generate") for name in new)
    assert not any(name.startswith("round-001/iteration-001/score") for name in new)
    assert not any("warm_up" in name or "prepare_data" in name or "train_reward_model" in name for name in new)
    # Back to the settings before: all of it is still there.
    before = home.stages(changed)
    home.rounds("rerun", changed, "--set", "advantages.lam=0.95")
    assert executed(home, changed, before) == []


@pytest.mark.slow
def test_a_forced_rerun_executes_the_stage_and_what_is_made_from_it(home, tiny, changed):
    before = home.stages(changed)
    plan = home.json("rerun", changed, "--from", "evaluate_policy", "--round", "1", "--dry-run")
    assert home.stages(changed) == before, "a dry run changes nothing"
    home.rounds("rerun", changed, "--from", "evaluate_policy", "--round", "1")
    expected = ["round-001/evaluate_policy", "round-001/report_round", "round-002/report_round"]
    assert executed(home, changed, before) == expected
    assert len(plan["stages"]) == len(home.stages(tiny))


@pytest.mark.slow
def test_a_forced_rerun_that_was_killed_goes_on_where_it_was_when_it_is_given_again(home, changed):
    rerun = ("rerun", changed, "--from", "evaluate_policy", "--round", "1")
    before = home.stages(changed)
    running = home.start(*rerun, start_new_session=True)
    wait_for(lambda: len(home.stages(changed)) > len(before))
    kill_group(running)
    done = executed(home, changed, before)
    assert "round-001/evaluate_policy" in done
    home.rounds(*rerun)
    expected = ["round-001/evaluate_policy", "round-001/report_round", "round-002/report_round"]
    assert executed(home, changed, before) == expected
    # It has come to its end, so that the same command forces them anew.
    home.rounds(*rerun)
    assert executed(home, changed, before) == sorted(expected * 2)


@pytest.mark.slow
def test_a_damaged_output_is_made_again_and_nothing_else(home, changed):
    before = home.digests(changed)
    root = home.path / "runs" / changed / "stages"
    (name,) = [n for n in home.digests(changed) if n.startswith("round-001/warm_up")]
    weights = root / name / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    home.rounds("run", TINY, "--name", changed)
    assert home.digests(changed) == before


def test_prefect_knows_the_run_its_rounds_and_its_stages(home, tiny):
    def are_known(kind, *names):
        found = home.prefect(f"{kind}/filter", {kind: {"name": {"any_": names}}})
        return {entry["name"] for entry in found} == set(names)

    assert are_known("flow_runs", "tiny", "tiny-round-1", "tiny-round-2")
    # The server's recorder is behind by a second or so.
    wait_for(lambda: are_known("task_runs", "generate_rollouts-r1.i2.s1", "update_policy-r2.i1"), seconds=30)
    keys = {artifact["key"] for artifact in home.prefect("artifacts/filter", {"limit": 200})}
    assert {"tiny-round-1", "tiny-round-2"} <= keys


def first_flow_run(home, name):
    """The flow run in which a run was made: other tests may have run it again since."""
    asked = {"flow_runs": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 1}
    (flow_run,) = home.prefect("flow_runs/filter", asked)
    return flow_run


def graph_of(home, name):
    """The names of what a flow run's picture shows, each with the names of what leads to it."""
    flow_run = first_flow_run(home, name)
    with urllib.request.urlopen(home.request(f"flow_runs/{flow_run['id']}/graph-v2"), timeout=30) as response:
        nodes = dict(json.load(response)["nodes"])
    return {
        node["label"].split(" / ")[-1]: {nodes[parent["id"]]["label"].split(" / ")[-1] for parent in node["parents"]}
        for node in nodes.values()
    }


def test_prefects_picture_of_a_run_has_names_and_edges(home, tiny):
    wait_for(lambda: "report_round-r1" in graph_of(home, "tiny-round-1"), seconds=30)
    graph = graph_of(home, "tiny-round-1")
    assert graph["generate_rollouts-r1.i2.s0"] == {"prepare_data-r1", "update_policy-r1.i1"}
    assert graph["compute_advantages-r1.i1"] >= {"score_rollouts-r1.i1.s0", "score_rollouts-r1.i1.s1"}
    assert [name for name, led_to_by in graph.items() if not led_to_by] == ["prepare_data-r1"]
    wait_for(lambda: "publish_round-r2" in graph_of(home, "tiny"), seconds=30)
    assert graph_of(home, "tiny") == {
        "tiny-round-1": set(),
        "publish_round-r1": {"tiny-round-1"},
        "tiny-round-2": {"tiny-round-1"},
        "publish_round-r2": {"tiny-round-2"},
    }


def test_prefects_page_of_a_run_has_its_log(home, tiny):
    flow_run = first_flow_run(home, "tiny")
    body = {"logs": {"flow_run_id": {"any_": [flow_run["id"]]}}, "sort": "TIMESTAMP_ASC"}

    def lines():
        return [entry["message"] for entry in home.prefect("logs/filter", body)]

    wait_for(lambda: lines()[-1:] and lines()[-1].startswith("results\n"), seconds=30)
    assert any(line.startswith("round 1 · iteration 2 · update policy: finished, ") for line in lines())
    assert "round 2" in lines()[-1]


@pytest.mark.parametrize(
    ("what", "auto_class"),
    [
        ("policy", AutoModelForCausalLM),
        pytest.param("critic", AutoModelForSequenceClassification, marks=pytest.mark.slow),
        pytest.param("reward_model", AutoModelForSequenceClassification, marks=pytest.mark.slow),
    ],
)
def test_what_is_exported_loads_as_hugging_face_loads_it(home, tiny, tmp_path, what, auto_class):
    home.rounds("export", tiny, "--to", tmp_path / what, "--what", what)
    model = auto_class.from_pretrained(tmp_path / what)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / what)
    model(**tokenizer("where is the lamp?", return_tensors="pt"))
    card = (tmp_path / what / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"


@pytest.mark.slow
def test_the_configuration_of_a_run_can_run_again(home, tiny, tmp_path):
    document = json.loads((home.path / "runs" / tiny / "run.json").read_text())["config"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(document))
    home.rounds("run", tmp_path / "again.yaml", "--name", "again", "--set", "rounds=1")
    again = home.digests("again")
    assert again.items() <= home.digests(tiny).items()


def bad_row(tmp_path, text):
    (tmp_path / "prompts.jsonl").write_text(text)
    return f"data.prompts=[{tmp_path / 'prompts.jsonl'}]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("advantages.lamb=0.9", r"advantages.lamb: unknown key; did you mean advantages.lam\?"),
        ("ppo.cliprang=0.1", r"ppo.cliprang: unknown key; did you mean ppo.cliprange\?"),
        ("advantages.gamma=1.5", r"advantages.gamma=1.5: input should be less than or equal to 1"),
        ("ppo.cliprange=2.0", r"cliprange=2.0 must lie in \(0, 1\)"),
        ("rollouts.sampling.temperature=0", r"temperature=0.* must be positive"),
        ("data.prompts=[nowhere.jsonl]", r"nowhere.jsonl does not exist"),
        ("model={policy: /nowhere/model}", r"model.policy: /nowhere/model is no directory"),
        ("rewards.quality.function=nowhere:score", r"rewards.quality.function: nowhere:score names the module nowhere"),
        ("rollouts.shards=9", r"rollouts.shards=9: more than rollouts.prompts_per_iteration=8"),
        ("rollouts.sampling.max_new_tokens=159", r"context is 160"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_run(home, tmp_path, override, message):
    name = re.sub(r"[^a-z0-9]+", "-", tmp_path.name.lower())
    done = home.rounds("run", TINY, "--name", name, "--set", override, code=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in done.stderr
    assert not (home.path / "runs" / name).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', r"prompts.jsonl, row 2: .*not JSON"),
        ('{"question": "a"}\n', r"prompts.jsonl, row 1: .*prompt.*question"),
        ('{"prompt": 3}\n', r"prompts.jsonl, row 1: .*prompt.*3"),
        ('{"prompt": "  "}\n', r"prompts.jsonl, row 1: .*prompt.*empty"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_number(home, tmp_path, text, message):
    done = home.rounds("run", TINY, "--name", "mistake2", "--set", bad_row(tmp_path, text), code=2)
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (home.path / "runs" / "mistake2").exists()


def test_a_run_in_progress_is_refused_with_whose_it_is(home, tiny):
    process = home.start("run", TINY, "--name", "busy", start_new_session=True)
    wait_for(lambda: (home.path / "runs" / "busy" / "run.json").exists())
    done = home.rounds("run", TINY, "--name", "busy", code=2)
    assert f"run busy is in progress in process {process.pid}" in done.stderr
    kill_group(process)
    # The lock of a dead process is no lock.
    home.rounds("status", "busy")


def test_what_was_committed_before_is_one_task_in_prefect_and_nothing_executes(home, tiny):
    shutil.copytree(home.path / "runs" / tiny, home.path / "runs" / "found")
    home.rounds("run", TINY, "--name", "found")
    assert home.stages("found") == home.stages(tiny)

    def tasks():
        found = home.prefect("task_runs/filter", {"flow_runs": {"name": {"like_": "found"}}})
        # Prefect keeps a task run of its own for each flow within a flow.
        names = [entry["name"] for entry in found if entry["state_type"] == "COMPLETED"]
        return sorted(name for name in names if not re.fullmatch(r"round-\d", name))

    def counts():
        return [int(name.split()[1]) for name in tasks() if name.startswith("reused: ")]

    wait_for(lambda: len(tasks()) == 4, seconds=30)
    assert sum(counts()) == len(home.stages(tiny)), tasks()
    assert [name for name in tasks() if not name.startswith("reused: ")] == ["publish_round-r1", "publish_round-r2"]


@pytest.mark.slow
def test_a_finished_run_is_looked_at_without_its_data_its_modules_and_from_anywhere(home, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "my_reward.py").write_text("def longer(prompts, responses, rows):\n    return [len(r) for r in responses]\n")
    (own / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"where is the lamp {i}?"}) + "\n" for i in range(9))
    )
    config = {
        **yaml.safe_load(TINY.read_text()),
        "algorithm": "reinforce",
        "rounds": 1,
        "iterations": 1,
        "warm_up": None,
        "reward_model": None,
        "rewards": {"longer": {"function": "my_reward:longer"}},
        "evaluation": {"held_out_rewards": {}},
    }
    config["data"] = {"texts": config["data"]["texts"], "prompts": ["prompts.jsonl"], "num_held_out_prompts": 2}
    config["rollouts"]["shards"] = 1
    (own / "own.yaml").write_text(yaml.safe_dump(config))
    home.rounds("run", "own.yaml", cwd=own)
    looks = (("status",), ("rollouts",), ("verify",), ("clean", "--dry-run"), ("status", "--attempts"), ("list",))
    before = [home.rounds(*look[:1], *(["own"] * (look[0] != "list")), *look[1:], cwd=own).stdout for look in looks]
    assert "pending" not in before[0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # Another file of that name is not the run's.
    (elsewhere / "prompts.jsonl").write_text(json.dumps({"prompt": "something else"}) + "\n")

    def again(directory):
        return [
            home.rounds(*look[:1], *(["own"] * (look[0] != "list")), *look[1:], cwd=directory).stdout for look in looks
        ]

    assert again(elsewhere) == before
    for name in ("my_reward.py", "prompts.jsonl", "own.yaml"):
        (own / name).unlink()
    assert again(own) == before
    # To go on with it is another matter.
    assert "there is no module 'my_reward'" in home.rounds("rerun", "own", cwd=own, code=2).stderr
