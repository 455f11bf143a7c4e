"""What a stage is and what it may know: a function ``(context, config, *, inputs…) -> StageOutput`` that writes files below
``context.output`` and knows nothing else of the run."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.config import ExecutionConfig, HealthConfig
from tasks.contract.resident import ResidentModels
from tasks.metrics.declared import require_declared
from tasks.store import Place, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """What a stage reports of the files that it wrote."""

    rows: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    resident: Mapping[str, Any] = field(default_factory=dict)
    """What the next stage may take from memory, by the part of the output that holds the same numbers."""
    recoverable: str | None = None
    """Pattern of the files that need not be kept: the stage makes them again, from the same inputs, to the last bit."""

    def __post_init__(self) -> None:
        require_declared(self.metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """All that a stage may know besides its configuration and inputs."""

    output: Path
    place: Place
    run_seed: int
    execution: ExecutionConfig
    health: HealthConfig
    resident: ResidentModels
    """What stages before this one left in memory."""
    report: Callable[[Mapping[str, Any]], None]
    keeps_recoverable: bool = True
    hands_on: bool = False
    """Whether files that are not kept stay for a while, since other workers need them too."""
    lora_base: Ref | None = None
    """The frozen model whose adapters the others are; None where models are whole."""

    def seed(self, *coordinates: int | str) -> int:
        """A seed that is a function of the run's seed, the round, the iteration and the given coordinates alone."""
        from ppo_core.randomness import derive_seed

        return derive_seed(self.run_seed, self.place.round, self.place.iteration, *coordinates)

    def progress(self, done: int, total: int, *, unit: str = "rows", tokens: int = 0) -> None:
        """Say how far the stage is; ``tokens`` have been processed since it began."""
        self.report({"done": done, "total": total, "unit": unit, "tokens": tokens})

    def warn(self, message: str) -> None:
        """Tell whoever watches of something that does not stop the stage."""
        self.report({"warning": message})


def stage_function(name: str) -> Callable[..., StageOutput]:
    """What executes a stage; a stage lives in the module of its name, so that a process imports no more than it executes."""
    function: Callable[..., StageOutput] = getattr(importlib.import_module(f"tasks.{name}"), name)
    return function
