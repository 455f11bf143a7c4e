"""Rounds of RLHF as Prefect flows; in Python, ``flows.start`` runs them and ``flows.open`` looks at a run."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.opened import OpenedRun, open
    from flows.starting import start

__all__ = ["OpenedRun", "open", "start"]


def __getattr__(name: str) -> Any:
    # When it is first used: the command line does without it.
    if name in __all__:
        module = importlib.import_module("flows.starting" if name == "start" else "flows.opened")
        return getattr(module, name)
    raise AttributeError(f"module 'flows' has no attribute {name!r}")
