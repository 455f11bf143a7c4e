"""Which errors are worth another attempt.

A stage's error crosses a process boundary, so it is classified where it is raised and travels as (kind, message).
"""

import errno
from typing import Literal

from ppo_core.errors import NonFiniteError
from tasks.errors import TransientError, UnhealthyError, UserError

Kind = Literal["user", "unhealthy", "transient", "memory", "cancelled", "defect"]

# Trying again does not mend these.
PERMANENT_ERRNO = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


class StageError(Exception):
    """A stage failed. ``kind`` says who acts: the user (who gave something wrong, or whose run fell ill), another attempt,
    or whoever mends the machine or the code."""

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
    if isinstance(error, UnhealthyError | NonFiniteError):
        return "unhealthy"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "memory"
    if isinstance(error, OSError):
        return "defect" if error.errno in PERMANENT_ERRNO else "transient"
    # A lost device reaches Python as a RuntimeError or a subclass of it, told apart by its text alone.
    if isinstance(error, TransientError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return "transient"
    return "defect"


def worth_retrying(error: BaseException) -> bool:
    return isinstance(error, StageError) and error.kind in ("transient", "memory")
