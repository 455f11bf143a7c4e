"""One stage at one place of one run: all that a process needs to execute it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.config import decided, decided_execution
from tasks.stages import STAGES
from tasks.store import Inputs, Place, Recipe, input_digests

MICRO_BATCH = "micro_batch_tokens"


_last_decided: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {}


def _decided(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Worked out once for settings that are the same object, as those of one stage at thousands of places are."""
    known = _last_decided.get(stage)
    if known is None or known[0] is not settings:
        known = _last_decided[stage] = (settings, decided(settings, STAGES[stage].config))
    return known[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCall:
    """One stage at one place of one run: all that a process needs to execute it, small enough to send."""

    stage: str
    place: Place
    settings: Mapping[str, Any]
    seed: int
    run_root: str
    execution: Mapping[str, Any]
    health: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    keeps_recoverable: bool = True
    """Whether files that can be made again are kept; no part of the recipe, since what they hold is the same."""
    inputs: Inputs = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.stage}-{self.place.label}" if self.place.round else self.stage

    def recipe(self) -> Recipe:
        stage = STAGES[self.stage]
        settings = dict(_decided(self.stage, self.settings))
        settings |= decided_execution(self.execution, stage.execution)
        return Recipe(
            stage=self.stage,
            version=stage.version,
            place=self.place,
            seed=self.seed,
            settings=settings,
            inputs=input_digests(self.inputs),
            generation=self.generation,
        )

    def with_smaller_micro_batch(self, divisor: int) -> "StageCall":
        """The same call in less memory: the micro-batch is no part of the recipe, since it changes no result."""
        tokens = max(1, self.execution["micro_batch_tokens"] // divisor)
        return replace(self, execution={**self.execution, "micro_batch_tokens": tokens})

    def with_inputs(self, inputs: Inputs) -> "StageCall":
        return replace(self, inputs=inputs)
