"""What was found outside a run when it last began, digests of data, code and models: so that the run can be looked at where
these are not there any more, or are not what a relative path names from here.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from tasks.errors import UserError


@dataclass(slots=True)
class Memory:
    """What is known from before, and what has been found since."""

    known: Mapping[str, Any]
    is_elsewhere: bool
    """Whether what is known was found from another directory, where relative paths meant something else."""
    found: dict[str, Any] = field(default_factory=dict)


_memory: ContextVar[Memory | None] = ContextVar("memory", default=None)


@contextmanager
def noting() -> Iterator[dict[str, Any]]:
    """Note all that is found; what is yielded can be written as JSON and given to ``recalling``."""
    memory = Memory({}, is_elsewhere=False)
    with _set(memory):
        noted: dict[str, Any] = {"directory": os.getcwd(), "found": memory.found}
        yield noted


@contextmanager
def recalling(noted: Mapping[str, Any]) -> Iterator[None]:
    """Where something cannot be found, or is looked for from another directory, take what was noted."""
    with _set(Memory(noted.get("found", {}), is_elsewhere=noted.get("directory") != os.getcwd())):
        yield


@contextmanager
def _set(memory: Memory) -> Iterator[None]:
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)


def found_or_known(kind: str, what: Any, find: Callable[[], Any]) -> Any:
    """What ``find`` finds, which JSON can hold; or what is known of it. ``what`` says of what, of a ``kind``."""
    memory = _memory.get()
    if memory is None:
        return find()
    key = f"{kind} {json.dumps(what, sort_keys=True)}"
    if memory.is_elsewhere and key in memory.known:
        return memory.known[key]
    try:
        found = find()
    except UserError:
        if key not in memory.known:
            raise
        return memory.known[key]
    memory.found[key] = found
    return found
