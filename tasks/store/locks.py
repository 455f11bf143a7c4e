"""Locks on files, which the kernel drops when their process dies."""

import fcntl
import time
from pathlib import Path
from typing import IO

PATIENCE_S = 0.5


def exclusive(stream: IO[str], *, patience_s: float = PATIENCE_S) -> bool:
    """Lock this file for this process alone, unless another one keeps it: who only asks lets go of it at once."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def wait_in_turn(stream: IO[str]) -> None:
    """Lock this file for this process alone as soon as the others let go of it.

    The kernel hands it over in turn: whoever only asks now and then would never get it from one who takes it again at once.
    """
    fcntl.flock(stream, fcntl.LOCK_EX)


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
