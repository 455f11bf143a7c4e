"""Two places against each other, two configurations, and a metric, in a terminal."""

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.analysis.compare import Comparison, SideSummary
from flows.analysis.differences import MISSING, Setting
from flows.analysis.explain import Explanation, Figures
from flows.analysis.joined import Answer, Pair
from flows.terminal.tables import BAD, DOUBTFUL, GOOD, Column, Hidden, Table, View, folded, numbers
from flows.terminal.views.runs import colored, signed
from flows.text import number, printable
from tasks.config import Json

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

MOST_SETTINGS = 12
"""Settings that are listed of a comparison; ``rounds diff`` has all."""
BARS = "▁▂▃▄▅▆▇█"
TITLES = {"kl_sum": "KL"}
MARKS = {"a": ("[-", "-]"), "b": ("{+", "+}")}
"""Around words that only one side has, where colours cannot say it."""


def comparison_view(found: Comparison, pairs: Sequence[Pair]) -> View:
    """What both sides are, how their numbers differ, and the prompts that come first."""
    from rich.text import Text

    parts: list[Table | RenderableType] = [
        Text(f"{name}  {told_of(side)}") for name, side in zip("AB", found.sides, strict=True)
    ]
    told = f"{found.prompts:,} prompts that both have"
    if found.held_out:
        told += f"; {found.doubtful:,} doubtful: the score rose while a held-out reward fell"
    parts += [Text(told), *(Text(line, style=DOUBTFUL) for line in notes_of(found)), Text(""), changes_table(found)]
    if found.settings:
        parts += [Text(""), settings_table(found.settings[:MOST_SETTINGS])]
        more = len(found.settings) - MOST_SETTINGS
        if more > 0:
            parts.append(Text(f"… {more} more; rounds diff {' '.join(side.run for side in found.sides)} has them all"))
    for pair in pairs:
        parts += [Text(""), *pair_lines(pair, found.held_out)]
    if found.prompts > len(pairs):
        parts += [Text(""), Text(f"{len(pairs)} of {found.prompts:,} prompts; --top N shows more", style="dim")]
    return View(parts)


def told_of(side: SideSummary) -> str:
    return f"{printable(side.name)} ({side.rows:,} responses to {side.prompts:,} prompts)"


def notes_of(found: Comparison) -> list[str]:
    """What stands against the numbers."""
    notes = []
    if not found.has_one_scale:
        notes.append("note: the scores are of different reward models; only held-out rewards compare")
    if not all(side.is_current for side in found.sides):
        notes.append("note: a configuration changed since; what was made before that is compared")
    return notes


def changes_table(found: Comparison) -> Table:
    """Each number on both sides, and its mean change over prompts."""
    table = Table(
        columns=[
            Column(title=""),
            *numbers("A", "B", "B − A"),
            *numbers("±", drop=1),
            *numbers("rose", "fell", drop=2),
        ]
    )
    for change in found.changes:
        is_judged = change.kind in ("score", "component", "held-out")
        table.add_row(
            TITLES.get(change.name, printable(change.name)) + (" (held out)" if change.kind == "held-out" else ""),
            number(change.a, 3),
            number(change.b, 3),
            signed(change.change, more_is_better=True if is_judged else None),
            "" if change.stderr is None else number(change.stderr, 3),
            f"{change.rose:,}",
            f"{change.fell:,}",
        )
    return table


def pair_lines(pair: Pair, held_out: Sequence[str]) -> "list[Text | Words]":
    """A prompt, what changed, and the two responses with the words that differ."""
    from rich.text import Text

    told = Text()
    if pair.is_doubtful:
        told.append_text(colored("doubtful", DOUBTFUL))
    for name in ("score", *held_out, "length"):
        if name in pair.changes:
            change = signed(pair.changes[name], 1 if name == "length" else 3, more_is_better=None)
            told.append(f"   {printable(name)} " if told else f"{printable(name)} ").append_text(change)
    lines: list[Text | Words] = [told, Text(printable(pair.prompt), style="dim")]
    return [*lines, Words("A", pair.a, pair.words, "a", BAD), Words("B", pair.b, pair.words, "b", GOOD)]


