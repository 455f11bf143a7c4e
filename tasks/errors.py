"""What can go wrong in a stage, split by who has to act.

``UserError`` (from ``ppo_core.errors``): the user changes something; never retried. ``TransientError``: trying again may
succeed; retried with backoff. Anything else is a defect or a broken machine and stops at once with its traceback in the log.
"""

from typing import Any

from ppo_core.errors import ConfigError, UserError

__all__ = [
    "ConfigError",
    "DamagedError",
    "DataError",
    "ModelError",
    "RewardError",
    "RunError",
    "ServerError",
    "TransientError",
    "UnhealthyError",
    "UserError",
    "shorten",
]


class DataError(UserError):
    """An input file, row or column is not what the configuration says."""


class ModelError(UserError):
    """A model or tokenizer cannot be used as asked."""


class RewardError(UserError):
    """A reward function raised, or returned something that is not one finite score per response."""


class RunError(UserError):
    """A run's directory is missing, damaged, or in use by another process."""


class ServerError(UserError):
    """A server that the configuration names refuses what it is asked, or answers something else."""


class UnhealthyError(Exception):
    """A limit of ``health`` was passed; the run's settings have to change, or the limit."""


class DamagedError(Exception):
    """A committed file is not what its manifest says; the stage that wrote it has to run again."""


class TransientError(Exception):
    """Worth another attempt: I/O, a lost device, a killed worker, a service that timed out."""


def shorten(value: Any, width: int = 60) -> str:
    """``repr`` for a message: at most ``width`` characters of it, and for a longer one how long the value is."""
    text = repr(value)
    if len(text) <= width:
        return text
    length = (
        f" ({len(value):,} {'characters' if isinstance(value, str) else 'items'})" if hasattr(value, "__len__") else ""
    )
    return f"{text[:width]}...{length}"
