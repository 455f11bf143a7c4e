"""Rollouts in a terminal: a table of them, one token by token, and what a replay found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.query import OneRollout, Rows, Selection
from flows.terminal.tables import add_row, plain_table
from flows.text import number, printable, printable_lines
from tasks.store import HELD_OUT

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from tasks.worker.replay import Replayed

PROMPT_WIDTH, RESPONSE_WIDTH = 40, 60


def replay_view(replayed: "Sequence[Replayed]") -> "Group":
    """Each stage that was made again: identical, or where it differs first."""
    from rich.console import Group
    from rich.text import Text

    lines = [
        f"{item.stage}-{item.place}: "
        + (
            f"{len(item.differences)} of {item.quantities} quantities differ"
            if item.differences
            else f"identical, {item.quantities} metrics and files"
        )
        for item in replayed
    ]
    table = plain_table("stage", "quantity", "row", "position", "stored", "replayed", "largest", "entries")
    for item in replayed:
        for found in item.differences:
            add_row(
                table,
                found.stage,
                printable(found.quantity),
                printable(found.row, 40),
                "" if found.position is None else found.position,
                printable(found.stored, 24),
                printable(found.replayed, 24),
                "" if found.largest is None else f"{found.largest:.3g}",
                found.count,
            )
    parts: list[Any] = [Text(line) for line in lines]
    return Group(*parts, Text(""), table) if any(item.differences for item in replayed) else Group(*parts)


def rows_table(rows: Rows) -> "Table":
    """Texts shortened, then numbers; of rollouts their ids, scores, KL and length."""
    columns = rows.columns
    titles = {"rollout_id": "rollout", "preference_id": "preference", "finish_reason": "finish", "kl_sum": "KL"}
    names = ("sampled_by", "rollout_id", "preference_id", *(() if "rollout_id" in columns else ("prompt_id",)))
    texts = [n for n in (*names, "prompt", "response", "responses", "finish_reason") if n in columns]
    components = [n for n in columns if n.startswith("score_")]
    # A single component is the score, but for its weight.
    components = components if len(components) > 1 else []
    held_out = [n for n in columns if n.startswith(HELD_OUT)]
    numbers = [
        n for n in ("score", *components, *held_out, "margin", "kl_sum", "length", "prompt_length") if n in columns
    ]
    heads = [titles.get(n, n.removeprefix("score_").removeprefix(HELD_OUT)) for n in numbers]
    drops = ("distinct_2", "finish", "length", "KL", *reversed(heads[1:]), "prompt")
    table = plain_table(*(titles.get(n, n) for n in texts), *heads, right=heads, unfolded=("rollout",), drops=drops)
    widths = {"prompt": PROMPT_WIDTH, "response": RESPONSE_WIDTH, "responses": RESPONSE_WIDTH}
    for row in rows:
        cells = [printable(row.get(n) if row.get(n) is not None else "", widths.get(n)) for n in texts]
        add_row(table, *cells, *(_number(row.get(n)) for n in numbers))
    return table


def wide_view(rows: Rows) -> "Group":
    """Each row with its texts whole, the prompt dim, and its numbers on a line above them."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for row in rows:
        names = [
            n for n in row if n == "score" or n.startswith(("score_", HELD_OUT)) or n in ("kl_sum", "length", "margin")
        ]
        numbers = "  ".join(
            f"{n.removeprefix('score_').removeprefix(HELD_OUT)} {_number(row[n])}" for n in names if row[n] is not None
        )
        name = next((row[n] for n in ("rollout_id", "preference_id", "prompt_id") if row.get(n)), "")
        parts.append(Text(f"{printable(name)}  {numbers}", style="bold"))
        parts.append(Text(printable_lines(row.get("prompt") or ""), style="dim"))
        texts = [row["response"]] if row.get("response") is not None else row.get("responses") or []
        parts += [Text(printable_lines(text)) for text in texts]
        parts.append(Text(""))
    return Group(*parts)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value, 3)


def where_from(selection: Selection) -> str:
    """The places that rows come from."""
    places = sorted({(part.place.round, part.place.iteration) for part in selection.parts})
    (round, iteration), (last_round, last) = places[0], places[-1]
    if len(places) > 1:
        return f"round {round}, iteration {iteration} to round {last_round}, iteration {last}"
    return f"round {round}, iteration {iteration}" if iteration else f"round {round}"


def rollout_view(rollout: OneRollout) -> "Group":
    """The rollout's text and scores, then its tokens."""
    from rich.console import Group
    from rich.text import Text

    row = rollout.row
    scores = [name for name in row if name == "score" or name.startswith(("score_", HELD_OUT))]
    head = [
        f"prompt    {printable(row['prompt'])}",
        f"response  {printable(row['response'])}",
        f"finished  {row['finish_reason']}, {len(rollout.tokens)} tokens",
        *(f"{name.removeprefix('score_').removeprefix(HELD_OUT):<9} {number(row[name], 4)}" for name in scores),
        "",
    ]
    columns = [name for name in rollout.tokens[0] if name not in ("token", "token_id")] if rollout.tokens else []
    titles = ["t", "id", *columns]
    table = plain_table("t", "token", "id", *columns, right=titles)
    for t, token in enumerate(rollout.tokens):
        text = printable(token["token"]).replace(" ", "␣")
        add_row(table, t, text, token["token_id"], *(number(token[name], 4) for name in columns))
    return Group(*(Text(line) for line in head), table)
