"""What rows mean: the shapes that people's data has, as three canonical records.

``Preference`` trains the reward model, ``Prompt`` starts a rollout, ``Text`` is for the supervised warm-up. A prompt is
plain text, or a list of chat messages that ``tasks.text`` renders with the tokenizer's template. Null counts as absent,
because Parquet and `datasets` fill columns that a row does not have with it.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tasks.errors import DataError, shorten
from tasks.sources import Row

__all__ = ["Messages", "Preference", "Prompt", "Text", "split_transcripts", "to_preferences", "to_prompts", "to_texts"]

Messages = list[dict[str, Any]]
"""Chat messages, each with a ``role`` and ``content`` text; other keys pass through to the chat template."""

_EQUAL = "chosen equal to rejected"
_TIED = "all ranks tied"
_PARTED = "conversations that part before their last message"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Ranked responses to one prompt: 1 is best, equal ranks are ties; a pair is [chosen, rejected], ranked [1, 2]."""

    prompt: str | Messages
    responses: list[str]
    ranks: list[int]
    margin: float | None = None
    """By how much the first of a pair is better, where the data says so."""
    place: str


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


def to_preferences(rows: Iterable[Row]) -> tuple[list[Preference], dict[str, int]]:
    """Preferences of rows in any of these shapes, and how many rows were left out for which reason.

    - ``prompt, chosen, rejected`` and perhaps ``margin``: texts, or message lists (chosen and rejected one assistant
      message each, or the whole conversation);
    - ``chosen, rejected``: whole transcripts or conversations; what they share is the prompt (``split_transcripts``);
    - ``prompt, responses, ranks``.

    Rows that compare nothing are left out, because real data has some: equal chosen and rejected, all ranks tied, or
    conversations that part before their last message.

    Raises:
        DataError: a column is missing or of the wrong type, a prompt or response is empty, a ranking has one response
            or not one rank for each, or every row was left out.
    """
    preferences: list[Preference] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        found = _ranking(row) if _has(row, "responses") or _has(row, "ranks") else _pair(row)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            preferences.append(found)
    if dropped and not preferences:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
        raise DataError(f"no row compares two responses: {reasons}; the last is {row.place}; give other preferences")
    return preferences, dict(dropped)


def to_prompts(rows: Iterable[Row]) -> list[Prompt]:
    """Prompts of rows with ``prompt`` (text or messages), or ``messages``, whose last assistant turn is left out.

    Raises:
        DataError: as ``to_preferences``; or a prompt's messages end with an assistant's.
    """
    prompts = []
    for row in rows:
        name = "messages" if _has(row, "messages") and not _has(row, "prompt") else "prompt"
        prompt = _prompt(row) if name == "prompt" else _without_answer(row)
        extra = {column: value for column, value in row.values.items() if column != name}
        prompts.append(Prompt(prompt=prompt, extra=extra, place=row.place))
    return prompts


def to_texts(rows: Iterable[Row]) -> list[Text]:
    """Texts of rows with ``prompt, response`` (or ``completion``), ``messages`` that end with the answer, or ``text``.

    Raises:
        DataError: as ``to_preferences``; or ``messages`` is not a conversation that ends with an assistant's message.
    """
    texts = []
    for row in rows:
        prompt: str | Messages | None = None
        answer = next((name for name in ("response", "completion") if _has(row, name)), None)
        if answer is not None:
            prompt, (response,) = _responses(row, _prompt(row), {answer: row.values[answer]})
        elif _has(row, "messages"):
            prompt = _without_answer(row)
            response = _last_answer(row, "messages", _messages(row, "messages", row.values["messages"]))
        else:
            response = _text(row, "text", _required(row, "text", "or prompt and response, or messages"))
        texts.append(Text(prompt=prompt, response=response, place=row.place))
    return texts


def _without_answer(row: Row) -> Messages:
    """The row's ``messages`` up to the last assistant turn, which goes if it stands at the end."""
    messages = _messages(row, "messages", row.values["messages"])
    if messages[-1]["role"] != "assistant":
        return messages
    if len(messages) == 1:
        _refuse(row, "messages", messages, "holds only the assistant's message", "add the message that it answers")
    return messages[:-1]


