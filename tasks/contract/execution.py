"""How a stage's output is found, or made and committed; how one that was not kept is made again."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from ppo_core.config import can_share
from tasks.config import ExecutionConfig, HealthConfig
from tasks.contract.call import MICRO_BATCH, StageCall
from tasks.contract.resident import ResidentModels
from tasks.contract.stage import StageContext, StageOutput, stage_function
from tasks.errors import DamagedError
from tasks.stages import STAGES
from tasks.store import (
    Inputs,
    Manifest,
    Ref,
    Store,
    digests_below,
    exclusive,
    flat,
    is_committed,
    make_empty,
    require_undamaged,
    rerun_command,
)

LORA_BASE = "lora_base"
"""The input that every stage with models may have: the frozen model whose adapters the others are."""
PROCESSES, SHARDED = "train_processes", "sharded"
Together = Callable[[str, StageContext, Mapping[str, Any], Inputs], StageOutput]
TELL_S = 1.0
NO_LIMITS = HealthConfig(
    max_ratio_deviation=inf,
    max_engine_difference=inf,
    max_approx_kl=inf,
    max_kl=inf,
    min_entropy=0.0,
    min_reward_model_accuracy=0.0,
)
"""For what was committed once: the limits let it pass then, or were told to."""


def execute(
    call: StageCall,
    models: ResidentModels,
    report: Callable[[Mapping[str, Any]], None],
    *,
    together: Together | None = None,
) -> Ref:
    """Reuse the committed output of this call, or make and commit it; ``together`` executes it in several processes."""
    store = Store(Path(call.run_root))
    recipe = call.recipe()
    if (done := store.find(recipe)) is not None:
        return done
    for ref in flat(call.inputs):
        require_undamaged(ref)
    scratch = store.scratch(recipe)
    started = time.monotonic()
    execution = ExecutionConfig(**call.execution)
    context = StageContext(
        output=scratch,
        place=call.place,
        run_seed=call.seed,
        execution=execution,
        health=HealthConfig(**call.health),
        resident=models,
        report=report,
        keeps_recoverable=call.keeps_recoverable,
        hands_on=execution.workers > 1 or execution.train_processes > 1,
        together=together,
    )
    with models.recovering(lambda ref: recover(ref, store, context)):
        output = run_stage(call.stage, context, call.settings, call.inputs)
    ref = store.commit(
        recipe,
        scratch,
        inputs=call.inputs,
        rows=output.rows,
        metrics=output.metrics,
        seconds=time.monotonic() - started,
        recoverable=output.recoverable,
        keeps_recoverable=call.keeps_recoverable,
        hands_on=context.hands_on,
        # The order of sums follows from it, and with it the last bits; halved when memory ran out, no setting tells of it.
        origin={
            MICRO_BATCH: execution.micro_batch_tokens,
            PROCESSES: execution.train_processes,
            SHARDED: execution.sharded,
        },
    )
    for part, model in output.resident.items():
        models.keep(ref, part, model)
    return ref


def recover(ref: Ref, store: Store, context: StageContext) -> None:
    """Bring an output whose files were not kept back into memory, by running its stage again on its inputs.

    Where other workers need it too, one of them does so, and hands the files on to the others.
    """
    if not is_committed(ref.directory):
        return
    manifest = Manifest.read(ref.directory)
    if is_whole(ref.directory, manifest):
        return
    with ExitStack() as held:
        if context.hands_on:
            held.enter_context(alone_with(store.handed_on_directory(manifest.fingerprint), context.report))
            if is_whole(ref.directory, manifest):
                return
        scratch = store.root / "scratch" / f"recovered-{manifest.fingerprint}" / "output"
        try:
            output = remade(ref, store, context, scratch)
            if context.hands_on or not output.resident:
                store.hand_on(ref.directory, manifest, scratch)
        finally:
            shutil.rmtree(scratch.parent, ignore_errors=True)
        for part, model in output.resident.items():
            context.resident.keep(ref, part, model)


def is_whole(directory: Path, manifest: Manifest) -> bool:
    """Whether the files are there that need not be kept."""
    return all((directory / name).exists() for name in manifest.recoverable)


@contextmanager
def alone_with(directory: Path, report: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Keep a directory for this process; who waits for it says so every second, since it does not hang."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as stream:
        waited = 0
        while not exclusive(stream, patience_s=TELL_S):
            waited += 1
            report({"done": waited, "total": waited, "unit": "s of waiting for another worker", "tokens": 0})
        yield


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
                f"{ref.directory / name} was not kept, and running its stage again{in_words(manifest)} gives other bytes "
                f"(on another machine, device or version?); {rerun_command(manifest)} makes it anew"
            )
    return output


def repeat(manifest: Manifest, store: Store, context: StageContext, scratch: Path) -> StageOutput:
    """Run the stage of a manifest again on the inputs that it records, into ``scratch``."""
    stage = STAGES[manifest.stage]
    recipe = manifest.recipe
    if stage.version != recipe["version"]:
        raise DamagedError(
            f"{manifest.stage} is at version {stage.version}, its output at {recipe['version']}; "
            f"{rerun_command(manifest)} makes it anew"
        )
    make_empty(scratch)
    inputs = store.inputs_of(manifest)
    for ref in flat(inputs):
        require_undamaged(ref)
    # A recipe holds what is no field of the stage's own too: the precision of its models.
    settings = {name: value for name, value in recipe["settings"].items() if name in stage.config.model_fields}
    execution = dict(context.execution)
    execution[MICRO_BATCH] = manifest.origin.get(MICRO_BATCH, context.execution.micro_batch_tokens)
    execution |= layout_of(manifest, context.execution)
    context = replace(
        context,
        output=scratch,
        place=manifest.place,
        run_seed=recipe["seed"],
        execution=ExecutionConfig(**execution),
    )
    return run_stage(manifest.stage, context, settings, inputs)


def layout_of(manifest: Manifest, execution: ExecutionConfig) -> dict[str, int | bool]:
    """With how many processes and shares an output's training is repeated: those that made it, since sums round by them."""
    shares = int(manifest.recipe["settings"].get("shares", 1))
    made_by = int(manifest.origin.get(PROCESSES, 1))
    sharded = bool(manifest.origin.get(SHARDED, False))
    if shares > 1 and not sharded:
        # The same to the last bit with any number that can share them.
        made_by = execution.train_processes if can_share(shares, execution.train_processes) else 1
    return {"shares": shares, PROCESSES: made_by, SHARDED: sharded}


def in_words(manifest: Manifest) -> str:
    """The layout that an output was made with, where it was not that of one process."""
    processes = manifest.origin.get(PROCESSES, 1)
    return f" in {processes} processes" if STAGES[manifest.stage].trains and processes > 1 else ""


def run_stage(name: str, context: StageContext, settings: Mapping[str, Any], inputs: Inputs) -> StageOutput:
    """Call a stage's function; what its adapters are over is for those that load models, not for the stage."""
    if STAGES[name].trains and context.execution.train_processes > 1 and context.together is not None:
        return context.together(name, context, settings, inputs)
    own = dict(inputs)
    lora_base = own.pop(LORA_BASE, None)
    assert lora_base is None or isinstance(lora_base, Ref)
    return stage_function(name)(replace(context, lora_base=lora_base), STAGES[name].config(**settings), **own)
