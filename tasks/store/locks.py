"""Locks on files, which the kernel drops when their process dies."""

import fcntl
import time
from pathlib import Path
from typing import IO

PATIENCE_S = 0.5


def exclusive(stream: IO[str]) -> bool:
    """Lock this file for this process alone, unless another one keeps it: who only asks lets go of it at once."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def is_locked(path: Path) -> bool:
    """Whether some process has this file locked now."""
    try:
        with path.open() as stream:
            # Shared, so that any number may ask at once, and nothing is written into the lock of another.
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
