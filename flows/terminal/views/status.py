"""A run's rounds and stages as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.outcomes import AskedFor, StageStatus
from flows.runs import Run
from flows.terminal.display import ITERATION_LINE, headline
from flows.terminal.tables import DOUBTFUL, MOST_LISTED, Column, Hidden, Table, View, folded, numbers
from flows.terminal.views.runs import colored
from flows.text import duration, number, printable, stage_label
from tasks import environment
from tasks.metrics import combine
from tasks.stages import STAGES
from tasks.store import Place

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

REASONS_SHOWN = 5
AHEAD = 4
"""Lines for the iterations of a long round that are still to come."""
DROPPED_STAGES = {"compute_advantages": 9, "audit_rollouts": 8, "score_rollouts": 7, "generate_rollouts": 6}
"""The times of an iteration's stages that go first where a terminal is too narrow; then the other ones, 5."""
DROPPED_NUMBERS = {"length": 2, "entropy": 3}


def status_view(statuses: Sequence[StageStatus], *, whole: bool = False, most: int = MOST_LISTED) -> View:
    """Round by round: its own stages as lines, its iterations as lines with the stages as columns.

    Of more than ``most`` iterations those in the middle are one line, unless the ``whole`` is asked for.
    """
    from rich.text import Text

    parts: list[Table | RenderableType] = []
    for round in sorted({status.round for status in statuses}):
        of_round = [status for status in statuses if status.round == round]
        parts.append(Text(f"round {round}", style="bold"))
        parts.append(round_table([s for s in of_round if not s.iteration]))
        parts.append(Text(""))
        if iterations := [s for s in of_round if s.iteration]:
            parts += [iterations_table(iterations, whole=whole, most=most), Text("")]
    return View([*parts, *(Text(line) for line in reasons(statuses))])


def beginning_lines(run: Run, asked_for: AskedFor) -> list[str]:
    """What ``rounds run --until`` has made, and how to go on."""
    status = asked_for.status
    where = stage_label(status.stage, Place(status.round, status.iteration))
    numbers = headline(status.stage, status.metrics)
    rounds = f"rounds {environment.home_option(run.home)}".rstrip()
    rows = [
        *(("output", printable(output.path)) for output in asked_for.outputs),
        ("stages", f"{rounds} status {run.name}"),
        ("go on", "the same command without --until, which reuses all that is there"),
    ]
    return [
        f"{where} is there{f': {numbers}' if numbers else ''}",
        "",
        *(f"{name:<12}{text}" for name, text in rows),
    ]


def round_table(statuses: Sequence[StageStatus]) -> Table:
    table = Table(
        columns=[
            Column(title="stage"),
            Column(title="state"),
            *numbers("rows", drop=2),
            *numbers("time", drop=1),
            Column(title="result", is_list=True),
        ]
    )
    for status in statuses:
        done = status.committed > 0
        table.add_row(
            status.stage.replace("_", " "),
            state_cell(status),
            f"{status.rows:,}" if done else "",
            duration(status.seconds) if done else "",
            headline(status.stage, status.metrics) if done else printable(status.reason, 60),
            style="" if done else "dim",
        )
    return table


def iterations_table(statuses: Sequence[StageStatus], *, whole: bool = False, most: int = MOST_LISTED) -> Table:
    """Iterations as lines, the time of each stage, and the numbers of the iteration."""
    stages = STAGES.of_an_iteration
    times = [
        Column(title=stage.split("_", 1)[0], is_number=True, drop=DROPPED_STAGES.get(stage, 5)) for stage in stages
    ]
    measured = [Column(title=name, is_number=True, drop=DROPPED_NUMBERS.get(name, 0)) for _, name, _ in ITERATION_LINE]
    table = Table(columns=[*numbers("iteration"), *numbers("rows", drop=4), *times, *measured])
    here: dict[int, dict[str, StageStatus]] = {}
    for status in statuses:
        here.setdefault(status.iteration, {})[status.stage] = status
    begun = [at for at, own in sorted(here.items()) if any(status.committed for status in own.values())]
    ahead = sorted({*here} - {*begun})
    # Those that are still to come are alike.
    is_whole = whole or len(here) <= most
    shown = [*folded(begun, whole=is_whole, most=most), *folded(ahead, whole=is_whole, most=AHEAD)]
    for iteration in shown:
        if isinstance(iteration, Hidden):
            table.add_line(hidden_line([here[number] for number in iteration.items]))
            continue
        metrics = metrics_of(here[iteration])
        rows = max((status.rows for status in here[iteration].values()), default=0)
        table.add_row(
            iteration,
            f"{rows:,}" if rows else "",
            *(stage_cell(here[iteration].get(stage)) for stage in stages),
            *(number(metrics[key], digits) if key in metrics else "" for key, _, digits in ITERATION_LINE),
            style="" if rows else "dim",
        )
    return table


def metrics_of(stages: dict[str, StageStatus]) -> dict[str, float]:
    """The numbers of an iteration, of all its stages."""
    return combine(part for status in stages.values() for part in status.parts)


def hidden_line(iterations: "Sequence[dict[str, StageStatus]]") -> str:
    """What is said of iterations that are left out: how many, and from where to where their numbers went."""
    first, last = metrics_of(iterations[0]), metrics_of(iterations[-1])
    went = [
        f"{name} {number(first[key], digits)} → {number(last[key], digits)}"
        for key, name, digits in ITERATION_LINE
        if key in first and key in last
    ]
    is_ahead = not any(status.committed for status in iterations[0].values())
    return ", ".join([f"… {len(iterations):,} more", *(["pending"] if is_ahead else went)])


def state_cell(status: StageStatus) -> "Text":
    return colored(status.state, DOUBTFUL if status.state.endswith(("shards", "running")) else "")


def stage_cell(status: StageStatus | None) -> "Text":
    if status is None:
        return colored("", "")
    return colored(duration(status.seconds), "") if status.state == "committed" else state_cell(status)


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
