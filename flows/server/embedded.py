"""The embedded Prefect server: one in the background for a home, started when it is first needed.

A server of the user's own (``PREFECT_API_URL``) is used instead where one is named and answers. The home's own one listens
on this machine alone and wants an authentication string, which lies in the home for its owner to read.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from flows.server.guard import IDENTITY_PATH, proof_of
from flows.server.identity import AUTH_FILE, STATE_FILE, identity, place_of
from tasks import environment
from tasks.errors import TransientError
from tasks.store import is_locked

START_S = 120.0
"""So long ``rounds up`` and ``rounds serve`` wait for a server that starts; its first start makes a database."""
PATIENCE_S = 30.0
"""So long a run waits before it begins without Prefect."""
STOP_S = 10.0
WATCH_S = 2.0
ANSWER_S = 5.0


def ensure_prefect(home: Path, *, patience_s: float = START_S) -> str:
    """The API address of a Prefect server that answers, for this process and its children; starts one if need be.

    Raises ``TransientError`` if it does not answer in time. It goes on starting, and may be asked for again.
    """
    if (url := environment.prefect_api_url()) is not None and is_healthy(url):
        return url
    url = ensure_embedded(home, patience_s=patience_s)
    use_embedded(home, url)
    return url


def begin_prefect(home: Path) -> None:
    """Have the home's own server start where none is asked for and none runs; nobody waits for it yet."""
    if environment.prefect_api_url() is None and server_state(home) is None:
        start_server(home)


def use_embedded(home: Path, url: str | None) -> None:
    """Point this process and its children at the home's own server, whatever else the environment says of Prefect.

    Without a ``url``, at none until that of the home's is known.
    """
    environment.use_prefect_server(url, None if url is None else auth_string(home), directory_of(home))
    # Prefect reads settings when it is imported, also from files in the working directory, which are not meant for us.
    with chdir(directory_of(home)):
        import prefect.main  # noqa: F401


def ensure_embedded(home: Path, *, patience_s: float = START_S) -> str:
    """The API address of this home's own server, started if it does not run, once it answers."""
    deadline = time.monotonic() + patience_s
    process: subprocess.Popen[bytes] | None = None
    while True:
        if (state := server_state(home)) is not None:
            if proves_itself(home, state["url"]):
                return str(state["url"])
        elif process is None:
            process = start_server(home)
        elif process.poll():
            raise TransientError(
                f"the Prefect server ended with exit code {process.returncode}; its log is {log_of(home)}"
            )
        elif process.returncode == 0:
            # Another one had the lock, and has ended since.
            process = None
        if time.monotonic() > deadline:
            raise TransientError(
                f"the Prefect server did not answer within {patience_s:g} s; it goes on starting, and its log is "
                f"{log_of(home)}"
            )
        time.sleep(0.1)


@contextmanager
def kept_alive(home: Path, url: str | None) -> Iterator[None]:
    """Start this home's server again, at the same address, whenever it ends meanwhile: a run reports to it all the time.

    A server that is not this home's is left alone, and so is one that is only slow.
    """
    stopped = threading.Event()
    state = server_state(home) if url is not None else None
    is_ours = state is not None and state["url"] == url

    def watch(url: str) -> None:
        while not stopped.wait(WATCH_S):
            with suppress(TransientError, OSError):
                if server_state(home) is None:
                    start_server(home, port=port_of(url))

    if url is not None and is_ours:
        threading.Thread(target=watch, args=(url,), daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def start_server(home: Path, *, port: int | None = None) -> subprocess.Popen[bytes]:
    """Start the process of a server, which ends at once if the home has one already."""
    directory = directory_of(home)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log_of(home).open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.server.process", *([str(port)] if port is not None else [])],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            # It outlives this command, and Ctrl-C in this terminal is not for it.
            start_new_session=True,
            env=environment.server_environment(),
        )


