"""Nothing reaches for the network: not the command, not its engine, not the Prefect server that it starts."""

import os

import pytest
from conftest import TINY, Home

SPY = """
import os, socket

def spy(name):
    original = getattr(socket if name == "getaddrinfo" else socket.socket, name)

    def called(*args, **kwargs):
        address = args[0] if name == "getaddrinfo" else args[1]
        host = address[0] if isinstance(address, tuple) else address
        if host not in ("127.0.0.1", "localhost", "::1", None) and not str(host).startswith("/"):
            with open(os.environ["SPY_LOG"], "a") as log:
                log.write(f"{name} {address}\\n")
            raise OSError("no network")
        return original(*args, **kwargs)

    setattr(socket if name == "getaddrinfo" else socket.socket, name, called)

for name in ("getaddrinfo", "connect", "connect_ex"):
    spy(name)
"""


@pytest.mark.slow
def test_a_whole_run_asks_for_no_host_but_this_machine(tmp_path):
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY)
    log = tmp_path / "log"
    home = Home(tmp_path / "home")
    hub = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"}
    quiet = {name: value for name, value in os.environ.items() if name not in hub and not name.startswith("PREFECT")}
    environment = {**quiet, "PYTHONPATH": str(tmp_path / "spy"), "SPY_LOG": str(log), "OMP_NUM_THREADS": "1"}
    try:
        home.rounds("run", TINY, "--set", "rounds=1", "--set", "iterations=1", env=environment)
    finally:
        home.rounds("down", env=environment)
    assert not log.exists(), log.read_text()
    # The spy itself works.
    probe = "import socket; socket.getaddrinfo('example.invalid', 80)"
    os.spawnvpe(os.P_WAIT, "python", ["python", "-c", probe], {**environment, "PYTHONWARNINGS": "ignore"})
    assert "example.invalid" in log.read_text()
