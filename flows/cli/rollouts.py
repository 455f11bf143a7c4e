"""The command that looks at rollouts, and at the rows of any other data set."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import say
from flows.cli.completion import data_sets
from flows.cli.options import AttemptId, Json, RunName, print_json, show

if TYPE_CHECKING:
    from flows.query import DataSet, Query, Rows

commands = typer.Typer()
SEED = 0
"""By which ``--sample`` draws."""


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


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
    grep: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Rows whose prompt or response has this text, as it is.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="ID", help="All answers to one prompt, through all rounds and iterations.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Smallest first; -COLUMN puts the largest first.")
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: 10 in a table, else all.")] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="So many rows, drawn by a seed: the same each time.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Another data set: evaluation, preferences, prompts, audit, ...",
            autocompletion=data_sets,
        ),
    ] = "rollouts",
    wide: Annotated[bool, typer.Option("--wide", help="Whole texts, one row below the other.")] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="jsonl has every column, csv those that are no lists.")
    ] = (Format.table),
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rows with all columns to a Parquet file.")
    ] = None,
    url: Annotated[bool, typer.Option("--url", help="Print the address of the page that shows this.")] = False,
    attempt: AttemptId = None,
    as_json: Json = False,
) -> None:
    """Look at rollouts and their rewards: of one iteration, or of many."""
    from flows.query import select, span
    from flows.runs import find_run
    from flows.text import json_text

    found_run = find_run(ctx.obj, run)
    round, iteration = (place or ("all" if prompt is not None else None) for place in (round, iteration))
    if url:
        search = search_text(where, grep, prompt, sort)
        print(address(found_run.home, found_run.name, search, data, round, iteration, attempt))
        return
    found = select(
        found_run,
        data,
        rounds=span(round, option="--round"),
        iterations=span(iteration, option="--iteration"),
        attempt=attempt,
    )
    is_table = format_ is Format.table and not as_json and parquet is None
    top = top or (10 if is_table and sample is None else None)
    rows = searched(found.data_set, where, grep, prompt, sort, top, sample)
    if not found.is_current:
        say("note: the run's configuration or code changed since; these rollouts were made before that")
    if parquet is not None:
        rows.to_parquet(parquet)
        print(f"{parquet}: {len(rows):,} {data}")
    elif as_json:
        last = found.parts[-1]
        place = {"round": last.place.round, "iteration": last.place.iteration, "stage": last.stage}
        print_json({**place, "found": rows.found, data: rows.dicts()})
    elif format_ is Format.jsonl:
        for row in rows:
            print(json_text(row))
    elif format_ is Format.csv:
        print(as_csv(rows), end="")
    else:
        from flows.terminal.rollout_views import rows_table, where_from, wide_view

        show(wide_view(rows) if wide else rows_table(rows))
        by = "" if sample is None else f", drawn by seed {SEED}"
        print(f"{where_from(found)}: {len(rows)} of {rows.found:,} {data}{by}")


def searched(
    data_set: "DataSet",
    where: str | None,
    grep: str | None,
    prompt: str | None,
    sort: str | None,
    top: int | None,
    sample: int | None,
) -> "Rows":
    """What is searched for, by options that a mistake is told with."""
    from flows.query import Order, Query, Words, parse
    from tasks.errors import ConfigError

    order = [] if sort is None else [Order(column=sort.removeprefix("-"), largest_first=sort.startswith("-"))]
    own = [] if grep is None else [Words(text=grep)]
    own += [] if prompt is None else [Words(text=prompt, column="prompt_id")]
    try:
        for asked in order:
            data_set.require_column(asked.column)
    except ConfigError as error:
        raise ConfigError(f"--sort {error}") from error
    try:
        query = parse(where or "")
        query = Query(conditions=(*query.conditions, *own), order=(*order, *query.order))
        return found_by(data_set, query, top, sample)
    except ConfigError as error:
        raise ConfigError(f"--where {where}: {error}") from error


def found_by(data_set: "DataSet", query: "Query", top: int | None, sample: int | None) -> "Rows":
    if sample is None:
        return data_set.search(query, top=top)
    return data_set.matching(query).drawn(sample, SEED).sorted_by(query.order, top)


def search_text(where: str | None, grep: str | None, prompt: str | None, sort: str | None) -> str:
    """The options as one search."""
    from flows.query import quoted

    terms = [where or "", "" if grep is None else quoted(grep), "" if prompt is None else f"prompt_id:{quoted(prompt)}"]
    return " ".join(filter(None, [*terms, "" if sort is None else f"sort:{sort}"]))


def address(
    home: Path, run: str, search: str, data: str, round: str | None, iteration: str | None, attempt: str | None
) -> str:
    """Where the pages show what the options ask for."""
    from flows.addresses import base_address, page_path

    of_data = None if data == "rollouts" else data
    asked = {"data": of_data, "round": round, "iteration": iteration, "attempt": attempt, "q": search}
    return base_address(home) + page_path("runs", run, "rollouts", **asked)


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
