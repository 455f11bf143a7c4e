"""What rows mean: the shapes that people's data has, as three canonical records.

``Preference`` trains the reward model, ``Prompt`` starts a rollout, ``Text`` is for the supervised warm-up. A prompt is
plain text, or a list of chat messages that ``tasks.text`` renders with the tokenizer's template. Null counts as absent,
because Parquet and `datasets` fill columns that a row does not have with it.

A text is never taken for something else without a word: what can be read in two ways is a bad row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from tasks.data.bad_rows import Findings, Row, refuse
from tasks.data.shapes.columns import (
    answer_name,
    has,
    messages_name,
    prompt_in,
    required,
    responses_after,
    without_answer,
)
from tasks.data.shapes.conversations import Messages, last_answer, messages_of, require_text, unfolded
from tasks.errors import DataError

TAKEN = frozenset(
    {
        "rollout_id",
        "prompt_id",
        "prompt_token_ids",
        "sample_index",
        "policy_version",
        "response",
        "response_token_ids",
        "finish_reason",
        "logprobs",
    }
)
"""Columns of a rollout: what a reward function finds under these names is the rollout's, so no column of the data can have
them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Ranked responses to one prompt: 1 is best, equal ranks are ties; a pair is [chosen, rejected], ranked [1, 2]."""

    prompt: str | Messages
    responses: list[str]
    ranks: list[int]
    margin: float | None = None
    """By how much the first of a pair is better, where the data says so."""
    place: str
    source: int = 0
    """Which of the sources of preferences it is from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt, and the row's other columns for reward functions."""

    prompt: str | Messages
    extra: dict[str, Any]
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to imitate: ``response`` after ``prompt``, or ``response`` alone where ``prompt`` is None."""

    prompt: str | Messages | None
    response: str
    place: str


Record = TypeVar("Record", Preference, Prompt, Text)


def converted(rows: Iterable[Row], convert: Callable[[Row], Record | str | None], findings: Findings) -> list[Record]:
    """The records of rows; why a sound row gives none is counted."""
    records: list[Record] = []
    for row in rows:
        with findings.row():
            if row.unread is not None:
                raise row.unread
            record = convert(row)
            if isinstance(record, str):
                findings.leave_out(row.place, record)
            elif record is not None:
                records.append(record)
    return records


def to_prompts(rows: Iterable[Row], findings: Findings | None = None) -> list[Prompt]:
    """Prompts of rows with ``prompt`` (text or messages), or ``messages`` (or ShareGPT's ``conversations``), whose last
    assistant turn is left out.

    Raises:
        DataError: as ``to_preferences``; or a prompt ends with an assistant's turn; or a column has a name under which
            reward functions find the rollout's own value.
    """
    found = Findings() if findings is None else findings

    def convert(row: Row) -> Prompt:
        name = "prompt" if has(row, "prompt") else messages_name(row) or "prompt"
        prompt = prompt_in(row) if name == "prompt" else without_answer(row, name)
        extra = {column: value for column, value in row.values.items() if column != name and value is not None}
        if taken := sorted(TAKEN & extra.keys()):
            raise DataError(
                f"{row.place}: the column {taken[0]} has the name of what reward functions find in a rollout; give it "
                f"another one, as in columns: {{data_{taken[0]}: {taken[0]}}}"
            )
        return Prompt(prompt=prompt, extra=extra, place=row.place)

    prompts = converted(rows, convert, found)
    if findings is None:
        found.require_no_bad_rows()
    return prompts


def to_texts(rows: Iterable[Row], findings: Findings | None = None) -> list[Text]:
    """Texts of rows with ``prompt, response`` (or ``completion``), ``messages`` that end with the answer, or ``text``.

    Raises:
        DataError: as ``to_preferences``; or ``messages`` is not a conversation that ends with an assistant's message.
    """
    found = Findings() if findings is None else findings
    texts = converted(rows, _written, found)
    if findings is None:
        found.require_no_bad_rows()
    return texts


def _written(row: Row) -> Text:
    prompt: str | Messages | None = None
    answer, messages = answer_name(row), messages_name(row)
    if answer is not None:
        prompt, (response,) = responses_after(row, prompt_in(row), {answer: row.values[answer]})
    elif messages is not None:
        prompt = without_answer(row, messages)
        response = last_answer(row, messages, messages_of(row, messages, row.values[messages]))
    else:
        value = unfolded(row, "text", required(row, "text", "or prompt and response, or messages"))
        if not isinstance(value, str):
            return _written(Row(row.place, {"messages": value}))
        response = require_text(row, "text", value)
        if has(row, "prompt") and not response.startswith(str(row.values["prompt"])):
            move = "name the one column response, or leave the other out"
            refuse(row, "text", value, "stands beside a prompt: does it answer it, or is it whole?", move)
    return Text(prompt=prompt, response=response, place=row.place)
