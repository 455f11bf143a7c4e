"""Commands that tell: compare, diff, explain, logs."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.completion import metrics
from flows.cli.options import Json, RunName, print_json, show, show_lines

if TYPE_CHECKING:
    from flows.runs import Run

commands = typer.Typer()
FOLLOW_S = 1.0
"""Between two looks at what a run has committed."""


@commands.command()
def compare(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="RUN, RUN:ROUND, RUN:ROUND.ITERATION, or ROUND.ITERATION.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The place that is held against A.")],
    top: Annotated[int, typer.Option(metavar="N", min=0, help="Prompts that are listed.")] = 10,
    as_json: Json = False,
) -> None:
    """Hold two places against each other prompt by prompt; without an iteration, the evaluations of their rounds."""
    from flows.analysis.compare import compared, side_of
    from flows.runs import find_run

    first, second = (side_of(text, lambda name: find_run(ctx.obj, name)) for text in (a, b))
    found = compared(first, second)
    if as_json:
        settings = [{"name": name, "a": x, "b": y} for name, x, y in found.settings]
        a, b = (side.place for side in found.sides)
        rows = [row.as_dict() for row in found.rows]
        print_json({"a": a, "b": b, "summary": found.summary(), "settings": settings, "prompts": rows})
    else:
        from flows.terminal.comparison_views import comparison_view

        show(comparison_view(found, top))


@commands.command()
def diff(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A run's name or directory.")],
    b: Annotated[str | None, typer.Argument(metavar="B", help="Another run; default: the defaults.")] = None,
    as_json: Json = False,
) -> None:
    """The settings in which two runs differ; of one run alone, those that are not the defaults."""
    from flows.analysis.differences import MISSING, chosen_settings, differing_settings
    from flows.runs import find_run

    first = find_run(ctx.obj, a)
    if b is None:
        settings = [(name, value, MISSING) for name, value in chosen_settings(first.config)]
    else:
        settings = differing_settings(first.config, find_run(ctx.obj, b).config)
    if as_json:
        print_json([{"name": name, "a": x, "b": None if b is None else y} for name, x, y in settings])
    elif not settings:
        print("no setting differs")
    else:
        from flows.terminal.comparison_views import settings_table

        show(settings_table(settings, (a, "default" if b is None else b)))


@commands.command()
def explain(
    ctx: typer.Context,
    metric: Annotated[
        str,
        typer.Argument(
            metavar="METRIC", help="Such as score/mean, as status and MLflow name it.", autocompletion=metrics
        ),
    ],
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Show its values in this run too.")] = None,
    as_json: Json = False,
) -> None:
    """What a metric measures, where it should lie, what to do where it does not; and with RUN, its values."""
    from dataclasses import asdict
    from difflib import get_close_matches

    from tasks.errors import ConfigError
    from tasks.metrics.declared import GLOSSARY, declared

    found = declared(metric)
    if found is None:
        near = get_close_matches(metric, GLOSSARY, n=3, cutoff=0.4)
        raise ConfigError(f"{metric}: no such metric; near it are {', '.join(near) or 'none'}")
    history = [] if run is None else history_of(ctx.obj, run)
    if as_json:
        values = [
            {"round": r["round"], "iteration": r["iteration"], "value": r[metric]} for r in history if metric in r
        ]
        print_json({"name": metric, **asdict(found), "values": values})
        return
    from flows.terminal.comparison_views import metric_lines, values_table

    # A pattern, such as score/<reward>, stands for the metrics that are named like it.
    show_lines(metric_lines(found, metric))
    if run is not None:
        print()
        show(values_table(history, metric))


def history_of(home: Path, name: str) -> list[dict[str, Any]]:
    """The metrics of a run by iteration."""
    from flows.outcomes import stage_statuses
    from flows.outcomes.status import metrics_history
    from flows.plan import plan_of
    from flows.runs import find_run

    return metrics_history(stage_statuses(plan_of(find_run(home, name))))


@commands.command()
def logs(
    ctx: typer.Context,
    run: RunName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends or Ctrl-C.")] = False,
) -> None:
    """What a run has committed, stage by stage with the time, and what its worker said."""
    from flows.runs import find_run

    found = find_run(ctx.obj, run)
    log = found.root / "worker.log"
    seen: set[Path] = set()
    read = 0
    while True:
        goes_on = found.is_in_progress()
        show_lines(new_stages(found, seen))
        read = show_since(log, read)
        if not (follow and goes_on):
            return
        time.sleep(FOLLOW_S)


def new_stages(run: "Run", seen: set[Path]) -> list[str]:
    """A line for each output that is not in ``seen``, in the order in which they were committed."""
    from flows.terminal.display import headline
    from flows.text import duration, stage_label
    from tasks.store import Manifest

    fresh = [path for path in run.store.outputs() if path not in seen]
    seen.update(fresh)
    manifests = [manifest for path in fresh if (manifest := Manifest.read_if_sound(path)) is not None]
    lines = []
    for manifest in sorted(manifests, key=lambda manifest: manifest.committed_at):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.committed_at))
        numbers = headline(manifest.stage, manifest.metrics)
        took = f"{manifest.rows:,} rows, {duration(manifest.seconds)}"
        label = stage_label(manifest.stage, manifest.place)
        lines.append(f"{at}  {label}: {took}{', ' if numbers else ''}{numbers}")
    return lines


def show_since(log: Path, position: int) -> int:
    """Print what a log has after a position, and return where it ends now."""
    from flows.text import printable

    if not log.exists():
        return position
    with log.open("rb") as stream:
        stream.seek(position)
        for line in stream:
            print(f"worker: {printable(line.decode('utf-8', 'replace').rstrip())}", flush=True)
        return stream.tell()
