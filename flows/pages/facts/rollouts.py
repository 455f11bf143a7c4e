"""Rollouts, and the rows of any other data set: searched, sorted, counted, fifty at a time."""

import re
from typing import Any

from flows.addresses import page_path
from flows.pages.site import Asked, Site
from flows.query import (
    DataSet,
    Query,
    Rows,
    Selection,
    bounds,
    distribution,
    is_numeric,
    narrowed,
    parse,
    select,
    span,
    value_counts,
    with_order,
    with_value,
    without,
    written_terms,
)
from flows.query.tints import TINTS
from flows.runs import Run
from tasks.errors import ConfigError
from tasks.stages import STAGES

ROWS_OF_A_PAGE = 50
MOST_COUNTED = 50_000
"""Rows up to which the data's own columns, which are stored as JSON, are counted for facets."""
TEXTS = ("prompt", "response", "responses")
UNSHOWN = {
    *TEXTS, "messages", "extra", "rollout_id", "prompt_id", "preference_id", "policy_version", "sample_index",
    "run", "round", "iteration", "sampled_by", "treated_score", "final_value",
}  # fmt: skip
"""Columns that stand in no cell of their own: texts, names of rows and of places, and what only the arithmetic needs."""


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """The rows that a search finds."""
    run = site.run(asked.path["run"])
    name = asked.one_of("data", STAGES.data_sets, "rollouts")
    selection = select(
        run,
        name,
        rounds=span(asked.text("round") or None, option="round"),
        iterations=span(asked.text("iteration") or None, option="iteration"),
        attempt=asked.text("attempt") or None,
    )
    written = search_of(asked)
    search, query, found, mistake = searched(selection.data_set, written, asked.text("kept"))
    pages = 1 + max(0, found.found - 1) // ROWS_OF_A_PAGE
    try:
        number = asked.number("page", 1, low=1, high=pages)
    except ConfigError as error:
        number, mistake = 1, mistake or str(error)
    rows = found.sorted_by(query.order, number * ROWS_OF_A_PAGE)
    shown = rows.window((number - 1) * ROWS_OF_A_PAGE, number * ROWS_OF_A_PAGE)
    columns = columns_of(run, selection, found, search, query)
    return {
        "called": asked.path["run"],
        "data": name,
        "data_sets": data_sets_of(run),
        "written": written,
        "q": search,
        "mistake": mistake,
        "is_current": selection.is_current,
        "places": sorted({(part.place.round, part.place.iteration) for part in selection.parts}),
        "round": asked.text("round"),
        "iteration": asked.text("iteration"),
        "attempt": asked.text("attempt"),
        "opened": asked.text("open"),
        "tint": asked.one_of("tint", ("", *TINTS), ""),
        "found": found.found,
        "total": selection.data_set.num_rows,
        "page_number": number,
        "pages": pages,
        "columns": columns,
        "texts": [text for text in TEXTS if text in selection.data_set.columns or text in shown.lists],
        "rows": rows_of(shown, [column["name"] for column in columns]),
        "chips": [{"term": term, "without": without(search, term)} for term in written_terms(search)],
        "facets": facets_of(found, search),
        "neighbours": neighbours_of(run, asked.path["run"], selection, search, name),
    }


def search_of(asked: Asked) -> str:
    """The search that is asked for, with the range of a column that a histogram or the form of filters adds to it."""
    search, column = asked.text("q"), asked.text("column")
    return narrowed(search, column, asked.text("from"), asked.text("to")) if column else search


def searched(data_set: DataSet, *searches: str) -> tuple[str, Query, Rows, str]:
    """The first search that can be carried out, with the rows that it finds, and what is wrong with those before it: rows
    stay in view, so that a search can be mended while one looks at them."""
    mistake = ""
    for search in (*searches, ""):
        try:
            query = parse(search)
            found = data_set.matching(query)
            for order in query.order:
                data_set.require_column(order.column)
        except ConfigError as error:
            mistake = mistake or str(error)
        else:
            return search, query, found, mistake
    raise AssertionError("an empty search can be carried out")


def data_sets_of(run: Run) -> list[str]:
    """The data sets of which the run has any, but for the audit, whose columns stand beside those of the rollouts."""
    return [name for name in STAGES.data_sets if name != "audit" and has_data_set(run, name)]


def has_data_set(run: Run, name: str) -> bool:
    """Whether the first round has it: later ones have what the first has."""
    places = [
        f"stages/round-001/{iteration}{stage}/{shard}*/{name}"
        for stage in STAGES.with_data_set(name)
        for iteration in ("", "iteration-001/")
        for shard in ("", "shard-000/")
    ]
    return any(next(run.root.glob(place), None) is not None for place in places)