def server_state(home: Path, *, patience_s: float = ANSWER_S) -> dict[str, Any] | None:
    """Who this home's server is, from ``server.json``; None if none runs. It need not answer yet.

    Only the process that holds the lock on this very file is believed, so neither what a dead server left nor what a
    copied home brought along names anybody.
    """
    directory = directory_of(home)
    deadline = time.monotonic() + patience_s
    while is_locked(directory / STATE_FILE):
        state = written_state(directory / STATE_FILE)
        if state is not None:
            if state["host"] != socket.gethostname():
                raise TransientError(
                    f"the Prefect server of {home} runs on {state['host']} (process {state['pid']}); work there, or stop it "
                    f"there with: rounds --home {home} down"
                )
            if state["directory"] != place_of(directory):
                # The lock is another home's, which shares the file with this copy by a hard link.
                return None
            if state == {**state, **identity(state["pid"])}:
                return state
        # It has the lock and is about to write who it is.
        if time.monotonic() > deadline:
            raise TransientError(
                f"{directory / STATE_FILE} is locked by a process that does not say who it is; end it (fuser shows it)"
            )
        time.sleep(0.02)
    return None


def written_state(path: Path) -> dict[str, Any] | None:
    """What a server wrote of itself; None while it has not written all of it."""
    with suppress(OSError, ValueError):
        state = json.loads(path.read_text())
        if isinstance(state, dict) and {"url", "host", "pid", "started", "directory"} <= state.keys():
            return state
    return None


def running_server(home: Path) -> str | None:
    """The address of this home's server, if it answers; asked before every stage, so nothing is waited for."""
    with suppress(TransientError):
        state = server_state(home, patience_s=0)
        if state is not None and proves_itself(home, state["url"]):
            return str(state["url"])
    return None


def stop_server(home: Path) -> bool:
    """Stop this home's server; False where none runs."""
    state = server_state(home)
    if state is None:
        return False
    for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        with suppress(ProcessLookupError):
            os.kill(state["pid"], number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if server_state(home) != state:
                return True
            time.sleep(0.05)
    raise TransientError(
        f"the Prefect server (process {state['pid']}) does not end; stop what it waits for, then again"
    )


def auth_string(home: Path) -> str:
    """What this home's server wants to be told, ``user:password``. Raises ``TransientError`` before its first start."""
    try:
        return (directory_of(home) / AUTH_FILE).read_text().strip()
    except OSError as error:
        raise TransientError(
            f"{home / 'prefect' / AUTH_FILE} cannot be read ({error.strerror}); stop the server with rounds down, and "
            "start it anew with rounds up"
        ) from error


def proves_itself(home: Path, url: str) -> bool:
    """Whether this home's server answers at the address. Nobody else is told the home's secret: another program of this
    machine may have the port by now."""
    nonce = secrets.token_hex(16)
    try:
        with asked(f"{url.removesuffix('/api')}{IDENTITY_PATH}?nonce={nonce}") as response:
            answer = json.load(response)["proof"]
        return secrets.compare_digest(str(answer), proof_of(auth_string(home), nonce, url))
    except (OSError, ValueError, KeyError, TypeError, TransientError):
        return False


def is_healthy(url: str) -> bool:
    """Whether a Prefect server answers at this address."""
    try:
        with asked(f"{url}/health") as response:
            return json.load(response) is True
    except (OSError, ValueError):
        return False


def asked(url: str) -> HTTPResponse:
    """The answer to a GET; of this machine without a proxy, which would look for the port on itself."""
    if urllib.parse.urlsplit(url).hostname in environment.LOOPBACK:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=ANSWER_S)
    return urllib.request.urlopen(url, timeout=ANSWER_S)


def port_of(url: str) -> int:
    """The port in an API address (…:PORT/api)."""
    return int(url.rsplit(":", 1)[1].split("/")[0])


def directory_of(home: Path) -> Path:
    return home / "prefect"


def log_of(home: Path) -> Path:
    return directory_of(home) / "server.log"
