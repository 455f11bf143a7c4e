"""Everything that ``rounds check`` says of a configuration, one part after another, so that what one part needs is known."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.config import STAND_IN, RunConfig, every_mistake
from flows.doctor import free_memory, gib
from flows.plan import make_plan
from flows.preview.disk import Disk, disk_of, write_speed
from flows.preview.duration import seconds_of_run, seconds_of_stages
from flows.preview.first_look import PATIENCE_S, preview_config, require_none, without_stand_ins
from flows.preview.memory import StageMemory, memory_of_stages
from flows.preview.named import look_for_named
from flows.preview.proposal import Proposal, decided, first_draft
from flows.preview.workers import doubts_about_workers, memory_of_others, memory_of_ranks
from flows.runs import Run
from tasks.config import ExecutionConfig
from tasks.contract import StageError
from tasks.worker import Supervisor


@dataclass(kw_only=True)
class Preview:
    """What a run of a configuration would find and take."""

    mistakes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)
    memory: list[StageMemory] = field(default_factory=list)
    """Of the first worker, which executes every stage."""
    other_workers: int = 0
    """Bytes that the others take of the same memory."""
    other_processes: int = 0
    """Bytes that the others take which train one model together with the first."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of one execution of each stage, by the trial."""
    total_seconds: float | None = None
    disk: Disk | None = None
    stages: dict[str, int] = field(default_factory=dict)
    """How many of each would execute."""
    reused: int = 0
    """How many are committed already."""

    @property
    def fits(self) -> bool | None:
        """Whether all workers fit into what is free; None where one of both is not known."""
        free = self.device.get("free")
        return None if free is None or not self.memory else self.most_memory + self.others <= free

    @property
    def others(self) -> int:
        """Bytes of all processes but the first worker."""
        return self.other_workers + self.other_processes

    @property
    def most_memory(self) -> int:
        """Bytes of the largest stage."""
        return max(stage.total for stage in self.memory)

    def as_dict(self) -> dict[str, Any]:
        values = {name: value for name, value in asdict(self).items() if name not in ("memory", "disk")}
        return {
            **values,
            "memory": [stage.as_dict() for stage in self.memory],
            "fits": self.fits,
            "disk": self.disk and self.disk.as_dict(),
        }


def examine(
    document: Mapping[str, Any], run: Run, *, has_trial: bool = True, say: Callable[[str], None] = lambda _: None
) -> Preview:
    """Look at all that a document says; ``run`` is the one that it would be, which may not exist yet."""
    preview = Preview()
    preview.mistakes, config = every_mistake(document)
    if config is None:
        return preview
    missing, models = look_for_named(config, run.home)
    preview.mistakes += [str(mistake) for mistake in missing]
    if not preview.mistakes:
        planned = make_plan(run, config)
        preview.stages = dict(Counter(stage.stage for stage in planned.stages if stage.ref is None))
        preview.reused = sum(stage.ref is not None for stage in planned.stages)
    with tempfile.TemporaryDirectory(prefix="rounds-check-") as scratch:
        worker = Supervisor(Path(scratch) / "worker.log")
        try:
            found = ask(worker, preview, config, models, say, "reading the data and looking at the models")
            if found is not None:
                take(preview, found, config)
            if found is not None and "sizes" in found:
                estimate(preview, found, config, run, worker, models, has_trial=has_trial, say=say)
        finally:
            worker.close()
    return preview


def ask(
    worker: Supervisor,
    preview: Preview,
    config: RunConfig,
    models: Mapping[str, Any],
    say: Callable[[str], None],
    what: str,
    *,
    has_trial: bool = False,
) -> dict[str, Any] | None:
    """What the worker finds; a worker that dies of it is a mistake too, and None."""
    say(what)
    try:
        return worker.preview(
            preview_config(config, models, has_trial=has_trial), report=lambda _: None, timeout_s=PATIENCE_S
        )
    except StageError as error:
        why = "the memory ran out" if error.kind == "memory" else error.message.partition("; its log is")[0]
        preview.mistakes.append(f"{what}: {why}")
        return None


def take(preview: Preview, found: Mapping[str, Any], config: RunConfig) -> None:
    own = without_stand_ins(found["mistakes"], config)
    # A file that is not there was told without its field.
    preview.mistakes += [new for new in own if not any(new.endswith(told) for told in preview.mistakes)]
    preview.doubts = [*found["doubts"], *doubts_about_workers(config)]
    preview.sources = [source for source in found["sources"] if source["name"] != STAND_IN]
    preview.examples = found["examples"]
    preview.device = dict(found.get("device", {}))
    if preview.device.get("kind") == "cpu":
        preview.device["free"] = free_memory()


