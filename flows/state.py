"""What flows hand from stage to stage, and how they call one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from tasks.config import StageConfig
from tasks.store import Place

Output = Any
"""A stage's output on its way: a ``Ref``, a Prefect future of one, or a planner's placeholder."""


class RunStage(Protocol):
    """Calls a stage by name at a place. Flows are written against this, so that the plan and the run are the same code."""

    def __call__(
        self,
        stage: str,
        place: Place,
        config: StageConfig,
        **inputs: Output | Sequence[Output] | Mapping[str, Output] | None,
    ) -> Output: ...


class EnoughError(Exception):
    """Not a mistake: a flow has called all the stages that are wanted of it."""


class FirstStages:
    """Calls stages as ``run`` does, so many of them, and then ends the flow; None takes all."""

    def __init__(self, run: RunStage, number: int | None) -> None:
        self._run = run
        self._left = inf if number is None else number

    def __call__(self, stage: str, place: Place, config: StageConfig, **inputs: Any) -> Output:
        if self.is_done:
            raise EnoughError
        self._left -= 1
        return self._run(stage, place, config, **inputs)

    @property
    def is_done(self) -> bool:
        return self._left == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Externals:
    """Models from outside the run, as references to what they hold."""

    base: Output | None
    critic: Output | None
    reward_model_base: Output | None
    rewards: Mapping[str, Output]
    """By the names of the training rewards that name a model."""
    held_out_rewards: Mapping[str, Output]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """What one iteration hands to the next: in the beginning separate models, then one checkpoint."""

    policy: Output
    critic: Output | None
    """None for an algorithm without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState:
    """What one round hands to the next."""

    data: Output
    reference: Output
    reward_model: Output | None
    train: TrainState
    report: Output | None
