"""The tables of the command line. They show what ``flows.outcomes`` found."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.addresses import pages_of_run
from flows.outcomes import Column as ResultColumn
from flows.outcomes import Overview, Step, result_rows
from flows.plan import Attempt
from flows.runs import Run
from flows.terminal.tables import BAD, DOUBTFUL, GOOD, TIGHT, Column, Hidden, Table, folded, numbers
from flows.text import duration, number, printable
from tasks import environment

if TYPE_CHECKING:
    from rich.text import Text

STATE_COLORS = {"running": "cyan", "finished": GOOD, "damaged": BAD, "unreadable": BAD}
"""Of a run; one that stopped before its end is to be looked at."""
DROPPED_RESULTS = {"evaluation/reference_score": 1, "evaluation/response_length": 2, "update/entropy": 3}
"""Columns of the final table that go first where a terminal is too narrow; the gains and the KL stay."""


def colored(text: object, color: str) -> "Text":
    """A cell whose colour means something."""
    from rich.text import Text

    return Text(str(text), style=color)


def signed(value: float | None, digits: int = 3, *, more_is_better: bool | None = None) -> "Text":
    """A change with its sign; coloured where a rise is known to be good or bad."""
    shown = number(value, digits)
    is_none = value is None or not any(digit in shown for digit in "123456789")
    if is_none or more_is_better is None:
        return colored(shown if is_none or shown.startswith("-") else f"+{shown}", "")
    assert value is not None
    return colored(shown if value < 0 else f"+{shown}", GOOD if (value > 0) == more_is_better else BAD)


def state_cell(state: str) -> "Text":
    return colored(state, STATE_COLORS.get(state, DOUBTFUL))


def state_line(run: Run, state: str) -> "Text":
    """A run's name, its state and where it lies."""
    from rich.text import Text

    return Text.assemble(f"{printable(run.name)}: ", state_cell(state), f" ({printable(run.root)})")


def results_table(columns: Sequence[ResultColumn], results: Sequence[Mapping[str, Any]]) -> Table:
    """One line per round below the reference's. Titles are stacked, for a terminal of 80 columns."""
    titles = [column.title.replace("_", " ").replace(" ", "\n") for column in columns]
    heads = [
        Column(title=title, is_number=True, drop=DROPPED_RESULTS.get(column.key, 0))
        for title, column in zip(titles, columns, strict=True)
    ]
    table = Table(columns=[Column(title=""), *heads], gaps=TIGHT)
    for row in result_rows(columns, results):
        table.add_row(*row)
    return table


def warning_lines(sentences: Sequence[str]) -> list[str]:
    """What speaks against the numbers above it, to stand right under them; nothing where nothing does."""
    if not sentences:
        return []
    return [
        "",
        f"{len(sentences)} warning{'s' * (len(sentences) > 1)}",
        *(f"  {printable(text)}" for text in sentences),
    ]


def next_steps(run: Run) -> list[str]:
    """Where to look next, as lines."""
    from flows.server import is_healthy, running_server
    from tasks.tracking import where_to_look

    rounds = f"rounds {environment.home_option(run.home)}".rstrip()
    named = environment.prefect_api_url()
    prefect = named if named is not None and is_healthy(named) else running_server(run.home)
    rows = [
        ("pages", pages_of_run(run.home, run.name)),
        ("stages", f"{rounds} status {run.name}"),
        ("rollouts", f"{rounds} rollouts {run.name} --sort -score"),
        ("the policy", f"{rounds} export {run.name} --to {run.name}-policy"),
        ("Prefect", prefect.removesuffix("/api") if prefect else f"{rounds} up"),
        ("MLflow", where_to_look(run.home) or f"{rounds} mlflow"),
    ]
    return ["", *(f"{name:<12}{text}" for name, text in rows)]


def runs_table(overviews: Sequence[Overview]) -> Table:
    """All runs, the one worked on last first."""
    table = Table(
        columns=[
            Column(title="run", is_text=True),
            *numbers("rounds"),
            Column(title="state"),
            Column(title="created", drop=1),
            *numbers("score", "gain (sd)", "warnings"),
        ]
    )
    for item in overviews:
        table.add_row(
            printable(item.name),
            f"{item.rounds_done}/{'?' if item.rounds is None else item.rounds}",
            state_cell(item.state),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(item.created_at)),
            number(item.score, 3),
            number(item.score_gain),
            colored(item.warnings or "", DOUBTFUL),
        )
    return table


def attempts_table(attempts: Sequence[Attempt]) -> Table:
    """Place by place, the oldest first; the current one is marked."""
    table = Table(
        columns=[
            Column(title="stage"),
            Column(title="place"),
            Column(title="attempt"),
            Column(title="committed", drop=3),
            *numbers("rows", "time", drop=2),
            Column(title="differs", is_text=True),
        ]
    )
    for attempt in folded(attempts):
        if isinstance(attempt, Hidden):
            table.add_line(f"… {len(attempt.items):,} more")
            continue
        table.add_row(
            attempt.stage,
            attempt.place,
            attempt.id,
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.committed_at)),
            f"{attempt.rows:,}",
            duration(attempt.seconds),
            "current" if attempt.is_current else printable(attempt.differs),
            style="" if attempt.is_current else "dim",
        )
    return table


def steps_table(steps: Sequence[Step]) -> Table:
    """What a rerun would do, stage by stage."""
    table = Table(
        columns=[
            Column(title="stage"),
            Column(title="place"),
            Column(title="action"),
            *numbers("expected"),
            Column(title="reason", is_text=True),
        ]
    )
    for step in folded(steps):
        if isinstance(step, Hidden):
            table.add_line(
                f"… {len(step.items):,} more, {sum(own.executes for own in step.items):,} of them to execute"
            )
            continue
        expected = duration(step.expected_seconds) if step.executes else ""
        action = "execute" if step.executes else "reuse"
        style = "" if step.executes else "dim"
        table.add_row(step.stage, step.place, action, expected, printable(step.reason), style=style)
    return table


def steps_total(steps: Sequence[Step]) -> str:
    """The sum below the steps."""
    executed = [step for step in steps if step.executes]
    unknown = [step for step in executed if step.expected_seconds is None]
    seconds = sum(step.expected_seconds or 0.0 for step in executed)
    total = f"execute {len(executed)}, reuse {len(steps) - len(executed)}; expected {duration(seconds)}"
    return f"{total} and {len(unknown)} of unknown time" if unknown else total