class Words:
    """A response, with the words marked that the other side's has not: by colour, else by brackets."""

    def __init__(self, name: str, answer: Answer, words: Sequence[tuple[str, str]], side: str, color: str) -> None:
        self._name, self._side, self._color = name, side, color
        self._words = [(which, text) for which, text in words if which in ("same", side)]
        samples = f", 1 of {answer.samples}" if answer.samples > 1 else ""
        self._end = f"  ({printable(answer.rollout_id)}{samples})"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        has_colors = console.color_system is not None and not console.no_color
        before, after = ("", "") if has_colors else MARKS[self._side]
        text = Text(f"{self._name} ")
        for which, words in self._words:
            if which == "same":
                text.append(printable(words))
                continue
            bare = words.lstrip(" ")
            text.append(" " * (len(words) - len(bare)))
            text.append(f"{before}{printable(bare)}{after}", style=f"{self._color} underline")
        yield text.append(self._end, style="dim")


def settings_table(settings: Sequence[Setting], names: tuple[str, str] = ("A", "B")) -> Table:
    """What differs, setting by setting."""
    table = Table(columns=[Column(title="setting"), *(Column(title=printable(n), wraps=True, least=10) for n in names)])
    for setting in settings:
        table.add_row(printable(setting.name), value_text(setting.a), value_text(setting.b))
    return table


def value_text(value: Json) -> str:
    """A setting's value as YAML has it on a line."""
    if value == MISSING:
        return MISSING
    return printable(value) if isinstance(value, str) else printable(json.dumps(value, ensure_ascii=False))


def explanation_view(found: Explanation, figures: Sequence[Figures], run: str | None) -> View:
    """What a metric is; of a run its values as a line of figures for each round."""
    from rich.text import Text

    told = [
        ("healthy", found.healthy),
        ("warns", found.warns),
        ("otherwise", found.advice),
        ("combines", f"{found.combines}, over shards and iterations"),
        ("logged by", ", ".join(found.logged_by) or "every round that is published"),
        ("error", f"{found.name}_stderr is its standard error" if found.has_stderr else ""),
    ]
    parts: list[Table | RenderableType] = [
        Text.assemble((found.name, "bold"), f"  {found.unit}"),
        Text(found.meaning),
        Text(""),
    ]
    parts += [Text(f"{name:<11}{text}") for name, text in told if text]
    for own in figures:
        parts += [Text(""), Text.assemble((f"{printable(own.name)} in {printable(run)}", "bold")), *figure_lines(own)]
    if run is not None and not figures:
        parts += [Text(""), Text(f"{printable(run)} has logged none of it yet")]
    return View(parts)


def figure_lines(figures: Figures) -> "list[Text]":
    """The values of each round on a line, and how they run."""
    from rich.text import Text

    lines = []
    for round in dict.fromkeys(round for round, _, _ in figures.values):
        values = [value for own, _, value in figures.values if own == round]
        told = [
            f"… {len(item.items):,} more …" if isinstance(item, Hidden) else figure(item, values)
            for item in folded(values)
        ]
        bars = f"  {sparkline(values)}" if len(values) > 1 else ""
        lines.append(Text(f"round {round}{bars}  {' '.join(told)}"))
    return lines


def figure(value: float, beside: Sequence[float]) -> str:
    """A value in four digits; what is nothing beside the others is 0."""
    largest = max((abs(other) for other in beside if math.isfinite(other)), default=0.0)
    return "0" if abs(value) < 1e-6 * largest else f"{value:.4g}"


def sparkline(values: Sequence[float], most: int = 40) -> str:
    """How values run, as bars of eight heights; of many values evenly some. Nothing where the terminal lacks bars."""
    try:
        BARS.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return ""
    shown = [values[i * (len(values) - 1) // (most - 1)] for i in range(most)] if len(values) > most else list(values)
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if math.isfinite(value) else " " for value in shown)
