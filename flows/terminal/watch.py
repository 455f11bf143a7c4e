"""A run's state on the whole terminal, looked at again and again while the run is in progress."""

import time
from typing import TYPE_CHECKING

from flows.outcomes import Standing, result_columns, standing_of
from flows.query import Span
from flows.runs import Run
from flows.terminal.tables import DOUBTFUL, View
from flows.terminal.views.runs import results_table, state_line, warning_lines
from flows.terminal.views.status import status_view
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PAUSE_S, SHARE = 2.0, 0.1
"""Seconds between two looks; more, where looking would take a larger share of the time."""
WARNINGS_SHOWN = 3
LINES_BESIDE = 21
"""Lines that the view has beside those of its iterations, about."""
LEAST_ITERATIONS = 6


def watch(run: Run, rounds: Span, console: "Console | None" = None) -> None:
    """Until the run is no longer in progress, or Ctrl-C.

    Raises:
        ConfigError: standard output is no terminal.
    """
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    if not console.is_terminal:
        raise ConfigError("--watch: standard output is no terminal; leave --watch out, or run it in one")
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while run.is_in_progress():
                began = time.monotonic()
                live.update(watch_view(run, standing_of(run), rounds, height=console.height), refresh=True)
                took = time.monotonic() - began
                time.sleep(max(PAUSE_S, took / SHARE))
    except KeyboardInterrupt:
        # That is how one leaves; the run knows nothing of it.
        return


def watch_view(run: Run, found: Standing, rounds: Span, *, height: int) -> View:
    """The results so far, then the round that is worked on, its iterations folded to what the terminal has room for."""
    from rich.text import Text

    statuses = found.stages_of(rounds)
    pending = [status.round for status in statuses if status.state != "committed"]
    current = pending[0] if pending else statuses[-1].round
    of_round = [status for status in statuses if status.round == current]
    parts: list[RenderableType] = [state_line(run, found.state), Text("")]
    if found.results:
        parts += [results_table(result_columns(run.config), found.results), Text("")]
    # Above what might have no room.
    warnings = warning_lines([warning.sentence for warning in found.warnings[:WARNINGS_SHOWN]])
    parts += [*(Text(line, style=DOUBTFUL, no_wrap=True) for line in warnings[1:]), *([Text("")] if warnings else [])]
    beside = LINES_BESIDE + len(found.results) + len(warnings)
    return View([*parts, status_view(of_round, most=max(LEAST_ITERATIONS, height - beside))])
