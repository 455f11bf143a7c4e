"""MLflow or Prefect go away: training goes on, and what was not logged is logged later, once. The servers are real."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest
from conftest import TINY, wait_for
from mlflow.tracking import MlflowClient

from flows.server.embedded import is_healthy
from tasks.environment import QUIET


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def mlflow_server(directory, port):
    """A tracking server, killed in the end; started again on its directory it knows what it knew."""
    directory.mkdir(exist_ok=True)
    store = ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--artifacts-destination", f"{directory}/files"]
    at = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *at, *store],
        env={**os.environ, **QUIET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers():
        assert process.poll() is None
        with suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        return False

    try:
        wait_for(answers)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def logged(port):
    """What the tracking server holds: of each of our runs its state and how often each metric's step was logged."""
    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = {}
    for run in client.search_runs(experiments):
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        steps = {key: sorted(metric.step for metric in metrics) for key, metrics in history.items()}
        assert run.info.run_name not in found, "one run of a name"
        found[run.info.run_name] = (run.info.status, steps)
    return found


@pytest.fixture
def tracked(home, tiny, tmp_path, monkeypatch):
    """A server's port, an environment of runs that log there, and what it holds of a run that nothing disturbed."""
    port = free_port()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", env["MLFLOW_TRACKING_URI"])
    return port, env


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tracking_server_down_at_the_start_dying_and_coming_back_is_told_everything_once(
    home, tiny, tracked, tmp_path
):
    port, env = tracked
    shutil.copytree(home.path / "runs" / tiny, home.path / "runs" / "calm")
    with mlflow_server(tmp_path / "calm", port):
        home.rounds("run", TINY, "--name", "calm", env=env)
        calm = logged(port)
    assert {state for state, _ in calm.values()} == {"FINISHED"}
    assert len(calm) == 3, "the run and two rounds"
    assert any(steps == [1, 2] for _, metrics in calm.values() for steps in metrics.values())

    server = tmp_path / "server"
    # Down at the start, and to the end.
    done = home.rounds("run", TINY, "--name", "stormy", "--set", "rounds=1", env=env, code=3)
    assert "not reported: MLflow: " in done.stderr
    assert "run the same command again once it works" in done.stderr
    # Dying in the middle: the first round was logged, the second one is not.
    with mlflow_server(server, port) as process:
        running = home.start("run", TINY, "--name", "stormy", env=env, start_new_session=True)
        wait_for(lambda: any("round-002/iteration-001/score" in name for name in home.stages("stormy")))
        os.killpg(process.pid, signal.SIGKILL)
        _, err = running.communicate(timeout=300)
        assert running.returncode == 3, err
        assert "not reported: MLflow: " in err
    assert home.digests("stormy") == home.digests(tiny)
    # Coming back.
    with mlflow_server(server, port):
        before = home.stages("stormy")
        home.rounds("run", TINY, "--name", "stormy", env=env)
        assert home.stages("stormy") == before
        stormy = logged(port)
        assert {name.replace("stormy", "calm"): entry for name, entry in stormy.items()} == calm
        home.rounds("run", TINY, "--name", "stormy", env=env)
        assert logged(port) == stormy


def prefect_server(home):
    return json.loads((home.path / "prefect" / "server.json").read_text())


@pytest.mark.slow
def test_the_homes_own_prefect_server_is_started_again_when_it_dies(home, tiny):
    running = home.start("run", TINY, "--name", "deserted", start_new_session=True)
    wait_for(lambda: any("iteration-001/score" in name for name in home.stages("deserted")))
    before = prefect_server(home)
    os.killpg(before["pid"], signal.SIGKILL)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "Traceback" not in err
    assert home.digests("deserted") == home.digests(tiny)
    after = prefect_server(home)
    assert (after["url"], is_healthy(after["url"])) == (before["url"], True)
    assert after["pid"] != before["pid"]
    (flow_run,) = home.prefect("flow_runs/filter", {"flow_runs": {"name": {"any_": ["deserted"]}}})
    assert flow_run["state_type"] == "COMPLETED"