def estimate(
    preview: Preview,
    found: Mapping[str, Any],
    config: RunConfig,
    run: Run,
    worker: Supervisor,
    models: Mapping[str, Any],
    *,
    has_trial: bool,
    say: Callable[[str], None],
) -> None:
    """Memory first; weights are read for a trial only where they fit."""
    sizes, lengths = found["sizes"], lengths_of(found)
    preview.memory = memory_of_stages(
        config, sizes, prompt_tokens=max(lengths["prompts"], default=1), device=preview.device["kind"]
    )
    kind, workers = preview.device["kind"], config.execution.workers
    if kind == "cpu":
        preview.other_workers = memory_of_others(preview.memory, config.execution.workers_here)
        preview.other_processes = memory_of_ranks(preview.memory, config.execution)
    preview.mistakes += too_many_for_memory(preview, config.execution)
    speed = write_speed(run.home)
    seconds = None
    if has_trial and not preview.mistakes and preview.fits is not False:
        tried = ask(worker, preview, config, models, say, "trying a few responses and steps", has_trial=True)
        if tried is not None:
            preview.mistakes += [new for new in tried["mistakes"] if new not in preview.mistakes]
        if tried is not None and "trial" in tried:
            seconds = seconds_of_stages(config, tried["trial"], sizes, lengths, write_speed=speed)
            preview.seconds = seconds
            # Workers on the processor share its cores, so that it is not known what they gain.
            side_by_side = workers if kind == "cuda" else 1
            preview.total_seconds = seconds_of_run(make_plan(run, config), seconds, workers=side_by_side)
    preview.disk = disk_of(config, sizes, run.home, seconds=seconds, write_speed=speed)


def too_many_for_memory(preview: Preview, execution: ExecutionConfig) -> list[str]:
    """A mistake where the first worker fits, and all together do not."""
    free = preview.device.get("free")
    if preview.fits is not False or free is None or preview.most_memory > free:
        return []
    mistakes = []
    left = free - preview.most_memory
    for name, asked, taken in (
        ("workers", execution.workers, preview.other_workers),
        ("train_processes", execution.train_processes, preview.other_processes),
    ):
        if taken > left:
            each = taken // (asked - 1)
            mistakes.append(
                f"execution.{name}={asked}: together they take {gib(preview.most_memory + taken)} "
                f"({gib(preview.most_memory)} for the first, {gib(each)} for each other), and {preview.device['name']} has "
                f"{gib(free)} free; lower it to {1 + int(left // each)}"
            )
        left = max(0, left - taken)
    return mistakes


def lengths_of(found: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    kept = sum(source["kept"] for source in found["sources"] if source["kind"] == "preferences")
    return {
        "prompts": [],
        "preferences": [],
        "responses": [],
        "texts": [],
        **found["lengths"],
        "num_preferences": [kept],
    }


def propose(model: str, preferences: str, prompts: str | None, home: Path, *, say: Callable[[str], None]) -> Proposal:
    """A configuration for a model and its preferences, without a mistake.

    Raises:
        ConfigError: naming what no configuration could use; as ``Mistakes`` where there are several.
    """
    draft = first_draft(model, preferences, prompts)
    with tempfile.TemporaryDirectory(prefix="rounds-new-") as scratch:
        worker = Supervisor(Path(scratch) / "worker.log")
        try:
            found = seen_of(draft, home, worker, say)
            free = free_memory() if found["device"]["kind"] == "cpu" else found["device"]["free"]
            draft = decided(draft, found, free=free)
            seen_of(draft, home, worker, say)
        finally:
            worker.close()
    return draft


def seen_of(draft: Proposal, home: Path, worker: Supervisor, say: Callable[[str], None]) -> dict[str, Any]:
    """What the worker finds of a draft that is without a mistake."""
    config = draft.config
    missing, models = look_for_named(config, home)
    preview = Preview(mistakes=[str(mistake) for mistake in missing])
    found = None if missing else ask(worker, preview, config, models, say, "looking at the data and the model")
    if found is not None:
        preview.mistakes += found["mistakes"]
    require_none(preview.mistakes, where="what was given")
    assert found is not None
    return found
