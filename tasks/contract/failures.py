"""Which errors are worth another attempt.

A stage's error crosses a process boundary, so it is classified where it is raised and travels as (kind, message).
"""

import errno
import os
import re
from typing import Literal

from ppo_core.errors import NonFiniteError
from tasks.errors import DamagedError, TransientError, UnhealthyError, UserError
from tasks.paths import NEXT_MOVE

Kind = Literal["user", "refused", "transient", "memory", "cancelled", "defect"]
SERVICE_ERRORS = {"TimeoutException", "TransportError", "APIConnectionError", "APITimeoutError", "RateLimitError"}
# Trying again does not mend these.
PERMANENT_ERRNO = {*NEXT_MOVE} - {errno.EMFILE, errno.EEXIST}


class StageError(Exception):
    """A stage failed. ``kind`` says who acts: the user who gave something wrong, whoever looks after the run that it refuses
    to go on with, another attempt, or whoever mends the code."""

    def __init__(self, kind: Kind, message: str, *, stage: str = "", log: str | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.stage = stage
        self.log = log


def classify(error: BaseException) -> Kind:
    """The kind of an error, where it is raised."""
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, UnhealthyError | NonFiniteError | DamagedError):
        return "refused"
    number = errno_of(error)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or "out of memory" in str(error).lower():
        return "memory"
    if number in PERMANENT_ERRNO and not isinstance(error, TransientError):
        return "refused"
    if isinstance(error, OSError) or number is not None:
        return "transient"
    # A lost device reaches Python as a RuntimeError or a subclass of it, told apart by its text alone.
    if isinstance(error, TransientError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return "transient"
    return "defect"


def errno_of(error: BaseException) -> int | None:
    """The operating system's number of an error, also where a library has put it into words only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]|Error code (\d+)", str(error))
    return int(next(group for group in found.groups() if group)) if found else None


def is_a_service_s(error: BaseException) -> bool:
    """Whether an error in a user's function is that of a service which may answer the next time."""
    if errno_of(error) in PERMANENT_ERRNO:
        return False
    # The exceptions of HTTP clients share no base class but are named alike.
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, OSError | TransientError) or bool(names & SERVICE_ERRORS)


def describe(error: BaseException) -> str:
    """What to say of an error, for its kind: a defect is told by its type, the others by a sentence."""
    kind = classify(error)
    if kind == "refused" and (number := errno_of(error)) is not None:
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"{os.strerror(number)}{where}; {NEXT_MOVE.get(number, 'make it usable again')}"
    if kind in ("user", "refused"):
        return str(error)
    return f"{type(error).__name__}: {error}"


def worth_retrying(error: BaseException) -> bool:
    return isinstance(error, StageError) and error.kind in ("transient", "memory")
