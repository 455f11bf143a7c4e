"""Who the server of a home is: what its process writes down, and whoever looks for it compares."""

import socket
from pathlib import Path

STATE_FILE = "server.json"
AUTH_FILE = "auth"


def identity(pid: int) -> dict[str, object]:
    """A process of this machine, told from a later one with the same id by when it started."""
    return {"host": socket.gethostname(), "pid": pid, "started": started(pid)}


def started(pid: int) -> str:
    """When a process started, in ticks since the machine did; empty where there is none, or the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name, in parentheses, may contain anything.
    return stat.rpartition(")")[2].split()[19]


def place_of(directory: Path) -> list[int]:
    """What a directory keeps when it is moved, and what no copy of it has."""
    found = directory.stat()
    return [found.st_dev, found.st_ino]
