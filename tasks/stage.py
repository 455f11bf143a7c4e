"""The stage contract: what a stage is, what it may know, and how its output is found or made.

A stage is a function ``(context, config, *, inputs…) -> StageOutput`` that writes files below ``context.output`` and knows
nothing else of the run. ``execute`` gives it a scratch directory, commits what it wrote, or commits nothing.
"""

import importlib
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.errors import DamagedError
from tasks.store import (
    Inputs,
    Manifest,
    Place,
    Recipe,
    Ref,
    Store,
    digests_below,
    input_digests,
    is_committed,
    make_empty,
    require_undamaged,
    rerun_command,
)

if TYPE_CHECKING:
    from tasks.models import ResidentModels


class StageConfig(BaseModel):
    """Base of every part of the configuration: read-only, keyword-only, unknown keys refused."""

    # Infinity survives the way through JSON as text; no limit is a legal setting of some fields. The text below a field
    # is what Prefect's form says of it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)


class HealthConfig(StageConfig):
    """Limits that a healthy run stays far away from: beyond one, a stage stops before it commits anything.

    They change no result, so they are part of no fingerprint. A loss or gradient that is not finite always stops.
    """

    action: Literal["stop", "warn"] = "stop"
    """warn says it and goes on."""
    max_ratio_deviation: float | None = Field(None, gt=0)
    """Of ``|ratio - 1|`` in an update's first minibatch, where sampling and training must agree; null is 0.01 for float32
    and 0.5 for bfloat16 forward passes."""
    max_engine_difference: float | None = Field(None, gt=0)
    """Nats a token between the log-probabilities of the engine that samples and the trainer's, tried on a few prompts before
    anything is sampled (the largest with float32 forward passes, the mean with others) and mean over a shard; more, and the
    engine samples from another model. null is what rounding allows: 1e-4 for float32, 0.03 for bfloat16 forward passes."""
    max_approx_kl: float = Field(10.0, gt=0)
    """Nats a token between the policy that sampled and the one in training, mean over a minibatch."""
    max_kl: float = Field(20.0, gt=0)
    """Nats a token between policy and reference, mean over an iteration."""
    min_entropy: float = Field(1e-4, ge=0)
    """Nats of the next-token distribution, mean over a minibatch."""
    min_reward_model_accuracy: float = Field(0.5, ge=0, lt=1)
    """Which a reward model's accuracy on held-out pairs exceeds by a standard error, or it is no better than chance; with
    fewer than 25 held-out preferences that is only said. 0: no limit."""


NO_LIMITS = HealthConfig(
    max_ratio_deviation=inf,
    max_engine_difference=inf,
    max_approx_kl=inf,
    max_kl=inf,
    min_entropy=0.0,
    min_reward_model_accuracy=0.0,
)
"""For what was committed once: the limits let it pass then, or were told to."""


MICRO_BATCH = "micro_batch_tokens"