# Where an assistant's turn begins in transcripts as people write them; the first that occurs decides, so that an
# "Answer:" inside a turn splits nothing. "\n\nAssistant:" is Anthropic HH, the tags are chat templates written out.
_ASSISTANT_TURNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"<\|im_start\|>assistant\n|<\|assistant\|>\n?",
        r"(?:^|\n)[ \t]*(?:\#+[ \t]*)?assistant[ \t]*:",
        r"(?:^|\n)[ \t]*(?:\#+[ \t]*)?(?:ai|bot|chatbot|agent|model|response|answer)[ \t]*:",
    )
)


def split_transcripts(first: str, second: str) -> tuple[str, str, str]:
    """``(prompt, response of first, response of second)``; each response begins where the two may first differ.

    That is after the last opening of an assistant's turn that both share, else at the last word boundary of the common
    prefix. White space there goes with the responses: ``prompt + response`` is the transcript, character for character.
    """
    shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        shared += 1
    for pattern in _ASSISTANT_TURNS:
        if turns := [turn.end() for turn in pattern.finditer(first, 0, shared)]:
            cut = turns[-1]
            break
    else:
        cut = shared
        if not all(text[shared : shared + 1].isspace() for text in (first, second)):
            while cut > 0 and not first[cut - 1].isspace():
                cut -= 1
        while cut > 0 and first[cut - 1].isspace():
            cut -= 1
    return first[:cut], first[cut:], second[cut:]


