"""Prompts, answers and conversations in the columns of a row."""

from collections.abc import Mapping
from typing import Any, NoReturn

from tasks.data.bad_rows import BadRow, Row, refuse
from tasks.data.shapes.conversations import Messages, last_answer, messages_of, require_text, same_messages, unfolded
from tasks.data.shapes.transcripts import begins_with_turn, ends_with_answer, ends_with_opening
from tasks.errors import shorten

MESSAGES = ("messages", "conversations", "conversation")
"""What people call a column of messages."""
LONG_PROMPT = 3
"""Words from which on a response that begins with the prompt is taken for a transcript rather than for a coincidence."""


def has(row: Row, name: str) -> bool:
    return row.values.get(name) is not None


def required(row: Row, name: str, instead: str = "") -> Any:
    if has(row, name):
        return row.values[name]
    return _lacks(row, name, instead)


def _lacks(row: Row, name: str, instead: str) -> NoReturn:
    if name in row.values:
        raise BadRow(f"{row.place}: {name} is null; remove or complete the row", reason=f"{name} is null")
    present = ", ".join(str(column) for column in row.values if column != name) or "none"
    problem = f"there is no column {name}{f' ({instead})' if instead else ''}; the other columns are {present}"
    move = f"to rename one, set columns: {{{name}: ITS_NAME}}"
    raise BadRow(f"{row.place}: {problem}; {move}", reason=f"there is no column {name}")


def prompt_in(row: Row, name: str = "prompt") -> str | Messages:
    value = unfolded(row, name, required(row, name, "or messages"))
    if not isinstance(value, list | Mapping):
        text = require_text(row, name, value)
        if (answer := ends_with_answer(text)) is not None:
            move = "remove it, or give the conversation as messages"
            problem = f"ends with what an assistant says, {shorten(answer)}, which would stay in the prompt"
            refuse(row, name, text, problem, move)
        return text
    messages = messages_of(row, name, value)
    if messages[-1]["role"] == "assistant":
        refuse(row, name, value, "ends with an assistant's message", "remove it, or call the column messages")
    return _ending_in_order(row, name, messages)


def without_answer(row: Row, name: str) -> Messages:
    """The row's messages up to the last assistant turn, which goes if it stands at the end."""
    messages = messages_of(row, name, row.values[name])
    if messages[-1]["role"] != "assistant":
        return _ending_in_order(row, name, messages)
    if len(messages) == 1:
        refuse(row, name, messages, "holds only the assistant's message", "add the message that it answers")
    if messages[-2]["role"] == "assistant":
        refuse(row, name, messages, "ends with two messages of the assistant's", "make one of them")
    return messages[:-1]


def _ending_in_order(row: Row, name: str, messages: Messages) -> Messages:
    """A prompt's messages, whose last one is nobody's whose words may be the answer."""
    last = messages[-1]["role"]
    if last not in ("user", "system", "developer", "tool", "ipython"):
        move = "name the roles user, assistant, system and tool"
        refuse(row, name, messages, f"ends with a message of {last!r}, a role that nobody here knows", move)
    return messages


def answer_name(row: Row) -> str | None:
    """The column of the answer to the row's prompt."""
    names = [name for name in ("response", "completion") if has(row, name)]
    if len(names) > 1 and row.values[names[0]] != row.values[names[1]]:
        move = "leave one of them out, as with columns: {response: response, other: completion}"
        refuse(row, names[0], row.values[names[0]], f"stands beside another {names[1]}: which is the answer?", move)
    return names[0] if names else None


def messages_name(row: Row) -> str | None:
    """The column that holds the row's conversation."""
    names = [name for name in MESSAGES if has(row, name)]
    if len(names) > 1:
        first, second = (messages_of(row, name, row.values[name]) for name in names[:2])
        if not same_messages(first, second):
            refuse(row, names[0], row.values[names[0]], f"stands beside other {names[1]}", "leave one of them out")
    return names[0] if names else None


def responses_after(row: Row, prompt: str | Messages, values: dict[str, Any]) -> tuple[str | Messages, list[str]]:
    """The prompt, as messages where a response is one, and each response: text, one assistant message, or the
    conversation that begins with the prompt and ends with that message."""
    values = {name: unfolded(row, name, value) for name, value in values.items()}
    if isinstance(prompt, str):
        values = _without_prompt(row, prompt, values)
    if isinstance(prompt, str) and any(isinstance(value, list | Mapping) for value in values.values()):
        prompt = [{"role": "user", "content": prompt}]
    texts = []
    for name, value in values.items():
        if not isinstance(value, list | Mapping):
            texts.append(_response(row, name, value))
            continue
        messages = messages_of(row, name, value)
        if isinstance(prompt, list) and same_messages(messages[: len(prompt)], prompt):
            messages = messages[len(prompt) :]
        if len(messages) != 1:
            move = "give one assistant message, or the whole conversation that begins with the prompt"
            refuse(row, name, value, f"has {len(messages)} messages after the prompt", move)
        texts.append(last_answer(row, name, messages))
    return prompt, texts


def _response(row: Row, name: str, value: Any) -> str:
    text = require_text(row, name, value)
    if (opening := begins_with_turn(text)) is not None:
        move = "end the prompt with it, or take it away"
        problem = f"begins with {opening!r}, the opening of a turn: the prompt's, or part of the answer?"
        refuse(row, name, value, problem, move)
    return text


def _without_prompt(row: Row, prompt: str, values: dict[str, Any]) -> dict[str, Any]:
    """Responses that are transcripts which begin with the prompt again, without it."""
    if not all(isinstance(value, str) and value.startswith(prompt) for value in values.values()):
        return values
    if ends_with_opening(prompt):
        return {name: value[len(prompt) :] for name, value in values.items()}
    if len(prompt.split()) >= LONG_PROMPT:
        name, value = next(iter(values.items()))
        move = "take it away from the responses, or leave the prompt out where they are transcripts"
        refuse(row, name, value, "begins with the prompt: is it said twice, or the answer's own words?", move)
    return values
