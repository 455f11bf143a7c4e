"""Two places or two configurations against each other, and what a metric is, in a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.analysis.compare import Comparison, responses_of
from flows.terminal.tables import add_row, plain_table
from flows.text import number, printable
from tasks.metrics.declared import Metric

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

RESPONSE_WIDTH = 60


def comparison_view(found: Comparison, top: int) -> "Group":
    """The change of each number, then the prompts of which the change is most in doubt."""
    from rich.console import Group
    from rich.text import Text

    a, b = found.sides
    summary = plain_table("", "a", "b", "change", "±", right=("a", "b", "change", "±"))
    for line in found.summary():
        cells = (number(line[name], 3) for name in ("a", "b", "change", "stderr"))
        held_out = " (held out)" if line["name"] in found.held_out else ""
        add_row(summary, f"{printable(line['name'])}{held_out}", *cells)
    heads = ["score", *found.held_out, "length"]
    table = plain_table("prompt", "a", "b", *heads, right=heads, drops=(*reversed(heads[1:]), "prompt"))
    rows = found.rows[:top]
    texts = [responses_of(side, [row.prompt_id for row in rows]) for side in found.sides]
    for row in rows:
        pairs = [row.score, *(row.held_out[name] for name in found.held_out), row.length]
        changes = [f"{after - before:+.3g}" for before, after in pairs]
        responses = [printable(own[row.prompt_id]["response"], RESPONSE_WIDTH) for own in texts]
        add_row(table, printable(texts[0][row.prompt_id]["prompt"], 40), *responses, *changes)
    head = [f"a: {a.name}", f"b: {b.name}", f"{len(found.rows):,} prompts that both have", ""]
    parts: list[Any] = [*(Text(printable(line)) for line in head), summary, Text("")]
    if found.settings:
        parts += [settings_table(found.settings, ("a", "b")), Text("")]
    return Group(*parts, table)


def settings_table(settings: Sequence[tuple[str, Any, Any]], names: tuple[str, str]) -> "Table":
    """The settings in which two runs differ."""
    table = plain_table("setting", *map(printable, names))
    for setting, x, y in settings:
        add_row(table, printable(setting), printable(x, 60), printable(y, 60))
    return table


def metric_lines(metric: Metric, name: str) -> list[str]:
    """What is declared of a metric."""
    warns = f"warns {metric.warns}" if metric.warns else ""
    rows = [
        ("what", metric.meaning),
        ("unit", metric.unit),
        ("healthy", "; ".join(filter(None, [str(metric.healthy), warns]))),
        ("otherwise", metric.advice),
        ("combines by", metric.combines.way),
        ("beside it", f"{name}_stderr, its standard error" if metric.has_stderr else ""),
    ]
    return [name, *(f"  {title:<13}{text}" for title, text in rows if text)]


def values_table(history: Sequence[Mapping[str, Any]], name: str) -> "Table":
    """The metric of each iteration that has it."""
    table = plain_table("round", "iteration", name, right=("round", "iteration", name))
    for row in history:
        if row.get(name) is not None:
            add_row(table, row["round"], row["iteration"], number(row[name], 4))
    return table
