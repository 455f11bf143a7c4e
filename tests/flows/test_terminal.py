"""What the terminal shows: tables that fit, comparisons, explanations, logs, completion, pipes that end, the doctor."""

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import fake_runs
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import completion
from flows.cli.main import app
from flows.doctor import checks
from flows.outcomes.status import stage_statuses
from flows.plan import plan_of
from flows.runs import find_run
from flows.terminal.tables import add_row, fit, folded, plain_table
from flows.terminal.views import status_view
from tasks import environment

ROUNDS = str(Path(sys.executable).with_name("rounds"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    fake_runs.finished_run(home, "one", fake_runs.document(home))
    fake_runs.finished_run(home, "two", fake_runs.document(home, seed=7))
    return home


@pytest.fixture
def rounds(home):
    def call(*args, code=0):
        result = CliRunner().invoke(app, ["--home", str(home), *map(str, args)])
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return result.stdout if code == 0 else result.stderr

    return call


def printed(renderable, width):
    """As a terminal of that width shows it, and what had to go."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None, legacy_windows=False)
    parts = getattr(renderable, "renderables", [renderable])
    dropped = [name for part in parts if hasattr(part, "drops") for name in fit(part, console)]
    console.print(renderable)
    return console.file.getvalue(), dropped


# Tables


def test_a_table_that_is_too_wide_loses_columns_in_the_order_that_it_says_and_folds_no_number():
    def table():
        table = plain_table(
            "name", "first", "second", "third", right=("first", "second", "third"), drops=("second", "first")
        )
        add_row(table, "x" * 10, "1" * 20, "2" * 20, "3" * 20)
        return table

    assert printed(table(), 90)[1] == []
    text, dropped = printed(table(), 70)
    assert (dropped, "3" * 20 in text, "1" * 20 in text) == (["second"], True, True)
    text, dropped = printed(table(), 40)
    assert (dropped, "3" * 20 in text) == (["second", "first"], True)


@pytest.mark.parametrize("width", [80, 200])
def test_no_line_of_any_table_is_wider_than_the_terminal_and_every_number_is_whole(home, width):
    run = find_run(home, "one")
    statuses = stage_statuses(plan_of(run))
    text, _ = printed(status_view(statuses), width)
    assert max(map(len, text.splitlines())) <= width
    # 1.5 s is what each stage took; folded, it would stand in two lines.
    assert "1.5 s" in text
    assert not re.search(r"^\s*s\s", text, re.MULTILINE)


def test_at_200_columns_nothing_is_dropped(home):
    statuses = stage_statuses(plan_of(find_run(home, "one")))
    assert printed(status_view(statuses), 200)[1] == []
    assert printed(status_view(statuses), 80)[1] != []


def test_many_iterations_are_folded_unless_all_are_asked_for(tmp_path):
    document = fake_runs.document(tmp_path, rounds=1, iterations=60)
    run = fake_runs.finished_run(tmp_path, "long", document)
    statuses = stage_statuses(plan_of(run))
    text, _ = printed(status_view(statuses), 200)
    assert "iterations 4 to 40 are left out; --iterations shows all" in text
    assert re.findall(r"^ +(\d+|⋮) ", text, re.MULTILINE)[:5] == ["1", "2", "3", "⋮", "41"]
    whole, _ = printed(status_view(statuses, whole=True), 200)
    assert len(re.findall(r"^ +\d+ ", whole, re.MULTILINE)) == 60
    assert folded(range(50)) == (list(range(50)), [])


def test_what_was_dropped_is_told_and_no_colour_is_none(home):
    env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"}
    script = f"import pty, sys; sys.exit(pty.spawn(['{ROUNDS}', '--home', '{home}', 'status', 'one']))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL
    )
    assert "left out at this width: rows" in done.stdout
    assert "\x1b[3" not in done.stdout


# Rollouts


def test_rollouts_are_read_whole(rounds):
    text = rounds("rollouts", "one", "--wide")
    assert "[red]good[/red]\\x1b[2J\n dog" in text
    assert "\x1b[2J" not in text


def test_a_text_is_looked_for_as_it_is(rounds):
    found = json.loads(rounds("rollouts", "one", "--grep", "[red]good", "--json"))
    assert [row["prompt_id"] for row in found["rollouts"]] == ["aa"]
    assert json.loads(rounds("rollouts", "one", "--grep", "score>0", "--json"))["found"] == 0


def test_a_prompt_is_followed_through_all_iterations(rounds):
    rows = json.loads(rounds("rollouts", "one", "--prompt", "bb", "--json"))["rollouts"]
    assert [(row["round"], row["iteration"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_sample_is_the_same_each_time(rounds):
    draw = ("rollouts", "one", "--round", "all", "--iteration", "all", "--sample", "3", "--format", "csv")
    first = [row["rollout_id"] for row in csv.DictReader(io.StringIO(rounds(*draw)))]
    assert first == [row["rollout_id"] for row in csv.DictReader(io.StringIO(rounds(*draw)))]
    assert len(set(first)) == 3
    assert "drawn by seed 0" in rounds(*draw[:-2])


def test_rows_are_written_as_parquet_and_nothing_is_written_over(rounds, tmp_path):
    file = tmp_path / "rows.parquet"
    assert (
        rounds("rollouts", "one", "--round", "all", "--iteration", "all", "--parquet", file) == f"{file}: 8 rollouts\n"
    )
    table = pq.read_table(file)
    assert (table.num_rows, table["advantages"].to_pylist()[0]) == (8, [2.0, 2.0, 2.0])
    assert "is there already; name another file, or remove it" in rounds("rollouts", "one", "--parquet", file, code=2)
    assert "cannot be written" in rounds("rollouts", "one", "--parquet", tmp_path / "no" / "x.parquet", code=2)


def test_an_address_says_all_that_was_asked(rounds):
    address = rounds("rollouts", "one", "--round", "2", "--grep", "a b", "--sort", "-score", "--url").strip()
    assert address == "http://127.0.0.1:7400/runs/one/rollouts?round=2&q=%22a+b%22+sort%3A-score"


# Telling


def test_two_places_are_compared(rounds):
    text = rounds("compare", "one:1.1", "two:1.1")
    assert "2 prompts that both have" in text
    assert re.search(r"seed +0 +7", text)
    found = json.loads(rounds("compare", "one:1.1", "1.2", "--json"))
    assert (found["a"], found["b"]) == ("one:1.1", "two:1.2")
    assert [line["name"] for line in found["summary"]] == ["score", "length", "true_quality"]
    assert "not a place" in rounds("compare", "one:x", "two:1", code=2)


def test_configurations_are_told_apart(rounds):
    assert re.search(r"^seed +0 +7", rounds("diff", "one", "two"), re.MULTILINE)
    assert "rollouts.shards" in rounds("diff", "one")
    assert rounds("diff", "one", "one") == "no setting differs\n"
    assert json.loads(rounds("diff", "one", "two", "--json")) == [{"name": "seed", "a": 0, "b": 7}]


def test_a_metric_is_explained_and_a_mistyped_one_is_led_to_its_neighbours(rounds):
    text = rounds("explain", "kl/mean", "one")
    assert "nats per response" in text
    assert re.search(r"2 +2 +0\.5000", text)
    assert "update/entropy: no such" not in rounds("explain", "update/entropy")
    assert "kl/maen: no such metric; near it are kl/mean" in rounds("explain", "kl/maen", code=2)
    assert json.loads(rounds("explain", "kl/mean", "one", "--json"))["values"][0]["value"] == 0.5


def test_logs_tell_what_was_committed_in_its_order(rounds, home):
    (home / "runs" / "one" / "worker.log").write_bytes(b"a warning \x1b[2J\n")
    lines = rounds("logs", "one").splitlines()
    assert "prepare data" in lines[0]
    assert "report round" in lines[-2]
    assert lines[-1] == "worker: a warning \\x1b[2J"


def test_logs_follow_a_run_until_it_ends(home):
    run = find_run(home, "two")
    with run.locked():
        follower = subprocess.Popen(
            [ROUNDS, "--home", str(home), "logs", "two", "-f"], stdout=subprocess.PIPE, text=True
        )
        assert "prepare data" in follower.stdout.readline()
        assert follower.poll() is None
    with follower:
        assert "report round" in follower.stdout.read()
    assert follower.returncode == 0


def test_a_watched_run_that_is_finished_is_shown_once(rounds):
    assert "one: finished" in rounds("status", "one", "--watch")


# A shell


def completed(line, home):
    """What a shell is told to complete a line with."""
    env = {
        **os.environ,
        "_ROUNDS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    env |= {"ROUNDS_HOME": str(home)}
    done = subprocess.run([ROUNDS], capture_output=True, text=True, env=env)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(("line", "expected"), [
    ("rounds status o", ["one"]),
    ("rounds run quick", ["quickstart"]),
    ("rounds rerun --from gen", ["generate_rollouts"]),
    ("rounds explain kl/me", ["kl/mean"]),
    ("rounds rollouts --data eva", ["evaluation"]),
    ("rounds run quickstart --set ppo.cliprange_", ["ppo.cliprange_value="]),
])  # fmt: skip
def test_a_shell_completes(home, line, expected):
    assert completed(line, home) == expected


def test_a_completion_that_goes_wrong_says_nothing():
    @completion.quiet
    def broken(_):
        raise OSError("no")
        yield

    assert broken(None, "") == []


@pytest.mark.parametrize("command", [
    ("rollouts", "one", "--round", "all", "--iteration", "all", "--format", "jsonl"),
    ("rollouts", "one", "--format", "csv"), ("rollouts", "one", "--json"), ("list",), ("status", "one"), ("logs", "one"),
])  # fmt: skip
def test_a_pipe_that_ends_early_ends_the_command_quietly(home, command):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([ROUNDS, "--home", str(home), *command], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


# The doctor


@pytest.fixture
def well(monkeypatch):
    """Without asking torch, which takes seconds."""
    monkeypatch.setattr(checks, "devices", lambda: iter(()))


def test_a_machine_that_is_well_has_no_problem(home, well, rounds):
    found = json.loads(rounds("doctor", "--json"))
    assert {check["name"] for check in found} >= {
        "versions",
        "disk",
        "memory",
        "file system",
        "pages",
        "proxies",
        "runs",
    }
    assert all(check["state"] != "problem" for check in found)
    assert "runs" in rounds("doctor")


def test_what_is_wrong_is_told_with_the_next_move(tmp_path, well, monkeypatch, rounds):
    monkeypatch.setattr(checks, "requires", lambda _: ["torch>=99", "no-such-package", 'other; extra == "dev"'])
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(b"not a database, but long enough to be one" * 100)
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "run.json").write_text("{")
    found = {check.name: check for check in checks.examine(tmp_path)}
    assert found["version of torch"].move == "pip install 'torch>=99'"
    assert found["version of no-such-package"].found == "no-such-package is not installed"
    assert found["PREFECT_API_URL"].state == found["mlflow.db"].state == "problem"
    assert "unset PREFECT_API_URL" in found["PREFECT_API_URL"].move
    assert "secret" not in found["proxies"].found
    assert found["run half"].state == "warning"
    assert (
        "no-such-package" in CliRunner().invoke(app, ["--home", str(tmp_path), "doctor"], env=dict(os.environ)).stdout
    )


def test_a_place_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refused(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "TemporaryDirectory", refused)
    (found,) = checks.locks(tmp_path)
    assert (found.state, found.move) == ("problem", "choose another --home, on a local disk")


# MLflow's pages


def test_a_port_in_use_and_a_store_of_ones_own_are_told(rounds, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "taken by another program" in rounds("mlflow", "--port", taken.getsockname()[1], code=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert "runs are logged there; open its pages, or unset it" in rounds("mlflow", code=2)


def test_its_server_has_one_worker_and_no_job_runner(tmp_path, monkeypatch):
    from tasks.tracking import server

    started = {}

    class Started:
        def __init__(self, command, env, **_):
            started.update(command=command, jobs=env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"])

        def wait(self, *_):
            return 0

        def poll(self):
            return 0

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(server.subprocess, "Popen", Started)
    assert server.serve_mlflow(tmp_path, 5000) == 0
    assert started["jobs"] == "false"
    assert started["command"][started["command"].index("--workers") :][:2] == ["--workers", "1"]
    assert started["command"][started["command"].index("--host") :][:2] == ["--host", "127.0.0.1"]
    assert environment.mlflow_tracking_uri() is None
