"""Rollouts in a terminal: a table of them, whole, one token by token, and what a replay found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.query import OneRollout, Rows, Selection
from flows.terminal.tables import Column, Table, View
from flows.text import number, printable
from tasks.store import HELD_OUT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tasks.worker.replay import Replayed

TITLES = {"rollout_id": "rollout", "preference_id": "preference", "finish_reason": "finish", "kl_sum": "KL"}
PLAIN_NUMBERS = ("margin", "kl_sum", "length", "prompt_length")
COMPONENT = 1
DROPPED = {"prompt": 5, "finish_reason": 4, "kl_sum": 3, "length": 2}
"""Columns that go first where a terminal is too narrow, then the components of a score."""


def replay_view(replayed: "Sequence[Replayed]") -> View:
    """Each stage that was made again: identical, or where it differs first."""
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
    table = Table(
        columns=[
            Column(title="stage"),
            Column(title="quantity"),
            Column(title="row", is_text=True, drop=1),
            Column(title="position", is_number=True, drop=2),
            Column(title="stored", is_number=True),
            Column(title="replayed", is_number=True),
            Column(title="largest", is_number=True, drop=3),
            Column(title="entries", is_number=True, drop=4),
        ]
    )
    for item in replayed:
        for found in item.differences:
            table.add_row(
                found.stage,
                printable(found.quantity),
                printable(found.row),
                "" if found.position is None else found.position,
                printable(found.stored, 24),
                printable(found.replayed, 24),
                "" if found.largest is None else f"{found.largest:.3g}",
                found.count,
            )
    parts: list[Table | RenderableType] = [Text(line) for line in lines]
    return View([*parts, Text(""), table] if table.rows else parts)


def shown_columns(rows: Rows) -> tuple[list[str], list[str]]:
    """The columns that are shown of rows: texts, then numbers; of rollouts their ids, scores, KL and length."""
    columns = rows.columns
    names = ("sampled_by", "rollout_id", "preference_id", *(() if "rollout_id" in columns else ("prompt_id",)))
    texts = [n for n in (*names, "prompt", "response", "responses", "finish_reason") if n in columns]
    components = [n for n in columns if n.startswith("score_")]
    # A single component is the score, but for its weight.
    components = components if len(components) > 1 else []
    held_out = [n for n in columns if n.startswith(HELD_OUT)]
    return texts, [n for n in ("score", *components, *held_out, *PLAIN_NUMBERS) if n in columns]


def title_of(name: str) -> str:
    return TITLES.get(name, name.removeprefix("score_").removeprefix(HELD_OUT))


def rows_table(rows: Rows) -> Table:
    """Texts as far as there is room for them, then numbers."""
    texts, numbers = shown_columns(rows)
    cut = ("prompt", "response", "responses")
    heads = [Column(title=title_of(n), is_text=n in cut, drop=DROPPED.get(n, 0)) for n in texts]
    heads += [
        # Stacked, so that more of them have room.
        Column(
            title=title_of(n).replace("_", "\n"),
            is_number=True,
            drop=DROPPED.get(n, COMPONENT if n.startswith("score_") else 0),
        )
        for n in numbers
    ]
    table = Table(columns=heads)
    for row in rows.dicts([*texts, *numbers]):
        cells = [printable(one_text(row.get(n))) for n in texts]
        table.add_row(*cells, *(_number(row.get(n)) for n in numbers))
    return table


def one_text(value: Any) -> str:
    """A text; the responses of a preference one after the other."""
    if isinstance(value, list):
        return " | ".join(map(str, value))
    return "" if value is None else str(value)


def wide_view(rows: Rows) -> View:
    """Each row whole: a line of its numbers, then its texts, the prompt dim, broken at the edge of the terminal."""
    from rich.text import Text

    texts, numbers = shown_columns(rows)
    heads = [n for n in texts if n not in ("prompt", "response", "responses")]
    parts: list[Table | RenderableType] = []
    for row in rows.dicts([*texts, *numbers]):
        told = [printable(row[n]) for n in heads if row.get(n) is not None]
        told += [f"{title_of(n)} {_number(row[n])}" for n in numbers if row.get(n) is not None]
        parts.append(Text("   ".join(told), style="bold"))
        if row.get("prompt") is not None:
            parts.append(Text(printable_block(row["prompt"]), style="dim"))
        answers = [row.get("response"), *(row.get("responses") or [])]
        parts += [*(Text(printable_block(answer)) for answer in answers if answer is not None), Text("")]
    return View(parts)


def printable_block(text: str) -> str:
    """A text on the lines that it has, without anything that acts on a terminal."""
    return "\n".join(map(printable, text.strip("\n").split("\n")))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value, 3)


def where_from(selection: Selection) -> str:
    """The places that rows come from."""
    places = sorted({(part.place.round, part.place.iteration) for part in selection.parts})
    (round, iteration), (last_round, last) = places[0], places[-1]
    if len(places) > 1:
        return f"round {round}, iteration {iteration} to round {last_round}, iteration {last}"
    return f"round {round}, iteration {iteration}" if iteration else f"round {round}"


def rollout_view(rollout: OneRollout) -> View:
    """The rollout's text and scores, then its tokens."""
    from rich.text import Text

    row = rollout.row
    scores = [name for name in row if name == "score" or name.startswith(("score_", HELD_OUT))]
    head = [
        f"prompt    {printable(row['prompt'])}",
        f"response  {printable(row['response'])}",
        f"finished  {row['finish_reason']}, {len(rollout.tokens)} tokens",
        *(f"{title_of(name):<9} {number(row[name], 4)}" for name in scores),
        "",
    ]
    columns = [name for name in rollout.tokens[0] if name not in ("token", "token_id")] if rollout.tokens else []
    # What is known of a token from the model that sampled it goes last.
    drops = {"id": 9, "sampling_logprob": 5, "ref_logprob": 3, "return": 4, "reward": 2, "value": 1}
    heads = [Column(title=name, is_number=True, drop=drops.get(name, 0)) for name in columns]
    ids = [Column(title="id", is_number=True, drop=drops["id"])]
    table = Table(columns=[Column(title="t", is_number=True), Column(title="token", is_text=True), *ids, *heads])
    for t, token in enumerate(rollout.tokens):
        text = printable(token["token"]).replace(" ", "␣")
        table.add_row(t, text, token["token_id"], *(number(token[name], 4) for name in columns))
    return View([*map(Text, head), table])
