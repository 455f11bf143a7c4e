"""Which errors are worth another attempt.

A stage's error crosses a process boundary, so it is classified where it is raised and travels as (kind, message).
"""

import errno
import os
import re
from typing import Literal

from safetensors import SafetensorError

from ppo_core.errors import NonFiniteError
from tasks.errors import DamagedError, RewardError, TransientError, UnhealthyError, UserError
from tasks.paths import NEXT_MOVE, os_error_sentence

Kind = Literal["user", "refused", "transient", "memory", "cancelled", "defect"]
SERVICE_ERRORS = {"TimeoutException", "TransportError", "APIConnectionError", "APITimeoutError", "RateLimitError"}
# Trying again does not mend these.
PERMANENT_ERRNO = {*NEXT_MOVE} - {errno.EMFILE, errno.EEXIST}
# PyTorch has types for a GPU's memory and for a CUDA device, but for a CPU's memory and other devices it has words alone.
OUT_OF_MEMORY, LOST_DEVICE = ("out of memory", "can't allocate memory"), ("CUDA error",)


class StageError(Exception):
    """A stage failed. ``kind`` says who acts: the user who gave something wrong, whoever looks after the run that it refuses
    to go on with, another attempt, or whoever mends the code."""

    def __init__(self, kind: Kind, message: str, *, stage: str = "", log: str | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.stage = stage
        self.log = log


class ElsewhereError(Exception):
    """An error of a process that works for this one, classified and described there."""

    def __init__(self, kind: Kind, message: str, *, is_of_users_code: bool = False) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.is_of_users_code = is_of_users_code


def classify(error: BaseException) -> Kind:
    """The kind of an error, where it is raised."""
    if isinstance(error, ElsewhereError):
        return error.kind
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, UnhealthyError | NonFiniteError | DamagedError):
        return "refused"
    refused = os_error_of(error)
    number = refused and refused.errno
    if isinstance(error, MemoryError) or number == errno.ENOMEM or is_of_pytorch(error, OUT_OF_MEMORY):
        return "memory"
    if number in PERMANENT_ERRNO:
        return "refused"
    if is_a_service_s(error) or is_of_pytorch(error, LOST_DEVICE):
        return "transient"
    return "defect"


def os_error_of(error: BaseException) -> OSError | None:
    """An error of the operating system, told by its type; none for an error whose text only looks like one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    # safetensors is written in Rust: the number of what the system refused is in its own errors' text alone.
    if isinstance(error, OSError | SafetensorError) and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found[1])
        return OSError(number, os.strerror(number))
    return error if isinstance(error, OSError) else None


def is_of_pytorch(error: BaseException, words: tuple[str, ...]) -> bool:
    """Whether PyTorch says one of these: it raises a ``RuntimeError``, or a subclass of it."""
    return isinstance(error, RuntimeError) and any(some in str(error) for some in words)


def is_of_users_code(error: BaseException) -> bool:
    """Whether a function of the user's raised, so that the traceback tells the user more than the sentence."""
    if isinstance(error, ElsewhereError):
        return error.is_of_users_code
    return isinstance(error, RewardError) and error.__cause__ is not None


def is_a_service_s(error: BaseException) -> bool:
    """Whether an error is that of a device, or of a service, which may answer the next time."""
    refused = os_error_of(error)
    if refused is not None:
        return refused.errno not in PERMANENT_ERRNO
    # The exceptions of HTTP clients share no base class but are named alike.
    names = {base.__name__ for base in type(error).__mro__}
    return isinstance(error, TransientError) or bool(names & SERVICE_ERRORS)


def describe(error: BaseException) -> str:
    """What to say of an error, for its kind: a defect is told by its type, the others by a sentence."""
    if isinstance(error, ElsewhereError):
        return str(error)
    kind = classify(error)
    if kind == "refused" and (refused := os_error_of(error)) is not None:
        return os_error_sentence(refused)
    if kind in ("user", "refused"):
        return str(error)
    return f"{type(error).__name__}: {error}"


def worth_retrying(error: BaseException) -> bool:
    return isinstance(error, StageError) and error.kind in ("transient", "memory")