def _pair(row: Row) -> Preference | str:
    """The row's preference, or why it is none."""
    chosen, rejected = _required(row, "chosen", "or responses and ranks"), _required(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        problem = f"is a {type(rejected).__name__} where chosen is a {type(chosen).__name__}"
        _refuse(row, "rejected", rejected, problem, "give two texts or two message lists")
    prompt = _prompt(row) if _has(row, "prompt") else None
    if prompt is None and isinstance(chosen, str):
        found = _split_texts(row, chosen, rejected)
    # A prompt in plain text may stand beside conversations that begin with it, as in UltraFeedback.
    elif prompt is None or (isinstance(prompt, str) and isinstance(chosen, list) and len(chosen) > 1):
        found = _split_conversations(row, chosen, rejected)
    else:
        found = _responses(row, prompt, {"chosen": chosen, "rejected": rejected})
    if isinstance(found, str):
        return found
    prompt, responses = found
    if responses[0] == responses[1]:
        return _EQUAL
    return Preference(prompt=prompt, responses=responses, ranks=[1, 2], margin=_margin(row), place=row.place)


def _ranking(row: Row) -> Preference | str:
    """The row's preference, or why it is none."""
    prompt = _prompt(row)
    responses, ranks = _required(row, "responses"), _required(row, "ranks")
    for name, value in (("responses", responses), ("ranks", ranks)):
        if not isinstance(value, list):
            _refuse(row, name, value, f"is a {type(value).__name__}", "give a list")
    if len(responses) < 2:
        _refuse(row, "responses", responses, f"ranks {len(responses)} response", "give at least two, or remove the row")
    if len(ranks) != len(responses):
        _refuse(row, "ranks", ranks, f"has {len(ranks)} ranks for {len(responses)} responses", "give one for each")
    for rank in ranks:
        # 0 and below are refused because they are mostly scores, where more is better.
        if isinstance(rank, bool) or not isinstance(rank, int | float) or rank != rank // 1 or rank < 1:
            _refuse(row, "ranks", ranks, f"holds {rank!r}", "ranks are whole numbers from 1, the best; ties share one")
    prompt, texts = _responses(row, prompt, {f"responses[{i}]": value for i, value in enumerate(responses)})
    if len(set(ranks)) == 1:
        return _TIED
    return Preference(prompt=prompt, responses=texts, ranks=[int(rank) for rank in ranks], place=row.place)


def _split_texts(row: Row, chosen: str, rejected: str) -> tuple[str | Messages, list[str]] | str:
    _text(row, "chosen", chosen)
    _text(row, "rejected", rejected)
    if chosen == rejected:
        return _EQUAL
    prompt, *responses = split_transcripts(chosen, rejected)
    if not prompt.strip():
        problem = "has no beginning in common with rejected that could be the prompt"
        _refuse(row, "chosen", chosen, problem, "add a column prompt")
    for name, response in zip(("chosen", "rejected"), responses, strict=True):
        if not response.strip():
            problem = f"has an empty response after the shared {shorten(prompt[-30:])}"
            _refuse(row, name, row.values[name], problem, "remove or complete the row")
    return prompt, responses


def _split_conversations(row: Row, chosen: Any, rejected: Any) -> tuple[str | Messages, list[str]] | str:
    chosen, rejected = _messages(row, "chosen", chosen), _messages(row, "rejected", rejected)
    responses = [_last_answer(row, "chosen", chosen), _last_answer(row, "rejected", rejected)]
    if len(chosen) < 2 or len(rejected) < 2:
        _refuse(row, "chosen", chosen, "holds no message before the answer", "add a column prompt")
    if chosen[:-1] != rejected[:-1]:
        return _PARTED
    return chosen[:-1], responses


def _responses(row: Row, prompt: str | Messages, values: dict[str, Any]) -> tuple[str | Messages, list[str]]:
    """The prompt, as messages where a response is one, and each response: text, one assistant message, or the
    conversation that begins with the prompt and ends with that message."""
    if isinstance(prompt, str) and any(isinstance(value, list) for value in values.values()):
        prompt = [{"role": "user", "content": prompt}]
    texts = []
    for name, value in values.items():
        if not isinstance(value, list):
            texts.append(_text(row, name, value))
            continue
        messages = _messages(row, name, value)
        if isinstance(prompt, list) and messages[: len(prompt)] == prompt:
            messages = messages[len(prompt) :]
        if len(messages) != 1:
            move = "give one assistant message, or the whole conversation that begins with the prompt"
            _refuse(row, name, value, f"has {len(messages)} messages after the prompt", move)
        texts.append(_last_answer(row, name, messages))
    return prompt, texts


def _margin(row: Row) -> float | None:
    value = row.values.get("margin")
    if value is None or value == "":
        return None
    try:
        margin = math.nan if isinstance(value, bool) else float(value)  # CSV gives text
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        _refuse(row, "margin", value, "is not a finite number", "correct it or leave it empty")
    return margin


def _prompt(row: Row) -> str | Messages:
    value = _required(row, "prompt", "or messages")
    if not isinstance(value, list):
        return _text(row, "prompt", value)
    messages = _messages(row, "prompt", value)
    if messages[-1]["role"] == "assistant":
        _refuse(row, "prompt", value, "ends with an assistant's message", "remove it, or call the column messages")
    return messages


def _last_answer(row: Row, name: str, messages: Messages) -> str:
    if messages[-1]["role"] != "assistant":
        problem = f"ends with a message of {messages[-1]['role']!r}"
        _refuse(row, name, messages, problem, "end it with the assistant's")
    return _text(row, f"{name}[{len(messages) - 1}].content", messages[-1]["content"])


def _messages(row: Row, name: str, value: Any) -> Messages:
    if not isinstance(value, list):
        _refuse(row, name, value, f"is a {type(value).__name__}", "give a list of messages")
    if not value:
        _refuse(row, name, value, "holds no message", "remove or complete the row")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            move = 'give each message as {"role": ..., "content": ...} with texts'
            _refuse(row, f"{name}[{i}]", message, "is not a message", move)
        if message["role"] == "user":  # a system message, or a call of a tool, may well be empty
            _text(row, f"{name}[{i}].content", message["content"])
        messages.append({key: part for key, part in message.items() if part is not None})
    return messages


def _text(row: Row, name: str, value: Any) -> str:
    if not isinstance(value, str):
        _refuse(row, name, value, f"is a {type(value).__name__}", "give text")
    if not value.strip():
        _refuse(row, name, value, "is empty", "remove or complete the row")
    return value


def _has(row: Row, name: str) -> bool:
    return row.values.get(name) is not None


def _required(row: Row, name: str, instead: str = "") -> Any:
    if _has(row, name):
        return row.values[name]
    state = f"the column {name} is null" if name in row.values else f"there is no column {name}"
    present = ", ".join(str(column) for column in row.values if column != name) or "none"
    raise DataError(
        f"{row.place}: {state}{f' ({instead})' if instead else ''}; the other columns are {present}; "
        f"to rename one, set columns: {{{name}: ITS_NAME}}"
    )


def _refuse(row: Row, name: str, value: Any, problem: str, move: str) -> NoReturn:
    raise DataError(f"{row.place}: {name} {problem}: {shorten(value)}; {move}")
