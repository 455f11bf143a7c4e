"""What a run would find and take, in a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.preview import Preview
from flows.terminal.tables import BAD, DOUBTFUL, GOOD, Column, Table, View, numbers
from flows.text import duration, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

TITLES = {"prompts": "a prompt", "held_out_prompts": "a held-out prompt", "texts": "a text"}
MOST_SHOWN = 600
"""Characters of an example."""


def preview_view(preview: Preview) -> View:
    """All that is known, in the order in which one reads it."""
    parts: list[Table | RenderableType] = []
    if preview.sources:
        parts += [sources_table(preview.sources), *dropped_lines(preview.sources), ""]
    for example in preview.examples:
        parts += [*example_lines(example), ""]
    if preview.memory:
        parts += [memory_table(preview), fit_line(preview), ""]
    parts += plan_lines(preview)
    parts += [styled(f"doubt: {printable(doubt)}", DOUBTFUL) for doubt in preview.doubts]
    return View(parts)


def sources_table(sources: Sequence[dict[str, Any]]) -> Table:
    columns = [
        Column(title="data"),
        Column(title="source", is_text=True),
        *numbers("from round", drop=2),
        *numbers("rows", "left out"),
    ]
    table = Table(columns=columns)
    for source in sources:
        left_out = source["rows"] - source["kept"]
        table.add_row(
            source["kind"].replace("_", " "),
            printable(source["name"]),
            source["from_round"],
            f"{source['rows']:,}",
            f"{left_out:,}",
        )
    return table


def dropped_lines(sources: Sequence[dict[str, Any]]) -> list["Text"]:
    """Why rows are left out, and the first of them."""
    lines = []
    for source in sources:
        lines += [
            styled(f"{printable(source['name'])}: left out {count:,}: {printable(reason)}", DOUBTFUL)
            for reason, count in source["dropped"].items()
        ]
        lines += [styled(f"  {printable(row, 200)}", "dim") for row in source["first_dropped"][:1]]
    return lines


def example_lines(example: dict[str, Any]) -> list["Text"]:
    """An example as the model reads it."""
    if example["kind"] != "preferences":
        return [styled(f"{TITLES[example['kind']]}, as the model reads it", "bold"), shown(example["texts"][0])]
    lines = [styled("a preference, as the reward model reads it", "bold")]
    ranked = sorted(zip(example["ranks"], example["texts"], strict=True))
    for rank, text in ranked:
        lines += [styled(f"rank {rank}{' (best)' if rank == ranked[0][0] else ''}", "dim"), shown(text)]
    return lines


def shown(text: str) -> "Text":
    return styled("  " + printable(text, MOST_SHOWN))


def memory_table(preview: Preview) -> Table:
    columns = [Column(title="memory (GiB)"), *numbers("weights"), *numbers("gradients", "moments", drop=1)]
    columns += [*numbers("activations", "cache", drop=1), *numbers("in all")]
    table = Table(columns=columns)
    for stage in preview.memory:
        parts = (stage.weights, stage.gradients, stage.moments, stage.activations, stage.cache, stage.total)
        table.add_row(stage.stage, *(gib(part) for part in parts))
    return table


def fit_line(preview: Preview) -> "Text":
    """Whether the largest stage fits, in numbers."""
    largest = max(preview.memory, key=lambda stage: stage.total)
    free, name = preview.device.get("free"), printable(preview.device["name"])
    if free is None:
        return styled(f"on {name}, whose memory the system does not tell: at most {gib(largest.total)} GiB", DOUBTFUL)
    if preview.fits:
        own, others = gib(largest.total), preview.others
        all_workers = f"{own} GiB, and {gib(others)} GiB for the other processes, of the" if others else f"{own} of the"
        return styled(f"fits: at most {all_workers} {gib(free)} GiB that are free on {name}", GOOD)
    if largest.total <= free:
        return styled(
            f"does not fit: the first worker takes {gib(largest.total)} GiB, the others {gib(preview.others)} GiB, "
            f"and {name} has {gib(free)} GiB free; lower execution.workers or execution.train_processes",
            f"bold {BAD}",
        )
    return styled(
        f"does not fit: {largest.stage} takes {gib(largest.total)} GiB, and {name} has {gib(free)} GiB free; lower "
        "execution.micro_batch_tokens, set execution.gradient_checkpointing, or train adapters with model.lora",
        f"bold {BAD}",
    )


def plan_lines(preview: Preview) -> list["Text"]:
    lines = []
    if preview.stages:
        count = sum(preview.stages.values())
        each = ", ".join(f"{number} × {stage}" for stage, number in preview.stages.items())
        reused = f"; {preview.reused:,} are committed already" if preview.reused else ""
        lines.append(styled(f"plan: {count:,} stages ({each}){reused}"))
    if preview.total_seconds is not None:
        longest = sorted(preview.seconds.items(), key=lambda entry: -entry[1] * preview.stages.get(entry[0], 0))[:3]
        each = ", ".join(f"{stage} {duration(seconds)} each" for stage, seconds in longest)
        lines.append(
            styled(
                f"time: about {duration(preview.total_seconds)} ({each}), an estimate by a trial of seconds, for responses "
                "as long as those of the preferences, else as long as they may become"
            )
        )
    if preview.disk is not None:
        disk = preview.disk
        lines.append(
            styled(
                f"disk: {gib(disk.total)} GiB of {gib(disk.free)} GiB free ({disk.kept} checkpoints of "
                f"{gib(disk.checkpoint)} GiB, other models {gib(disk.models)} GiB)",
                f"bold {BAD}" if disk.total > disk.free else "",
            )
        )
        lines.append(styled(f"checkpoint_every: {disk.checkpoint_every} is proposed"))
    return lines


def gib(size: int) -> str:
    """Three digits of small sizes too."""
    value = size / 2**30
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def styled(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(text, style=style)
