"""What can go wrong, split by who has to act: the one tree of errors.

    Exception
      ValueError
        UserError           the user changes something; never tried again, and told in one sentence   ppo_core.errors
          ConfigError       a setting is unknown, out of range or contradicts another                 ppo_core.errors
            Mistakes        several of any of these, found before anything starts and told at once
          DataError         an input file, row or column is not what the configuration says
            BadRow          one row, which ``data.on_bad_row`` may have left out                       tasks.data
          EmptyMaskError    a mask selects no token                                                   ppo_core.errors
          ModelError        a model or tokenizer cannot be used as asked
          RewardError       a reward function raised, or returned no finite scores
          RunError          a run's directory is missing, damaged or in use
          ServerError       a server that the configuration names refuses, or answers something else
          ShapeError        two tensors that must agree in shape do not                               ppo_core.errors
          TrackingError     MLflow holds something that only its user can change
      ArithmeticError
        NonFiniteError      a number is NaN or infinite; trying again gives the same                  ppo_core.errors
      DamagedError          a committed file has changed; the stage that wrote it has to run again
      UnhealthyError        a limit of ``health`` was passed
      TransientError        trying again may succeed, and is done, with backoff
        UnreachableError    a server that the configuration names does not answer
      StageError            any of these in a stage, as the worker told it: a kind and a message      tasks.contract
      ElsewhereError        any of these in a process that works for a stage, as it was told there    tasks.contract
      EnoughError           all stages that are wanted of a flow are called; no error, and told nowhere  flows.state
      LimitError            somebody else's program took too long or too much; told as a ModelError   tasks.text

Anything else is a defect or a broken machine and stops at once with its traceback in the log.
"""

from collections.abc import Sequence
from typing import Any

from ppo_core.errors import ConfigError, UserError

__all__ = [
    "ConfigError",
    "DamagedError",
    "DataError",
    "Mistakes",
    "ModelError",
    "RewardError",
    "RunError",
    "ServerError",
    "TrackingError",
    "TransientError",
    "UnhealthyError",
    "UnreachableError",
    "UserError",
    "require_none",
    "shorten",
]


class DataError(UserError):
    """An input file, row or column is not what the configuration says."""


class ModelError(UserError):
    """A model or tokenizer cannot be used as asked."""


class Mistakes(ConfigError):
    """All that was found, in the order of the configuration."""

    def __init__(self, where: str, mistakes: Sequence[str]) -> None:
        self.heading = f"{where}: {len(mistakes)} mistakes"
        self.mistakes = tuple(mistakes)
        numbered = "; ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, start=1))
        super().__init__(f"{self.heading}: {numbered}")


def require_none(mistakes: Sequence[str], *, where: str, kind: type[UserError] = ConfigError) -> None:
    """Raise what was found, as ``kind`` where it is one mistake."""
    if len(mistakes) == 1:
        raise kind(f"{where}: {mistakes[0]}")
    if mistakes:
        raise Mistakes(where, mistakes)


class RewardError(UserError):
    """A reward function raised, or returned something that is not one finite score per response."""


class RunError(UserError):
    """A run's directory is missing, damaged, or in use by another process."""


class ServerError(UserError):
    """A server that the configuration names refuses what it is asked, or answers something else."""


class TrackingError(UserError):
    """The tracking server holds something that only its user can change."""


class UnhealthyError(Exception):
    """A limit of ``health`` was passed; the run's settings have to change, or the limit."""


class DamagedError(Exception):
    """A committed file is not what its manifest says; the stage that wrote it has to run again."""


class TransientError(Exception):
    """Worth another attempt: I/O, a lost device, a killed worker, a service that timed out."""


class UnreachableError(TransientError):
    """A server that the configuration names does not answer."""


def shorten(value: Any, width: int = 60) -> str:
    """``repr`` for a message: at most ``width`` characters of it, and for a longer one how long the value is."""
    text = repr(value)
    if len(text) <= width:
        return text
    length = (
        f" ({len(value):,} {'characters' if isinstance(value, str) else 'items'})" if hasattr(value, "__len__") else ""
    )
    return f"{text[:width]}...{length}"
