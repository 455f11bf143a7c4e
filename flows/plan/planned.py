"""A plan: stages in the order of the flow, with what is committed of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flows.state import RoundState
from tasks.errors import ConfigError
from tasks.paths import shown
from tasks.stages import STAGES
from tasks.store import Place, Ref


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Planned:
    """One stage of a plan. ``ref`` is its committed output; without one, ``reason`` says why it would execute."""

    stage: str
    place: Place
    key: str
    """Its place in the store, the same for all variants."""
    ref: Ref | None
    reason: str
    is_executing: bool = False
    """Whether a worker has it now."""
    inputs: list["Planned"] = field(default_factory=list)
    rows: int = 0
    """What its manifest says of the output: all that is kept of it, for a run may have tens of thousands."""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Stages of a run in the order of the flow, and the state that each round would leave."""

    stages: list[Planned]
    rounds: list[RoundState]
    is_whole: bool = True
    """Whether these are all stages of the run, and not the first ones alone."""

    def select(self, stage: str, *, round: int | None = None, iteration: int | None = None) -> list[Planned]:
        """The stages of that name, of one round and iteration where they are given."""
        return [
            planned
            for planned in self.stages
            if planned.stage == stage
            and round in (None, planned.place.round)
            and iteration in (None, planned.place.iteration)
        ]

    def until(self, stage: str) -> "Plan":
        """The beginning of this plan, up to the first output of a stage, all its shards.

        Raises:
            ConfigError: there is no such stage, or this run has none.
        """
        if stage not in STAGES.of_a_run:
            raise ConfigError(f"--until {shown(stage)}: no such stage; stages are {', '.join(STAGES.of_a_run)}")
        found = self.select(stage)
        if not found:
            there = dict.fromkeys(planned.stage for planned in self.stages)
            raise ConfigError(f"--until {stage}: this configuration has no such stage; it has {', '.join(there)}")
        first = self.select(stage, round=found[0].place.round, iteration=found[0].place.iteration)
        return replace(self, stages=self.stages[: self.stages.index(first[-1]) + 1], is_whole=False)

    def with_downstream(self, first: Iterable[Planned]) -> list[Planned]:
        """These stages and all that are made from them, in the order of the flow."""
        chosen = set(first)
        for planned in self.stages:
            if any(made_from in chosen for made_from in planned.inputs):
                chosen.add(planned)
        return [planned for planned in self.stages if planned in chosen]
