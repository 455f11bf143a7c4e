"""Live progress of a run on standard error: bars on a terminal, timestamped lines elsewhere."""

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self, TextIO

from flows.terminal.observer import Observer
from flows.text import duration, number, printable, stage_label
from tasks.contract import StageCall
from tasks.metrics import NEEDED, RunWarning, combine, diagnose, rows_of, warnings_at, warnings_of_round
from tasks.stages import STAGES
from tasks.store import Manifest, Ref

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

GAIN = "evaluation/score_gain"
PROGRESS_LINE_S = 60.0
"""Where there are no bars, a long stage says so often how far it is."""
WIDE = 100
"""Columns of a terminal with room for the speed of a stage."""
ITERATION_LINE = (
    ("score/mean", "score", 3),
    ("kl/mean", "KL", 3),
    ("rollouts/response_length", "length", 1),
    ("update/entropy", "entropy", 3),
)


def headline(stage: str, metrics: Mapping[str, float]) -> str:
    """The numbers that tell most of a stage, on a line."""
    # A run may hold the outputs of somebody's own stage.
    headlines = STAGES[stage].headlines if stage in STAGES else ()
    named = [(name, digits, metrics[key]) for key, name, digits in headlines if key in metrics]
    return ", ".join(f"{name} {number(value, digits)}" for name, digits, value in named)


