"""What the pages are made from: homes and their runs, and what a request asks of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows.pages.trackers import Trackers
from flows.runs import RUN_FILE, Run, list_runs
from tasks.errors import ConfigError, RunError
from tasks.paths import is_there

ELSEWHERE = "@"
"""Between a run's name and the number of its home, where it is not in the first; no name of a run has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Homes to read, the first of which is the one that the command was started for."""

    homes: tuple[Path, ...]
    only: str | None = None
    """The one run that there is to see, as its address calls it; None shows all."""
    is_read_only: bool = False
    """Whether no queue is made and nobody answers."""
    trackers: Trackers | None = None
    """MLflow and Prefect of the first home; None where pages lead to neither, as files do."""

    def runs(self) -> list[tuple[str, Run]]:
        """All runs with what each is called in an address; home by home, the one worked on last first."""
        found = [(self._called(run, number), run) for number, home in enumerate(self.homes) for run in list_runs(home)]
        return [(called, run) for called, run in found if self.only in (None, called)]

    def run(self, called: str) -> Run:
        """The run of that name, or ``NAME@2`` for one of the second home.

        Raises:
            RunError: there is none, or no more.
        """
        name, _, number = called.partition(ELSEWHERE)
        place = int(number) - 1 if re.fullmatch(r"[1-9]\d{0,3}", number) else 0
        is_named_so = re.fullmatch(r"[\w.-]+", name) is not None and name not in (".", "..")
        if is_named_so and place < len(self.homes):
            home = self.homes[place]
            if is_there(home / "runs" / name / RUN_FILE):
                return Run(home / "runs" / name, home)
        raise RunError(f"{called}: there is no such run, or no more; the list of runs has those that there are")

    def _called(self, run: Run, number: int) -> str:
        return run.name if number == 0 else f"{run.name}{ELSEWHERE}{number + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an address says: the parts of its path, and what follows the question mark."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    repeated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """All values of what is said more than once; ``query`` has the last one."""
    address: str = ""
    """All of it, as it was written; empty where a page is no answer to a request."""

    def text(self, name: str, default: str = "") -> str:
        return self.query.get(name, default)

    def number(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number.

        Raises:
            ConfigError: it is none, or outside its bounds.
        """
        written = self.query.get(name)
        if not written:
            return default
        if re.fullmatch(r"\d{1,9}", written) is None or not low <= int(written) <= high:
            raise ConfigError(f"{name}={written}: not a whole number from {low} to {high}; correct the address")
        return int(written)

    def one_of(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of some words.

        Raises:
            ConfigError: it is another one.
        """
        written = self.query.get(name) or default
        if written not in choices:
            raise ConfigError(f"{name}={written}: not one of {', '.join(choices)}; correct the address")
        return written