def columns_of(run: Run, selection: Selection, found: Rows, search: str, query: Query) -> list[dict[str, Any]]:
    """The columns that stand in cells, the scores first, each with how its values lie, the range to which the search narrows
    it, and the search that sorts by it."""
    data_set = selection.data_set
    names = [name for name in data_set.columns if name not in UNSHOWN and not is_own(selection, name)]
    names.sort(key=lambda name: (name != "score", not name.startswith("score_"), not name.startswith("held_out_")))
    # The one component of a score is the score itself, up to its weight.
    if len(run.config.rewards) == 1 and "score" in names:
        names = [name for name in names if name != f"score_{next(iter(run.config.rewards))}"]
    columns = []
    for name in names:
        numeric = is_numeric(data_set, name)
        lies = distribution(found, name) if numeric else None
        order = next((own for own in query.order if own.column == name), None)
        columns.append(
            {
                "name": name,
                "label": label_of(name),
                "is_numeric": numeric,
                "sorted": None if order is None else ("down" if order.largest_first else "up"),
                "sort": with_order(search, name, order),
                "range": bounds(query, name),
                "distribution": None
                if lies is None
                else {"low": lies.low, "high": lies.high, "all": lies.all, "found": lies.found},
            }
        )
    return columns


def is_own(selection: Selection, name: str) -> bool:
    """Whether a column is one of the user's data, which is a facet and no cell."""
    return not any(name in part.all_columns for part in selection.parts)


def label_of(name: str) -> str:
    words = {"kl_sum": "KL", "distinct_2": "distinct bigrams"}
    return words.get(name, re.sub(r"^(score|held_out)_", "", name).replace("_", " "))


def facets_of(found: Rows, search: str) -> list[dict[str, Any]]:
    """Columns of few values, each with the number of rows and the search that keeps those alone."""
    data_set = found.data_set
    names: list[str] = [
        name for name in ("sampled_by", "round", "iteration", "finish_reason") if name in data_set.columns
    ]
    if data_set.num_rows <= MOST_COUNTED:
        stored = {name for part in data_set.parts for name in part.all_columns}
        names += [name for name in data_set.columns if name not in stored and name not in names and name != "run"]
    facets = []
    for name in names:
        counts = value_counts(found, name)
        if counts is None or len(counts) < 2:
            continue
        is_number = is_numeric(data_set, name)
        counts = sorted(counts, key=lambda item: float(item[0])) if is_number else counts
        values = [
            {"value": value, "count": count, "q": with_value(search, name, value, is_number=is_number)}
            for value, count in counts
        ]
        facets += [{"name": name, "values": values}] if all(value["q"] is not None for value in values) else []
    return facets


def rows_of(shown: Rows, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of this page: their names, places, texts and cells."""
    names = [
        "rollout_id",
        "preference_id",
        "prompt_id",
        "prompt",
        "response",
        "responses",
        "ranks",
        "round",
        "iteration",
        "sampled_by",
    ]
    rows = shown.dicts([*dict.fromkeys([*names, *columns])])
    return [
        {
            "id": row.get("rollout_id") or row.get("preference_id") or row.get("prompt_id") or "",
            "is_rollout": row.get("rollout_id") is not None,
            "by": row.get("sampled_by"),
            "round": row.get("round"),
            "iteration": row.get("iteration"),
            "prompt": row.get("prompt"),
            "response": row.get("response"),
            "responses": row.get("responses"),
            "ranks": row.get("ranks"),
            "cells": {name: row.get(name) for name in columns},
        }
        for row in rows
    ]


def neighbours_of(run: Run, called: str, selection: Selection, search: str, name: str) -> dict[str, str | None]:
    """The addresses of the same search in the iterations before and after the one that is shown; none where several are."""
    here = {(part.place.round, part.place.iteration) for part in selection.parts}
    if len(here) != 1 or name != "rollouts":
        return {"previous": None, "next": None}
    ((round, iteration),) = here
    config = run.config
    places = [(r, i) for r in range(1, config.rounds + 1) for i in range(1, config.iterations + 1)]
    at = places.index((round, iteration)) if (round, iteration) in places else 0

    def address(position: int) -> str | None:
        if not 0 <= position < len(places):
            return None
        round, iteration = places[position]
        return page_path("runs", called, "rollouts", round=round, iteration=iteration, q=search)

    return {"previous": address(at - 1), "next": address(at + 1)}
