"""Commands that look at rows: rollouts, show."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import say
from flows.cli.completion import data_sets
from flows.cli.options import AttemptId, Json, RunName, print_json, show

if TYPE_CHECKING:
    from flows.query import DataSet, Query, Rows, Selection

commands = typer.Typer()
IN_A_TABLE, OF_A_PROMPT = 10, 50
"""Rows that a table shows where nobody says how many."""


class Format(StrEnum):
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


Rounds = Annotated[str | None, typer.Option(metavar="R", help="A round, 2-4, or all; default: the latest.")]
Iterations = Annotated[str | None, typer.Option(metavar="I", help="An iteration, 2-4, or all; default: the latest.")]
Where = Annotated[
    str | None, typer.Option(metavar="SEARCH", help='Such as: lamp -"red lamp" score<0 finish_reason:stop sort:-length')
]
Grep = Annotated[str | None, typer.Option(metavar="TEXT", help="Rows whose texts hold these words as they are.")]
Prompt = Annotated[
    str | None,
    typer.Option(metavar="ID", help="The responses to one prompt, by its prompt_id, through all iterations."),
]
Sort = Annotated[str | None, typer.Option(metavar="COLUMN", help="Smallest first; -COLUMN puts the largest first.")]
Sample = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="So many rows drawn at random, the same ones each time.")
]
Top = Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: 10 in a table, else all.")]
Data = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Another data set: evaluation, preferences, prompts, audit, ...", autocompletion=data_sets
    ),
]
Wide = Annotated[bool, typer.Option("--wide", help="Whole texts below their numbers, instead of a table.")]
Form = Annotated[Format, typer.Option("--format", help="jsonl has every column, csv those that are no lists.")]
Parquet = Annotated[Path | None, typer.Option(metavar="FILE", help="Write every column to a new Parquet file.")]
Url = Annotated[bool, typer.Option("--url", help="Print the address of the page that shows these rows.")]


@commands.command()
def rollouts(
    ctx: typer.Context,
    run: RunName = None,
    round: Rounds = None,
    iteration: Iterations = None,
    where: Where = None,
    grep: Grep = None,
    prompt: Prompt = None,
    sort: Sort = None,
    sample: Sample = None,
    top: Top = None,
    data: Data = "rollouts",
    wide: Wide = False,
    format_: Form = Format.table,
    parquet: Parquet = None,
    url: Url = False,
    attempt: AttemptId = None,
    as_json: Json = False,
) -> None:
    """Look at rollouts and their rewards: of one iteration, or of many."""
    from flows.query import select, span
    from flows.runs import find_run
    from flows.text import json_text

    own = find_run(ctx.obj, run)
    if prompt is not None and attempt is None:
        round, iteration = round or "all", iteration or "all"
    query = query_of(where, grep, prompt, sort)
    if url:
        places = {"round": round, "iteration": iteration, "attempt": attempt}
        print(address_of(own.home, own.name, query, {**places, "data": None if data == "rollouts" else data}))
        return
    rounds, iterations = span(round, option="--round"), span(iteration, option="--iteration")
    found = select(own, data, rounds=rounds, iterations=iterations, attempt=attempt)
    is_table = format_ is Format.table and not as_json and parquet is None
    few = OF_A_PROMPT if prompt is not None else IN_A_TABLE
    rows = searched(found.data_set, query, where, sort, sample, top or (few if is_table and sample is None else None))
    if not found.is_current:
        say("note: the run's configuration or code changed since; these rollouts were made before that")
    if parquet is not None:
        from flows.query.parquet import write_parquet

        print(f"{write_parquet(rows, parquet)}: {len(rows):,} {data}")
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
        show_rows(found, rows, data, wide=wide, sample=sample)


def show_rows(found: "Selection", rows: "Rows", data: str, *, wide: bool, sample: int | None) -> None:
    """A table, or whole texts, and where the rows are from."""
    from flows.query import SEED_OF_SAMPLES
    from flows.terminal.views.rollouts import rows_table, where_from, wide_view

    show(wide_view(rows) if wide else rows_table(rows))
    drawn = f", drawn with seed {SEED_OF_SAMPLES}" if sample is not None else ""
    print(f"{where_from(found)}: {len(rows)} of {rows.found:,} {data}{drawn}")


def query_of(where: str | None, grep: str | None, prompt: str | None, sort: str | None) -> "Query":
    """All that is asked for, as one search."""
    from flows.query import Order, Query, Words, parse
    from tasks.errors import ConfigError

    order = [] if sort is None else [Order(column=sort.removeprefix("-"), largest_first=sort.startswith("-"))]
    try:
        query = parse(where or "")
    except ConfigError as error:
        raise ConfigError(f"--where {where}: {error}") from error
    words = [] if grep is None else [Words(text=grep)]
    words += [] if prompt is None else [Words(text=prompt, column="prompt_id")]
    return Query(conditions=(*words, *query.conditions), order=(*order, *query.order))


def searched(
    data_set: "DataSet", query: "Query", where: str | None, sort: str | None, sample: int | None, top: int | None
) -> "Rows":
    """What is searched for, by options that a mistake is told with."""
    from flows.query import SEED_OF_SAMPLES
    from tasks.errors import ConfigError

    try:
        if sort is not None:
            data_set.require_column(sort.removeprefix("-"))
    except ConfigError as error:
        raise ConfigError(f"--sort {error}") from error
    try:
        rows = data_set.matching(query)
        return (rows if sample is None else rows.drawn(sample, SEED_OF_SAMPLES)).sorted_by(query.order, top)
    except ConfigError as error:
        raise ConfigError(f"--where {where}: {error}") from error


def address_of(home: Path, run: str, query: "Query", places: "dict[str, str | None]") -> str:
    """The page that shows the rows of a search."""
    from flows.addresses import base_address, page_path
    from flows.query import written

    return base_address(home) + page_path("runs", run, "rollouts", **places, q=written(query))


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
        from flows.terminal.views.rollouts import rollout_view

        show(rollout_view(found))
