"""A terminal's surroundings: its shell, its pipes, a run that goes on, MLflow's pages."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import fake_runs
import pytest
from typer.testing import CliRunner

from flows.cli import completion
from flows.cli.main import app
from flows.cli.options import NO_READER
from flows.runs import find_run

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


# A terminal


def test_what_was_dropped_is_told_and_no_colour_is_none(home):
    env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"}
    script = f"import pty, sys; sys.exit(pty.spawn(['{ROUNDS}', '--home', '{home}', 'status', 'one']))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL
    )
    assert "no room for: " in done.stdout
    assert "\x1b[3" not in done.stdout


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


@pytest.mark.parametrize("is_buffered", [True, False])
@pytest.mark.parametrize("command", [
    ("rollouts", "one", "--round", "all", "--iteration", "all", "--format", "jsonl"), ("rollouts", "one", "--wide"),
    ("rollouts", "one", "--format", "csv"), ("rollouts", "one", "--json"), ("list",), ("list", "--json"),
    ("status", "one"), ("logs", "one"), ("--help",), ("--version",),
])  # fmt: skip
def test_a_pipe_that_ends_early_ends_the_command_quietly(home, command, is_buffered):
    reading, writing = os.pipe()
    os.close(reading)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env |= {} if is_buffered else {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [ROUNDS, "--home", str(home), *command], stdout=writing, stderr=subprocess.PIPE, text=True, env=env
    )
    os.close(writing)
    assert (done.stderr, done.returncode) == ("", NO_READER)


def test_what_a_reader_has_taken_is_whole_and_the_code_is_that_of_other_programs(home):
    script = (
        f"set -o pipefail; {ROUNDS} --home {home} rollouts one --round all --iteration all --format jsonl | head -1"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert json.loads(done.stdout)["rollout_id"]
    assert done.stderr == ""
    # A short answer may have gone through before head has ended.
    assert done.returncode in (0, NO_READER)
    others = subprocess.run(["bash", "-c", "set -o pipefail; yes | head -1"], capture_output=True)
    assert others.returncode == NO_READER


def test_a_connection_that_breaks_is_not_taken_for_a_reader_that_has_ended(home, monkeypatch):
    def broken(_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("flows.runs.list_runs", broken)
    monkeypatch.setattr("flows.cli.app.is_unread", lambda stream: False)
    assert CliRunner().invoke(app, ["--home", str(home), "list"]).exit_code == 1


# MLflow's pages


def test_a_port_in_use_and_a_store_of_ones_own_are_told(rounds, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "taken by another program" in rounds("mlflow", "--port", taken.getsockname()[1], code=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking:5000")
    said = rounds("mlflow", code=2)
    assert "MLFLOW_TRACKING_URI names http://tracking:5000: runs are logged there; open its pages, or unset it" in said


def below(pid):
    """A process and all that it has started."""
    stats = {int(path.parent.name): path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()}
    children = [own for own, stat in stats.items() if int(stat.rpartition(")")[2].split()[1]) == pid]
    return [pid, *(deeper for child in children for deeper in below(child))]


def test_mlflow_is_served_by_one_worker_until_a_signal_comes_and_nothing_is_left(tmp_path):
    environ = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true",
        "MLFLOW_BACKEND_STORE_URI": "sqlite:///else.db",
    }
    command = [ROUNDS, "--home", str(tmp_path), "mlflow", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as started:
        address = started.stdout.readline().strip()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}/health") as answer:
            assert answer.read() == b"OK"
        processes = below(started.pid)
        # The command, MLflow's own, and its worker.
        assert len(processes) == 3
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 0
        assert started.stderr.read() == "MLflow is starting; Ctrl-C ends it\n"
    assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []
    assert (tmp_path / "mlflow" / "mlflow.db").exists()


def test_an_mlflow_that_does_not_start_is_told_with_its_log(rounds, monkeypatch, tmp_path):
    monkeypatch.setattr("tasks.tracking.server.sys.executable", "/bin/false")
    said = rounds("mlflow", "--port", 0, code=1)
    assert "MLflow's server ended with exit code 1; its log is" in said