def display_for(num_stages: int, stream: TextIO | None = None) -> "Display":
    """The display that suits a stream: standard error where none is given."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        return LineDisplay(num_stages, stream)
    from rich.console import Console

    return BarDisplay(num_stages, Console(file=stream))


class Display(Observer, AbstractContextManager["Display"]):
    """What both displays know: what has been committed, what runs, and the metrics of each iteration."""

    def __init__(self, num_stages: int) -> None:
        self.num_stages = num_stages
        self.num_done = 0
        self.lost_server = False
        self.reports: dict[int, Ref] = {}
        """The report of each round."""
        self._lock = threading.RLock()
        self._num_reused = 0
        self._running: dict[str, StageCall] = {}
        self._metrics: dict[tuple[int, int], list[tuple[int, Mapping[str, float]]]] = {}
        """Rows and metrics of the outputs of each (round, iteration); iteration 0 is a round's own."""
        self._told: set[str] = set()
        """Metrics that were once told to be out of their healthy range."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._tell_reused()

    def line(self, text: str, style: str = "") -> None:
        """Show one line for good."""
        raise NotImplementedError

    def stage_reused(self, call: StageCall, ref: Ref) -> None:
        with self._lock:
            self.num_done += 1
            self._num_reused += 1
            self._remember(call, ref)

    def stage_started(self, call: StageCall) -> None:
        with self._lock:
            self._tell_reused()
            self._running[call.label] = call

    def stage_finished(self, call: StageCall, ref: Ref, seconds: float) -> None:
        del seconds  # They count the wait for the worker too; the manifest has the stage's own.
        with self._lock:
            self.num_done += 1
            self._running.pop(call.label, None)
            self._finished(call, self._remember(call, ref))
            for warning in self._warnings(call):
                if warning.metric not in self._told:
                    self._told.add(warning.metric)
                    self.line(f"warning: {printable(warning.sentence)}", "yellow")

    def stage_failed(self, call: StageCall, message: str, *, will_retry: bool) -> None:
        with self._lock:
            self._running.pop(call.label, None)
            if will_retry:
                label = stage_label(call.stage, call.place)
                self.line(f"{label}: {printable(message)}; another attempt may follow", "yellow")

    def stage_warned(self, call: StageCall, message: str) -> None:
        with self._lock:
            self.line(f"{stage_label(call.stage, call.place)}: {printable(message)}", "yellow")

    def server_lost(self, url: str, instead: str) -> None:
        self.lost_server = True
        self._begin_again()
        self.note(f"{url} does not answer any more; the run goes on with {instead}")

    def server_found(self, url: str) -> None:
        self._begin_again()
        self.note(f"Prefect's pages of this run are at {url.removesuffix('/api')}")

    def _begin_again(self) -> None:
        """The flow starts anew and finds what was counted before."""
        with self._lock:
            self._tell_reused()
            self.num_done = 0
            self._running.clear()
            self._metrics.clear()

    def note(self, message: str) -> None:
        with self._lock:
            self.line(printable(message))

    def _finished(self, call: StageCall, manifest: Manifest) -> None:
        raise NotImplementedError

    def _tell_reused(self) -> None:
        if self._num_reused:
            self.line(f"{self._num_reused} stage{'s' * (self._num_reused > 1)} reused", "dim")
            self._num_reused = 0

    def _remember(self, call: StageCall, ref: Ref) -> Manifest:
        if call.stage == "report_round":
            self.reports[call.place.round] = ref
        manifest = Manifest.read(ref.directory)
        place = manifest.place
        self._metrics.setdefault((place.round, place.iteration), []).append((manifest.rows, manifest.metrics))
        return manifest

    def _iteration_metrics(self, round: int, iteration: int) -> dict[str, float]:
        """Each metric of an iteration, of all its outputs so far."""
        return combine(self._metrics.get((round, iteration), []))

    def _headline(self, call: StageCall, manifest: Manifest) -> str:
        """A stage's numbers; a gain never without the number of the round's warnings."""
        text = headline(call.stage, manifest.metrics)
        if GAIN in manifest.metrics:
            found = [w for w in diagnose(*rows_of(self._metrics)) if w.round == call.place.round]
            count = f"{len(found)} warning{'s' * (len(found) != 1)}" if found else ""
            text = ", ".join(filter(None, (text, count)))
        return text

    def _warnings(self, call: StageCall) -> list[RunWarning]:
        """What is out of its healthy range where this stage was, by what has been committed there so far."""
        here = (call.place.round, call.place.iteration)
        of_round = combine(self._metrics.get((here[0], 0), []))
        if not call.place.iteration:
            history, _ = rows_of(self._metrics)
            return warnings_of_round(here[0], of_round, [row for row in history if row["round"] == here[0]])
        iterations = sorted(place for place in self._metrics if place[1] and place <= here)
        needed = dict.fromkeys([*iterations[:1], *iterations[-NEEDED:]])
        rows, _ = rows_of({place: self._metrics[place] for place in needed})
        return warnings_at(rows, of_round)


class LineDisplay(Display):
    """Timestamped lines without control characters, for logs and pipes."""

    def __init__(self, num_stages: int, stream: TextIO) -> None:
        super().__init__(num_stages)
        self._stream = stream
        self._last_progress: dict[str, float] = {}

    def line(self, text: str, style: str = "") -> None:
        del style
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=self._stream, flush=True)

    def stage_started(self, call: StageCall) -> None:
        with self._lock:
            super().stage_started(call)
            self._last_progress[call.label] = time.monotonic()
            self.line(f"{stage_label(call.stage, call.place)}: started ({self.num_done}/{self.num_stages} stages done)")

    def stage_progress(self, call: StageCall, event: Mapping[str, Any]) -> None:
        with self._lock:
            if time.monotonic() - self._last_progress.get(call.label, 0.0) < PROGRESS_LINE_S:
                return
            self._last_progress[call.label] = time.monotonic()
            self.line(f"{stage_label(call.stage, call.place)}: {event['done']}/{event['total']} {event['unit']}")

    def _finished(self, call: StageCall, manifest: Manifest) -> None:
        parts = [f"{manifest.rows} rows", duration(manifest.seconds), self._headline(call, manifest)]
        self.line(f"{stage_label(call.stage, call.place)}: finished, {', '.join(part for part in parts if part)}")


class BarDisplay(Display):
    """A bar for each stage that runs, one for the whole run, and above them a line for what is done."""

    def __init__(self, num_stages: int, console: "Console") -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        super().__init__(num_stages)
        self._console = console
        bar = BarColumn(bar_width=28)
        counts = TextColumn("{task.fields[counts]}", markup=False)
        description = TextColumn("{task.description:<46}", markup=False)
        self._stage_bars = Progress(description, bar, counts, TimeRemainingColumn(compact=True), console=console)
        self._run_bar = Progress(description, bar, counts, TimeElapsedColumn(), console=console)
        self._run = self._run_bar.add_task("run", total=num_stages, counts=self._run_counts())
        self._starting = self._stage_bars.add_task("starting", total=None, counts="")
        self._bars: dict[str, tuple[TaskID, float]] = {}
        """Of each stage that runs, by its label, and since when it does."""
        self._live = Live(Group(self._stage_bars, self._run_bar), console=console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._live.stop()

    def line(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style), soft_wrap=True)

    def stage_reused(self, call: StageCall, ref: Ref) -> None:
        with self._lock:
            super().stage_reused(call, ref)
            self._update_run()

    def stage_started(self, call: StageCall) -> None:
        with self._lock:
            super().stage_started(call)
            self._stage_bars.update(self._starting, visible=False)
            self._remove_bar(call.label)
            bar = self._stage_bars.add_task(stage_label(call.stage, call.place), total=None, counts="")
            self._bars[call.label] = (bar, time.monotonic())

    def stage_progress(self, call: StageCall, event: Mapping[str, Any]) -> None:
        with self._lock:
            if call.label not in self._bars:
                return
            bar, since = self._bars[call.label]
            done, total, unit, seconds = event["done"], event["total"], event["unit"], time.monotonic() - since
            counts = f"{done:,}/{total:,} {unit}"
            processed = done if unit == "tokens" else event.get("tokens", 0)
            # In a narrow terminal the shard's number goes first of what has no room.
            if processed and seconds > 0.5 and self._console.width >= WIDE:
                counts += f"  {processed / seconds:,.0f}{'' if unit == 'tokens' else ' tokens'}/s"
            self._stage_bars.update(bar, completed=done, total=total, counts=counts)

    def stage_failed(self, call: StageCall, message: str, *, will_retry: bool) -> None:
        with self._lock:
            super().stage_failed(call, message, will_retry=will_retry)
            self._remove_bar(call.label)

    def _begin_again(self) -> None:
        with self._lock:
            super()._begin_again()
            for label in list(self._bars):
                self._remove_bar(label)

    def _finished(self, call: StageCall, manifest: Manifest) -> None:
        place = call.place
        if call.stage == "update_policy":
            metrics = self._iteration_metrics(place.round, place.iteration)
            numbers = [
                f"{name} {number(metrics[key], digits):>7}" for key, name, digits in ITERATION_LINE if key in metrics
            ]
            self.line(f"round {place.round} · iteration {place.iteration:<4} {'   '.join(numbers)}")
        elif not place.iteration:
            parts = (self._headline(call, manifest), duration(manifest.seconds))
            self.line(f"{stage_label(call.stage, place)}: {', '.join(part for part in parts if part)}")
        self._update_run()
        self._remove_bar(call.label)

    def _remove_bar(self, label: str) -> None:
        if label in self._bars:
            bar, _ = self._bars.pop(label)
            self._stage_bars.remove_task(bar)

    def _update_run(self) -> None:
        self._run_bar.update(self._run, completed=self.num_done, counts=self._run_counts())

    def _run_counts(self) -> str:
        return f"{self.num_done}/{self.num_stages} stages"
