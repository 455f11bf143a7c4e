"""The tables of the command line. They show what ``flows.outcomes`` found."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.addresses import pages_of_run
from flows.outcomes import Column, Overview, StageStatus, Step, result_rows
from flows.plan import Attempt
from flows.runs import Run
from flows.terminal.display import ITERATION_LINE, headline
from flows.terminal.tables import add_row, folded, plain_table
from flows.text import duration, number, printable
from tasks import environment
from tasks.metrics import combine
from tasks.stages import STAGES

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

REASONS_SHOWN = 5


def results_table(columns: Sequence[Column], results: Sequence[Mapping[str, Any]]) -> "Table":
    """One line per round below the reference's. Titles are stacked, for a terminal of 80 columns."""
    titles = [column.title.replace("_", " ").replace(" ", "\n") for column in columns]
    # What is least asked for goes first where the terminal is narrow.
    drops = [title for title in ("length", "entropy", "ref.\nscore", "RM\nacc.") if title in titles]
    table = plain_table("", *titles, right=titles, drops=drops)
    table.padding = (0, 0, 0, 0) if len(columns) > 8 else (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap, column.vertical = True, "bottom"
    for row in result_rows(columns, results):
        add_row(table, *row)
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


def runs_table(overviews: Sequence[Overview]) -> "Table":
    """All runs, the one worked on last first."""
    table = plain_table(
        "run",
        "rounds",
        "state",
        "created",
        "score",
        "gain (sd)",
        "warnings",
        right=("rounds", "score", "gain (sd)", "warnings"),
        drops=("created", "rounds"),
    )
    for item in overviews:
        add_row(
            table,
            printable(item.name),
            f"{item.rounds_done}/{'?' if item.rounds is None else item.rounds}",
            item.state,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(item.created_at)),
            number(item.score, 3),
            number(item.score_gain),
            item.warnings or "",
        )
    return table


def status_view(statuses: Sequence[StageStatus], *, whole: bool = False) -> "Group":
    """Round by round: its own stages as lines, its iterations as lines with the stages as columns; of many iterations the
    first and the last, unless the ``whole`` is asked for."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for round in sorted({status.round for status in statuses}):
        of_round = [status for status in statuses if status.round == round]
        parts.append(Text(f"round {round}", style="bold"))
        parts.append(round_table([s for s in of_round if not s.iteration]))
        parts.append(Text(""))
        iterations = [s for s in of_round if s.iteration]
        parts.append(iterations_table(iterations, whole=whole))
        left_out = [] if whole else folded(sorted({s.iteration for s in iterations}))[1]
        if left_out:
            parts.append(
                Text(f"iterations {left_out[0]} to {left_out[-1]} are left out; --iterations shows all", "dim")
            )
        parts.append(Text(""))
    parts += [Text(line) for line in reasons(statuses)]
    return Group(*parts)


def round_table(statuses: Sequence[StageStatus]) -> "Table":
    table = plain_table("stage", "state", "rows", "time", "came to", right=("rows", "time"), drops=("rows",))
    for status in statuses:
        done = status.committed > 0
        add_row(
            table,
            status.stage.replace("_", " "),
            status.state,
            f"{status.rows:,}" if done else "",
            duration(status.seconds) if done else "",
            headline(status.stage, status.metrics) if done else printable(status.reason, 60),
            style="" if done else "dim",
        )
    return table


def iterations_table(statuses: Sequence[StageStatus], *, whole: bool = False) -> "Table":
    """Iterations as lines, the time of each stage, and the numbers of the iteration; of many, the first and the last."""
    titles = [stage.split("_", 1)[0] for stage in STAGES.of_an_iteration]
    numbers = [name for _, name, _ in ITERATION_LINE]
    right = ("iteration", "rows", *titles, *numbers)
    table = plain_table(
        "iteration",
        "rows",
        *titles,
        *numbers,
        right=right,
        drops=("rows", "audit", "compute", "score", "generate", "update"),
    )
    by_iteration = sorted({status.iteration for status in statuses})
    shown, left_out = (by_iteration, []) if whole else folded(by_iteration)
    for iteration in shown:
        if left_out and iteration == left_out[-1] + 1:
            add_row(table, "⋮", *[""] * (len(right) - 1), style="dim")
        here = {status.stage: status for status in statuses if status.iteration == iteration}
        metrics = combine(part for status in here.values() for part in status.parts)
        rows = max((status.rows for status in here.values()), default=0)
        add_row(
            table,
            iteration,
            f"{rows:,}" if rows else "",
            *(stage_cell(here.get(stage)) for stage in STAGES.of_an_iteration),
            *(number(metrics[key], digits) if key in metrics else "" for key, _, digits in ITERATION_LINE),
            style="" if rows else "dim",
        )
    return table


def stage_cell(status: StageStatus | None) -> str:
    if status is None:
        return ""
    return duration(status.seconds) if status.state == "committed" else status.state


def reasons(statuses: Sequence[StageStatus]) -> list[str]:
    """Why stages are pending: the first causes, not that each input of a pending stage is pending too."""
    pending = [status for status in statuses if status.state != "committed"]
    causes = [s for s in pending if not (s.reason.startswith("input ") and s.reason.endswith(" changes"))]
    news = [status for status in causes if status.reason != "not run yet"]
    lines = [f"pending: {stage_place(s)}: {printable(s.reason)}" for s in news[:REASONS_SHOWN]]
    if pending:
        lines.append(f"{len(pending)} of {len(statuses)} stages are to be executed; rounds rerun executes them")
    return lines


def stage_place(status: StageStatus) -> str:
    iteration = f" iteration {status.iteration}" if status.iteration else ""
    return f"round {status.round}{iteration} {status.stage.replace('_', ' ')}"


def attempts_table(attempts: Sequence[Attempt]) -> "Table":
    """Place by place, the oldest first; the current one is marked."""
    table = plain_table(
        "stage",
        "place",
        "attempt",
        "committed",
        "rows",
        "time",
        "differs",
        right=("rows", "time"),
        drops=("rows", "time"),
    )
    for attempt in attempts:
        add_row(
            table,
            attempt.stage,
            attempt.place,
            attempt.id,
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.committed_at)),
            f"{attempt.rows:,}",
            duration(attempt.seconds),
            "current" if attempt.is_current else printable(attempt.differs, 80),
            style="" if attempt.is_current else "dim",
        )
    return table


def steps_table(steps: Sequence[Step]) -> "Table":
    """What a rerun would do, stage by stage."""
    table = plain_table("stage", "place", "action", "expected", "reason", right=("expected",))
    for step in steps:
        expected = duration(step.expected_seconds) if step.executes else ""
        action, reason = "execute" if step.executes else "reuse", printable(step.reason, 80)
        add_row(table, step.stage, step.place, action, expected, reason, style="" if step.executes else "dim")
    return table


def steps_total(steps: Sequence[Step]) -> str:
    """The sum below the steps."""
    executed = [step for step in steps if step.executes]
    unknown = [step for step in executed if step.expected_seconds is None]
    seconds = sum(step.expected_seconds or 0.0 for step in executed)
    total = f"execute {len(executed)}, reuse {len(steps) - len(executed)}; expected {duration(seconds)}"
    return f"{total} and {len(unknown)} of unknown time" if unknown else total
