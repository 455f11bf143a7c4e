"""The embedded Prefect server: one in the background for a home, started when it is first needed.

A server of the user's own (``PREFECT_API_URL``) is used instead where one is named and answers.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks import settings
from tasks.errors import TransientError
from tasks.store import read_json, write_json

START_S = 120.0
STOP_S = 10.0
WATCH_S = 2.0


def ensure_prefect(home: Path) -> str:
    """The API address of a Prefect server that answers, for this process and its children; starts one if need be."""
    if (url := settings.prefect_api_url()) is not None and is_healthy(url):
        return url
    url = ensure_embedded(home)
    settings.use_prefect_server(url, home / "prefect")
    return url


def ensure_embedded(home: Path) -> str:
    """The API address of this home's own server, started if it does not answer."""
    directory = home / "prefect"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return running_server(home) or start_server(directory)


@contextmanager
def kept_alive(home: Path, url: str) -> Iterator[None]:
    """Start this home's server again, at the same address, whenever it ends meanwhile: a run reports to it all the time.

    A server that is not this home's is left alone.
    """
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(WATCH_S):
            state = read_json(home / "prefect" / "server.json", default={})
            if state.get("url") == url and not is_healthy(url):
                with suppress(TransientError, OSError), (home / "prefect" / "lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not is_healthy(url) and not stopped.is_set():
                        start_server(home / "prefect", port=port_of(url))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()


def running_server(home: Path) -> str | None:
    """The address of this home's server, if it answers."""
    state = read_json(home / "prefect" / "server.json", default={})
    return state["url"] if state and is_healthy(state["url"]) else None


def port_of(url: str) -> int:
    """The port in an API address (…:PORT/api)."""
    return int(url.rsplit(":", 1)[1].split("/")[0])


def start_server(directory: Path, *, port: int | None = None) -> str:
    """Start a server on this machine alone, on a free port unless one is given, and wait until it answers."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    log = directory / "server.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            # It outlives this command, and Ctrl-C in this terminal is not for it.
            start_new_session=True,
            env=settings.server_environment(url, directory),
        )
    write_json(directory / "server.json", {"url": url, "pid": process.pid})
    deadline = time.monotonic() + START_S
    while not is_healthy(url):
        if process.poll() is not None:
            raise TransientError(f"the Prefect server ended with exit code {process.returncode}; its log is {log}")
        if time.monotonic() > deadline:
            process.kill()
            raise TransientError(f"the Prefect server did not answer within {START_S:g} s; its log is {log}")
        time.sleep(0.1)
    return url


def stop_server(home: Path) -> bool:
    """Stop this home's server; False where none runs."""
    state: dict[str, Any] = read_json(home / "prefect" / "server.json", default={})
    if not state or running_server(home) is None:
        return False
    os.killpg(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while is_healthy(state["url"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    if is_healthy(state["url"]):
        os.killpg(state["pid"], signal.SIGKILL)
    (home / "prefect" / "server.json").unlink(missing_ok=True)
    return True


def is_healthy(url: str) -> bool:
    """Whether a Prefect server answers at this address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return json.load(response) is True
    except (OSError, ValueError, urllib.error.URLError):
        return False
