"""Rollouts in a terminal: a table of them, one token by token, and what a replay found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.outcomes.frames import OneRollout, Rollouts
from flows.terminal.views import add_row, plain_table
from flows.text import number, printable
from tasks.store import HELD_OUT

if TYPE_CHECKING:
    import pandas as pd
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


def rollouts_table(rollouts: Rollouts, frame: "pd.DataFrame") -> "Table":
    """Prompt and response shortened, scores, KL and length."""
    # A single component is the score, but for its weight.
    components = rollouts.components if len(rollouts.components) > 1 else []
    held_out = [name for name in frame.columns if name.startswith(HELD_OUT)]
    columns = ("score", *(f"score_{name}" for name in components), *held_out, "kl_sum", "length")
    numbers = [name for name in columns if name in frame.columns]
    titles = {"kl_sum": "KL"}
    shown = [titles.get(name, name.removeprefix("score_").removeprefix(HELD_OUT)) for name in numbers]
    table = plain_table("rollout", "prompt", "response", "finish", *shown, right=shown)
    for row in frame.to_dict("records"):
        add_row(
            table,
            printable(row["rollout_id"]),
            printable(row["prompt"], PROMPT_WIDTH),
            printable(row["response"], RESPONSE_WIDTH),
            row["finish_reason"],
            *(f"{row[name]:,}" if name == "length" else number(row[name], 3) for name in numbers),
        )
    return table


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
