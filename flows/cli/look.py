"""Commands that look: list, status, rollouts, show, replay."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import say
from flows.cli.options import FAILED, AttemptId, Json, RunName, print_json, show, show_lines

if TYPE_CHECKING:
    from flows.plan import Plan
    from flows.query import DataSet, Rows
    from flows.runs import Run

commands = typer.Typer()


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


@commands.command("list")
def list_(ctx: typer.Context, as_json: Json = False) -> None:
    """All runs, the one worked on last first."""
    from dataclasses import asdict

    from flows.outcomes import overview
    from flows.runs import list_runs

    overviews = [overview(run) for run in list_runs(ctx.obj)]
    if as_json:
        print_json([asdict(item) for item in overviews])
    elif overviews:
        from flows.terminal.views import runs_table

        show(runs_table(overviews))
    else:
        print(f"{ctx.obj} has no runs yet; start one with: rounds run quickstart")


@commands.command()
def status(
    ctx: typer.Context,
    run: RunName = None,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="List what earlier configurations made in the same places.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A run's rounds and stages: state, rows, time and headline metrics."""
    from flows.outcomes import reports_of, result_columns, run_state, run_warnings, stage_statuses, summary_of
    from flows.plan import plan_of
    from flows.runs import find_run

    found = find_run(ctx.obj, run)
    config = found.config
    plan = plan_of(found)
    if attempts:
        show_attempts(found, plan, as_json=as_json)
        return
    statuses, state = stage_statuses(plan), run_state(found, plan)
    results = [summary_of(report) for report in reports_of(plan)]
    warnings = run_warnings(statuses)
    if as_json:
        print_json(
            {
                "run": found.name,
                "directory": str(found.root),
                "state": state,
                "stages": [item.as_dict() for item in statuses],
                "rounds": results,
                "warnings": [warning.as_dict() for warning in warnings],
            }
        )
        return
    from flows.terminal.views import results_table, status_view, warning_lines

    print(f"{found.name}: {state} ({found.root})\n")
    show(status_view(statuses))
    if results:
        print()
        show(results_table(result_columns(config), results))
    show_lines(warning_lines([warning.sentence for warning in warnings]))


def show_attempts(run: "Run", plan: "Plan", *, as_json: bool) -> None:
    """What the places have that hold more than one output."""
    from dataclasses import asdict

    from flows.plan import attempts_of

    found = attempts_of(run, plan)
    if as_json:
        print_json({"run": run.name, "attempts": [asdict(attempt) for attempt in found]})
    elif found:
        from flows.terminal.views import attempts_table

        show(attempts_table(found))
        print(
            f"rounds rollouts {run.name} --attempt ID shows the rollouts of one; rounds clean removes what is not current"
        )
    else:
        print(f"{run.name}: every place has one attempt")


@commands.command()
def rollouts(
    ctx: typer.Context,
    run: RunName = None,
    round: Annotated[str | None, typer.Option(metavar="R", help="A round, 2-4, or all; default: the latest.")] = None,
    iteration: Annotated[
        str | None, typer.Option(metavar="I", help="An iteration, 2-4, or all; default: the latest.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SEARCH", help='Such as: lamp -"red lamp" score<0 finish_reason:stop sort:-length'),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Smallest first; -COLUMN puts the largest first.")
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: 10 in a table, else all.")] = None,
    data: Annotated[
        str, typer.Option(metavar="NAME", help="Another data set: evaluation, preferences, prompts, audit, ...")
    ] = "rollouts",
    format_: Annotated[
        Format, typer.Option("--format", help="jsonl has every column, csv those that are no lists.")
    ] = (Format.table),
    attempt: AttemptId = None,
    as_json: Json = False,
) -> None:
    """Look at rollouts and their rewards: of one iteration, or of many."""
    from flows.query import select, span
    from flows.runs import find_run
    from flows.text import json_text

    found = select(
        find_run(ctx.obj, run),
        data,
        rounds=span(round, option="--round"),
        iterations=span(iteration, option="--iteration"),
        attempt=attempt,
    )
    is_table = format_ is Format.table and not as_json
    rows = searched(found.data_set, where, sort, top or (10 if is_table else None))
    if not found.is_current:
        say("note: the run's configuration or code changed since; these rollouts were made before that")
    if as_json:
        last = found.parts[-1]
        place = {"round": last.place.round, "iteration": last.place.iteration, "stage": last.stage}
        print_json({**place, "found": rows.found, data: rows.dicts()})
    elif format_ is Format.jsonl:
        for row in rows:
            print(json_text(row))
    elif format_ is Format.csv:
        print(as_csv(rows), end="")
    else:
        from flows.terminal.rollout_views import rows_table, where_from

        show(rows_table(rows))
        print(f"{where_from(found)}: {len(rows)} of {rows.found:,} {data}")


def searched(data_set: "DataSet", where: str | None, sort: str | None, top: int | None) -> "Rows":
    """What is searched for, by options that a mistake is told with."""
    from flows.query import Order, Query, parse
    from tasks.errors import ConfigError

    order = [] if sort is None else [Order(column=sort.removeprefix("-"), largest_first=sort.startswith("-"))]
    try:
        for own in order:
            data_set.require_column(own.column)
    except ConfigError as error:
        raise ConfigError(f"--sort {error}") from error
    try:
        query = parse(where or "")
        return data_set.search(Query(conditions=query.conditions, order=(*order, *query.order)), top=top)
    except ConfigError as error:
        raise ConfigError(f"--where {where}: {error}") from error


def as_csv(rows: "Rows") -> str:
    """The columns that are no lists."""
    import csv
    import io

    from flows.text import printable_lines

    names = [name for name in rows.columns if name not in rows.lists]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows.dicts(names):
        cells = [row.get(name) for name in names]
        writer.writerow([printable_lines(cell) if isinstance(cell, str) else cell for cell in cells])
    return stream.getvalue()


@commands.command("show")
def show_(
    ctx: typer.Context,
    rollout_id: Annotated[str, typer.Argument(metavar="ROLLOUT_ID", help="As rounds rollouts lists it.")],
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run's name or directory; default: the latest.")
    ] = None,
    attempt: AttemptId = None,
    as_json: Json = False,
) -> None:
    """One rollout, token by token: logprob, reference logprob, KL, reward, value, advantage, return."""
    from flows.query import one_rollout
    from flows.runs import find_run

    found = one_rollout(find_run(ctx.obj, run), rollout_id, attempt)
    if as_json:
        print_json({**found.row, "tokens": found.tokens})
    else:
        from flows.terminal.rollout_views import rollout_view

        show(rollout_view(found))


@commands.command()
def replay(
    ctx: typer.Context,
    run: RunName = None,
    round: Annotated[int | None, typer.Option(metavar="R", help="Default: the latest.")] = None,
    iteration: Annotated[int | None, typer.Option(metavar="I", help="Default: the latest.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps; default: the run's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute scores, advantages and update again from what is stored, and say where they first differ."""
    from dataclasses import asdict

    from tasks import environment

    environment.quieten(hub=False)
    from flows.outcomes.replay import replay_iteration
    from flows.runs import find_run

    found = find_run(ctx.obj, run)
    with found.locked():
        replayed = replay_iteration(found, round=round, iteration=iteration, device=device, report=lambda *_: None)
    if as_json:
        print_json({"run": found.name, "stages": [asdict(stage) for stage in replayed]})
    else:
        from flows.terminal.rollout_views import replay_view

        show(replay_view(replayed))
    if any(stage.differences for stage in replayed):
        raise typer.Exit(FAILED)
