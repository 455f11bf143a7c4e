"""A terminal's surroundings: its shell, its pipes, a run that goes on, MLflow's pages."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import fake_runs
import pytest
from typer.testing import CliRunner

from flows.cli import completion
from flows.cli.main import app
from flows.runs import find_run
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
