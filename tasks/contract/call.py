"""One stage at one place of one run: all that a process needs to execute it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from tasks.config import decided, decided_precision
from tasks.stages import STAGES
from tasks.store import Inputs, Place, Recipe, input_digests

MICRO_BATCH = "micro_batch_tokens"


@lru_cache(maxsize=256)
def _decided(settings: str, config: type) -> dict[str, Any]:
    return decided(json.loads(settings), config)


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
        # As text, because stages of all iterations have the same settings, and there may be thousands.
        settings = dict(_decided(json.dumps(self.settings, sort_keys=True), stage.config))
        if stage.uses_models:
            settings |= decided_precision(self.execution)
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