def test_a_prefect_server_that_is_named_and_down_is_replaced_and_said_so(home, tiny):
    shutil.copytree(home.path / "runs" / tiny, home.path / "runs" / "elsewhere")
    url = f"http://127.0.0.1:{free_port()}/api"
    done = home.rounds("run", TINY, "--name", "elsewhere", env={**os.environ, "PREFECT_API_URL": url})
    assert (
        f"{url} does not answer; Prefect's pages of this run are at {prefect_server(home)['url'][:-4]}" in done.stderr
    )
    assert home.digests("elsewhere") == home.digests(tiny)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_prefect_server_of_the_users_that_dies_for_good_is_replaced_by_the_homes(home, tiny, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("prefect")), "server", "start", "--port", str(port)],
        env={**os.environ, **QUIET, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: is_healthy(url))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_API_URL": url}
    began = time.monotonic()
    running = home.start("run", TINY, "--name", "abandoned", env=env, start_new_session=True)
    wait_for(lambda: any("iteration-001/score" in name for name in home.stages("abandoned")))
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    _, err = running.communicate(timeout=800)
    assert running.returncode == 3, err
    assert "not reported: the Prefect server went away" in err
    assert "Traceback" not in err
    assert home.digests("abandoned") == home.digests(tiny)
    assert time.monotonic() - began < 600


# A server that takes long to start.

IMPATIENT = """
import sys
from flows.cli import main as cli
from flows.server import embedded as servers
servers.PATIENCE_S, servers.START_S = 0.5, float(sys.argv.pop(1))
sys.argv[0] = "rounds"
cli.main()
"""


def impatient(home, start_s, *args, env=None):
    """A run that waits half a second for Prefect's server before it begins, and so long for it in the end."""
    command = [sys.executable, "-c", IMPATIENT, str(start_s), "--home", str(home.path), "run", TINY, *args]
    options = home.process({} if env is None else {"env": env})
    return subprocess.run(command, capture_output=True, text=True, timeout=800, **options)


@pytest.mark.slow
def test_training_does_not_wait_for_a_server_that_takes_long_to_start_and_it_is_told_later(home, tiny, tmp_path):
    own = type(home)(tmp_path / "home")
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import sys, time\nif 'flows.server.process' in sys.orig_argv:\n    time.sleep(12)\n"
    )
    path = os.pathsep.join([str(slow), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = impatient(own, 120, "--name", "early", env=env)
    assert done.returncode == 0, done.stderr
    assert "training begins, and is shown there later" in done.stderr
    assert "Prefect's pages of this run are at" in done.stderr
    assert own.digests("early") == home.digests(tiny)
    first = min(path.stat().st_mtime for path in (own.path / "runs" / "early").rglob("manifest.json"))
    (flow_run,) = own.prefect("flow_runs/filter", {"flow_runs": {"name": {"any_": ["early"]}}})
    assert flow_run["state_type"] == "COMPLETED"
    assert datetime.fromisoformat(flow_run["start_time"]).timestamp() > first, "a stage was done by then"
    in_flow = {"flow_runs": {"name": {"like_": "early-round-1"}}}
    wait_for(lambda: any(run["name"].startswith("reused: ") for run in own.prefect("task_runs/filter", in_flow)))
    own.rounds("down")


@pytest.mark.slow
def test_a_server_that_never_answers_costs_a_sentence_and_no_stage(home, tiny, tmp_path):
    own = type(home)(tmp_path / "home")
    (own.path / "prefect").mkdir(parents=True)
    # The process has the lock and is stuck before it says where it is.
    state = own.path / "prefect" / "server.json"
    state.touch()
    stuck = subprocess.Popen(["flock", state, "sleep", "600"], start_new_session=True)
    try:
        done = impatient(own, 1, "--name", "unseen")
    finally:
        os.killpg(stuck.pid, signal.SIGKILL)
        stuck.wait()
    assert done.returncode == 3, done.stderr
    assert "not reported: Prefect: " in done.stderr
    assert "Traceback" not in done.stderr
    assert own.digests("unseen") == home.digests(tiny)
    assert list((own.path / "mlflow" / "artifacts").iterdir()), "MLflow was told"
