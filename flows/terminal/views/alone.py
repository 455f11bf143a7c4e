"""Responses, scores of texts and an evaluation in a terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.terminal.tables import TIGHT, Column, Table, View, numbers
from flows.terminal.views.rollouts import printable_block, title_of
from flows.text import number, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.alone import Evaluation, Judged


def sample_view(rows: Sequence[Mapping[str, Any]], called: str, *, seed: int) -> View:
    """Each prompt once, dim, with the responses to it below; of one that was cut off, the last line says so."""
    from rich.text import Text

    parts: list[Table | RenderableType] = []
    for row in rows:
        if row["sample_index"] == 0:
            parts.append(Text(shown_prompt(row["prompt"]), style="dim"))
        cut = f"\n… (cut off after {len(row['response_token_ids'])} tokens)" if row["finish_reason"] == "length" else ""
        parts += [Text(printable_block(row["response"]) + cut), Text("")]
    parts.append(Text(f"{printable(called)}, seed {seed}", style="dim"))
    return View(parts)


def shown_prompt(prompt: str | Sequence[Mapping[str, Any]] | None) -> str:
    """A text as it is, a conversation turn by turn."""
    if prompt is None or isinstance(prompt, str):
        return printable_block(prompt or "")
    return "\n".join(f"{printable(turn.get('role'))}: {printable_block(said(turn))}" for turn in prompt)


def said(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def scores_table(judged: "Judged") -> Table:
    """A line for each text; components are left out where there is one alone."""
    # A single component is the score, but for its weight.
    names = [name for name in judged.scores if name == "score" or len(judged.scores) != 2]
    heads = [Column(title=title_of(name).replace("_", "\n"), is_number=True, drop=name != "score") for name in names]
    table = Table(
        columns=[Column(title="prompt", is_text=True, drop=2), Column(title="response", is_text=True), *heads]
    )
    for row in judged.rows():
        texts = (printable(shown_prompt(row["prompt"])), printable(row["response"]))
        table.add_row(*texts, *(number(row[name], 3) for name in names))
    return table


def evaluation_view(found: "Evaluation") -> View:
    """Both means with their standard errors, and the gain in standard deviations of the reference."""
    from rich.text import Text

    table = Table(
        columns=[Column(title=""), *numbers("model", "reference"), *numbers("gain (sd)")],
        gaps=TIGHT,
    )
    for line in found.lines:
        own = with_error(line.policy, line.policy_stderr, 3)
        theirs = with_error(line.reference, line.reference_stderr, 3)
        gain = "" if line.gain is None else with_error(line.gain, line.gain_stderr, 2)
        table.add_row(printable(line.name.replace("_", " ")), own, theirs, gain)
    table.add_row("KL, nats per response", with_error(found.kl, found.kl_stderr, 2), "", "")
    what = f"{printable(found.called)}, on {found.num_prompts} held-out prompts; ± is a standard error by prompts"
    return View([table, Text(""), Text(f"{what}{'; as its run has committed it' if found.is_reused else ''}")])


def with_error(value: float, stderr: float | None, digits: int) -> str:
    return number(value, digits) if stderr is None else f"{number(value, digits)} ± {number(stderr, digits)}"
