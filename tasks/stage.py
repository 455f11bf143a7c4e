"""The stage contract: what a stage is, what it may know, and how its output is found or made.

A stage is a function ``(context, config, *, inputs…) -> StageOutput`` that writes files below ``context.output`` and knows
nothing else of the run. ``execute`` gives it a scratch directory, commits what it wrote, or commits nothing.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.store import Inputs, Place, Recipe, Ref, Store, input_digests

if TYPE_CHECKING:
    from tasks.models import ResidentModels


class StageConfig(BaseModel):
    """Base of every part of the configuration: read-only, keyword-only, unknown keys refused."""

    # Infinity survives the way through JSON as text; no limit is a legal setting of some fields.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class HealthConfig(StageConfig):
    """Limits that a healthy run stays far away from: beyond one, a stage stops before it commits anything.

    They change no result, so they are part of no fingerprint. A loss or gradient that is not finite always stops.
    """

    action: Literal["stop", "warn"] = "stop"
    """warn says it and goes on."""
    max_ratio_deviation: float | None = Field(None, gt=0)
    """Of ``|ratio - 1|`` in an update's first minibatch, where sampling and training must agree; null is 0.01 for float32
    and 0.5 for bfloat16 forward passes."""
    max_approx_kl: float = Field(10.0, gt=0)
    """Nats a token between the policy that sampled and the one in training, mean over a minibatch."""
    max_kl: float = Field(20.0, gt=0)
    """Nats a token between policy and reference, mean over an iteration."""
    min_entropy: float = Field(1e-4, ge=0)
    """Nats of the next-token distribution, mean over a minibatch."""


class ExecutionConfig(StageConfig):
    """Where and how stages run. Only ``dtype`` changes results, so only it is part of a fingerprint."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto takes CUDA, else Apple's MPS, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward passes; weights that are trained stay float32. auto: bfloat16 on CUDA, float32 elsewhere."""
    micro_batch_tokens: int = Field(16384, gt=0)
    """Padded tokens in one forward and backward pass: lower it when memory runs out, results do not change."""
    stage_timeout_s: float | None = Field(None, gt=0)
    """A stage that reports no progress for so long is taken for hung, killed and retried."""
    retries: int = Field(3, ge=0, le=10)
    """Further attempts after a transient error."""


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
    inputs: Inputs = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.stage}-{self.place.label}" if self.place.round else self.stage

    def recipe(self) -> Recipe:
        stage = load_stage(self.stage)
        settings = {**self.settings, "dtype": self.execution["dtype"]} if stage.uses_models else dict(self.settings)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """What a stage reports of the files that it wrote."""

    rows: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    resident: Mapping[str, Any] = field(default_factory=dict)
    """Models that the next stage may take from memory, by the part of the output that holds the same weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """All that a stage may know besides its configuration and inputs."""

    output: Path
    place: Place
    run_seed: int
    execution: ExecutionConfig
    health: HealthConfig
    models: "ResidentModels"
    report: Callable[[Mapping[str, Any]], None]

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


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage function with what the contract needs to know of it. ``fn`` is the bare function, for tests."""

    name: str
    version: str
    uses_models: bool
    config_type: type[StageConfig]
    fn: Callable[..., StageOutput]


def stage(
    *, version: str, config: type[StageConfig], uses_models: bool = True
) -> Callable[[Callable[..., StageOutput]], Stage]:
    """Declare a stage. Change ``version`` when, and only when, the same inputs must give another output from now on."""

    def declare(fn: Callable[..., StageOutput]) -> Stage:
        return Stage(name=fn.__name__, version=version, uses_models=uses_models, config_type=config, fn=fn)

    return declare


def load_stage(name: str) -> Stage:
    """A stage lives in the module of its name, so that a process that executes one imports nothing else."""
    declared = getattr(importlib.import_module(f"tasks.{name}"), name)
    assert isinstance(declared, Stage), name
    return declared


def execute(call: StageCall, models: "ResidentModels", report: Callable[[Mapping[str, Any]], None]) -> Ref:
    """Reuse the committed output of this call, or make and commit it."""
    store = Store(Path(call.run_root))
    recipe = call.recipe()
    if (done := store.find(recipe)) is not None:
        return done
    declared = load_stage(call.stage)
    scratch = store.scratch(recipe)
    started = time.monotonic()
    context = StageContext(
        output=scratch,
        place=call.place,
        run_seed=call.seed,
        execution=ExecutionConfig(**call.execution),
        health=HealthConfig(**call.health),
        models=models,
        report=report,
    )
    output = declared.fn(context, declared.config_type(**call.settings), **call.inputs)
    ref = store.commit(
        recipe,
        scratch,
        inputs=call.inputs,
        rows=output.rows,
        metrics=output.metrics,
        seconds=time.monotonic() - started,
    )
    for part, model in output.resident.items():
        models.keep(ref, part, model)
    return ref
