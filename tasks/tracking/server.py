"""MLflow's own server over a home's database, to look at its pages."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tasks import environment
from tasks.errors import TransientError
from tasks.tracking.connection import locked
from tasks.tracking.database import artifacts_uri, database, embedded_uri, follow_home

HOST = "127.0.0.1"
START_S = 120.0
GRACE_S = 10.0
LOOK_S = 0.1


@contextmanager
def mlflow_server(home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a server that answers at this port, on this machine alone, until the block ends.

    One worker without the processes that execute jobs: a fifth of the memory that ``mlflow server`` takes by itself.

    Raises:
        TransientError: it ends, or does not answer, before it is ready.
    """
    log = database(home).parent / "server.log"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    # Artifacts are read by the browser through the server, from where the database says that they lie.
    command += ["--backend-store-uri", embedded_uri(home), "--artifacts-destination", artifacts_uri(home)]
    with ExitStack() as until_it_is_ready:
        # Nobody else opens a database that it makes now.
        until_it_is_ready.enter_context(locked(log.parent))
        follow_home(home)
        with log.open("wb") as stream:
            # In a group of its own: all its processes end with it, and Ctrl-C in the terminal is told to it once, by us.
            server = subprocess.Popen(
                command,
                env=environment.mlflow_server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        try:
            wait_until_it_answers(server, port, log)
            until_it_is_ready.close()
            yield server
        finally:
            stop(server)


def wait_until_it_answers(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        if server.poll() is not None:
            raise TransientError(f"MLflow's server ended with exit code {server.returncode}; its log is {log}")
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
            return
        if time.monotonic() > deadline:
            raise TransientError(f"MLflow's server did not answer within {START_S:g} s; its log is {log}")
        time.sleep(LOOK_S)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End it and all processes that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