class ExecutionConfig(StageConfig):
    """Where and how stages run. Only the two dtypes change results, so only they are part of a fingerprint."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto takes CUDA, else Apple's MPS, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward passes; weights that are trained stay float32. auto: bfloat16 on CUDA, float32 elsewhere."""
    head_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layer that makes logits, where the rest of a forward pass is in bfloat16: bfloat16 is faster and
    rounds log-probabilities by 0.01 and more. The heads of critic and reward model are always in float32."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass, which computes the layer again: less memory, more time."""
    micro_batch_tokens: int = Field(16384, gt=0)
    """Padded tokens in one forward and backward pass: lower it when memory runs out. Results change by rounding alone; a
    checkpoint that was not kept is made again with the one that made it."""
    engine_server: str | None = None
    """Address of the server that ``rollouts.engine: vllm`` samples by, as http://host:8000; null runs vLLM in this process.
    It must see the run's directory. Its key, if it wants one, is ``ROUNDS_ENGINE_API_KEY``."""
    stage_timeout_s: float | None = Field(7200.0, gt=0)
    """A stage that reports no progress for so long is taken for hung, killed and retried; one that does may take any time.
    A reward function reports nothing before it returns. null: no limit."""
    retries: int = Field(3, ge=0, le=10)
    """Further attempts after a transient error."""

    @model_validator(mode="after")
    def _head_is_no_narrower_than_all(self) -> Self:
        if self.dtype == "float32" and self.head_dtype == "bfloat16":
            raise ValueError("head_dtype=bfloat16 says nothing with dtype=float32; leave it out, or set dtype too")
        return self

    @field_validator("engine_server")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        # A run's configuration is written down and shown, so no password belongs there.
        if address is not None and not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", address):
            raise ValueError(
                f"{address!r} is no address like http://host:8000, without user, password and query; correct it"
            )
        return address


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
        stage = load_stage(self.stage)
        settings = dict(self.settings)
        if stage.uses_models:
            settings |= {name: self.execution[name] for name in ("dtype", "head_dtype")}
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
    """What the next stage may take from memory, by the part of the output that holds the same numbers."""
    recoverable: str | None = None
    """Pattern of the files that need not be kept: the stage makes them again, from the same inputs, to the last bit."""


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
    keeps_recoverable: bool = True

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
    for ref in input_refs(call.inputs):
        require_undamaged(ref)
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
        keeps_recoverable=call.keeps_recoverable,
    )
    with models.recovering(lambda ref: recover(ref, store, context)):
        output = declared.fn(context, declared.config_type(**call.settings), **call.inputs)
    ref = store.commit(
        recipe,
        scratch,
        inputs=call.inputs,
        rows=output.rows,
        metrics=output.metrics,
        seconds=time.monotonic() - started,
        recoverable=output.recoverable,
        keeps_recoverable=call.keeps_recoverable,
        # The order of sums follows from it, and with it the last bits; halved when memory ran out, no setting tells of it.
        origin={MICRO_BATCH: context.execution.micro_batch_tokens},
    )
    for part, model in output.resident.items():
        models.keep(ref, part, model)
    return ref


def recover(ref: Ref, store: Store, context: StageContext) -> None:
    """Bring an output whose files were not kept back into memory, by running its stage again on its inputs."""
    if not is_committed(ref.directory):
        return
    manifest = Manifest.read(ref.directory)
    if all((ref.directory / name).exists() for name in manifest.recoverable):
        return
    scratch = store.root / "scratch" / f"recovered-{manifest.fingerprint}" / "output"
    try:
        output = remade(ref, store, context, scratch)
    finally:
        shutil.rmtree(scratch.parent, ignore_errors=True)
    for part, model in output.resident.items():
        context.models.keep(ref, part, model)


def remade(ref: Ref, store: Store, context: StageContext, scratch: Path) -> StageOutput:
    """Run the stage of a committed output again, into ``scratch``, whose files are then those that were committed.

    Raises ``DamagedError`` where they come out otherwise.
    """
    manifest = Manifest.read(ref.directory)
    output = repeat(manifest, store, replace(context, keeps_recoverable=False, health=NO_LIMITS), scratch)
    again = digests_below(scratch)
    for name, entry in manifest.files.items():
        if again.get(name) != entry["sha256"]:
            raise DamagedError(
                f"{ref.directory / name} was not kept, and running its stage again gives other bytes (on another machine, "
                f"device or version?); {rerun_command(manifest)} makes it anew"
            )
    return output


def repeat(manifest: Manifest, store: Store, context: StageContext, scratch: Path) -> StageOutput:
    """Run the stage of a manifest again on the inputs that it records, into ``scratch``."""
    declared = load_stage(manifest.stage)
    recipe = manifest.recipe
    if declared.version != recipe["version"]:
        raise DamagedError(
            f"{manifest.stage} is at version {declared.version}, its output at {recipe['version']}; "
            f"{rerun_command(manifest)} makes it anew"
        )
    make_empty(scratch)
    inputs = store.inputs_of(manifest)
    for ref in input_refs(inputs):
        require_undamaged(ref)
    settings = {name: value for name, value in recipe["settings"].items() if name in declared.config_type.model_fields}
    execution = dict(context.execution)
    execution[MICRO_BATCH] = manifest.origin.get(MICRO_BATCH, context.execution.micro_batch_tokens)
    context = replace(
        context,
        output=scratch,
        place=manifest.place,
        run_seed=recipe["seed"],
        execution=ExecutionConfig(**execution),
    )
    return declared.fn(context, declared.config_type(**settings), **inputs)


def input_refs(inputs: Inputs) -> list[Ref]:
    """All references among a call's inputs."""
    values = [value if isinstance(value, list) else [value] for value in inputs.values()]
    return [ref for group in values for ref in group if ref is not None]
