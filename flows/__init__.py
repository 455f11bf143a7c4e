"""Rounds of RLHF as Prefect flows; in Python, ``flows.open`` looks at a run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.opened import OpenedRun, open

__all__ = ["OpenedRun", "open"]


def __getattr__(name: str) -> Any:
    # When it is first used: the command line looks at runs without it.
    if name in __all__:
        from flows import opened

        return getattr(opened, name)
    raise AttributeError(f"module 'flows' has no attribute {name!r}")
