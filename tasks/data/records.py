"""What rows mean: the shapes that people's data has, as three canonical records.

``Preference`` trains the reward model, ``Prompt`` starts a rollout, ``Text`` is for the supervised warm-up. A prompt is
plain text, or a list of chat messages that ``tasks.text`` renders with the tokenizer's template. Null counts as absent,
because Parquet and `datasets` fill columns that a row does not have with it.

A text is never taken for something else without a word: what can be read in two ways is a bad row.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from tasks.data.bad_rows import BadRow, Findings, Row, refuse
from tasks.data.comparisons import PROMPT_NAMES, has_scores, is_true, number, ranks_of, rated_completions, two_answers
from tasks.data.conversations import (
    Messages,
    json_list,
    last_answer,
    messages_of,
    require_text,
    same_messages,
    unfolded,
)
from tasks.data.transcripts import PARTED, begins_with_turn, ends_with_answer, ends_with_opening, split
from tasks.errors import DataError, shorten

EQUAL = "chosen equal to rejected"
TIED = "all ranks tied"
ALONE = "labelled answers to a prompt without one of the other label"
MESSAGES = ("messages", "conversations", "conversation")
"""What people call a column of messages."""
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
LONG_PROMPT = 3
"""Words from which on a response that begins with the prompt is taken for a transcript rather than for a coincidence."""


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


Record = TypeVar("Record", Preference, Prompt, Text)


def to_preferences(rows: Iterable[Row], findings: Findings | None = None) -> tuple[list[Preference], dict[str, int]]:
    """Preferences of rows in any of these shapes, and how many rows were left out for which reason.

    - ``prompt, chosen, rejected`` and perhaps ``margin``: texts, or message lists (chosen and rejected one assistant
      message each, or the whole conversation);
    - ``chosen, rejected``: whole transcripts or conversations; what they share is the prompt (``tasks.data.transcripts``);
    - ``prompt, responses`` with ``ranks``, or with ``scores``, of which more is better; UltraFeedback's ``completions``;
    - ``prompt``, two answers such as ``answer_a, answer_b``, and which is better, such as ``winner``
      (``tasks.data.comparisons``);
    - ``prompt, completion, label``: the answers to one prompt, the good ones ranked before the bad ones.

    Rows that compare nothing are left out, because real data has some: equal chosen and rejected, all ranks tied,
    conversations that part before their last message, or a label without one of the other kind. Bad rows go into
    ``findings``; without it they are refused here.

    Raises:
        DataError: a column is missing or of the wrong type, a prompt or response is empty, a ranking has one response or
            not one rank for each, a row can be read in two ways, or every row was left out.
    """
    found = Findings() if findings is None else findings
    before = Counter(found.left_out)
    labelled: list[_Labelled] = []

    def convert(row: Row) -> Preference | str | None:
        if _has(row, "label") and not _has(row, "chosen") and (name := _answer_name(row)):
            labelled.append(_labelled(row, name))
            return None
        return _preference(row, found)

    preferences = _converted(rows, convert, found)
    preferences += _of_labels(labelled, found)
    dropped = dict(found.left_out - before)
    if dropped and not preferences and not found.num_bad:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
        raise DataError(f"no row compares two responses: {reasons}; give other preferences")
    if findings is None:
        found.require_no_bad_rows()
    return preferences, dropped


def to_prompts(rows: Iterable[Row], findings: Findings | None = None) -> list[Prompt]:
    """Prompts of rows with ``prompt`` (text or messages), or ``messages`` (or ShareGPT's ``conversations``), whose last
    assistant turn is left out.

    Raises:
        DataError: as ``to_preferences``; or a prompt ends with an assistant's turn; or a column has a name under which
            reward functions find the rollout's own value.
    """
    found = Findings() if findings is None else findings

    def convert(row: Row) -> Prompt:
        name = "prompt" if _has(row, "prompt") else _messages_name(row) or "prompt"
        prompt = _prompt(row) if name == "prompt" else _without_answer(row, name)
        extra = {column: value for column, value in row.values.items() if column != name and value is not None}
        if taken := sorted(TAKEN & extra.keys()):
            raise DataError(
                f"{row.place}: the column {taken[0]} has the name of what reward functions find in a rollout; give it "
                f"another one, as in columns: {{data_{taken[0]}: {taken[0]}}}"
            )
        return Prompt(prompt=prompt, extra=extra, place=row.place)

    prompts = _converted(rows, convert, found)
    if findings is None:
        found.require_no_bad_rows()
    return prompts


def to_texts(rows: Iterable[Row], findings: Findings | None = None) -> list[Text]:
    """Texts of rows with ``prompt, response`` (or ``completion``), ``messages`` that end with the answer, or ``text``.

    Raises:
        DataError: as ``to_preferences``; or ``messages`` is not a conversation that ends with an assistant's message.
    """
    found = Findings() if findings is None else findings
    texts = _converted(rows, _written, found)
    if findings is None:
        found.require_no_bad_rows()
    return texts


def _converted(
    rows: Iterable[Row], convert: Callable[[Row], "Record | str | None"], findings: Findings
) -> "list[Record]":
    """The records of rows; why a sound row gives none is counted."""
    records: list[Record] = []
    for row in rows:
        with findings.row():
            if row.unread is not None:
                raise row.unread
            record = convert(row)
            if isinstance(record, str):
                findings.left_out[record] += 1
            elif record is not None:
                records.append(record)
    return records


def _written(row: Row) -> Text:
    prompt: str | Messages | None = None
    answer, messages = _answer_name(row), _messages_name(row)
    if answer is not None:
        prompt, (response,) = _responses(row, _prompt(row), {answer: row.values[answer]})
    elif messages is not None:
        prompt = _without_answer(row, messages)
        response = last_answer(row, messages, messages_of(row, messages, row.values[messages]))
    else:
        value = unfolded(row, "text", _required(row, "text", "or prompt and response, or messages"))
        if not isinstance(value, str):
            return _written(Row(row.place, {"messages": value}))
        response = require_text(row, "text", value)
        if _has(row, "prompt") and not response.startswith(str(row.values["prompt"])):
            move = "name the one column response, or leave the other out"
            refuse(row, "text", value, "stands beside a prompt: does it answer it, or is it whole?", move)
    return Text(prompt=prompt, response=response, place=row.place)


def _preference(row: Row, findings: Findings) -> Preference | str:
    """The row's preference, or why it is none."""
    if _has(row, "responses") or _has(row, "ranks"):
        return _ranking(row)
    if _has(row, "chosen") and _has(row, "rejected"):
        return _pair(row, row.values["chosen"], row.values["rejected"], findings)
    if (rated := rated_completions(row)) is not None:
        prompt = _prompt(row, "instruction" if _has(row, "instruction") else "prompt")
        return _ranked(Row(row.place, {"scores": rated[1]}), prompt, rated[0], row)
    if (compared := two_answers(row)) is not None:
        answers, better = compared
        if better is None:
            return TIED
        chosen, rejected = answers.values() if better == 0 else reversed(answers.values())
        names = list(answers) if better == 0 else list(reversed(answers))
        return _pair(row, chosen, rejected, findings, names=(names[0], names[1]))
    _required(row, "chosen", "or responses and ranks, or answer_a, answer_b and winner")
    _required(row, "rejected")
    raise AssertionError("one of them is missing")


def _pair(
    row: Row, chosen: Any, rejected: Any, findings: Findings, names: tuple[str, str] = ("chosen", "rejected")
) -> Preference | str:
    """The row's preference, or why it is none."""
    better, worse = (unfolded(row, name, value) for name, value in zip(names, (chosen, rejected), strict=True))
    if isinstance(better, str) != isinstance(worse, str):
        problem = f"is a {type(worse).__name__} where {names[0]} is a {type(better).__name__}"
        refuse(row, names[1], rejected, problem, "give two texts or two message lists")
    prompt = _prompt_beside(row, names, better)
    if all(isinstance(value, str) and isinstance(json_list(value), list) for value in (prompt, better, worse)):
        move = "give the turns as messages, or a single turn as text"
        refuse(row, "prompt", prompt, "and its answers are lists as JSON text: turns of a conversation, or text?", move)
    template = None
    if prompt is None and isinstance(better, str):
        found, template = _split_texts(row, names, better, worse)
    elif prompt is None or (isinstance(prompt, str) and isinstance(better, list) and len(better) > 1):
        # A prompt in plain text may stand beside conversations that begin with it, as in UltraFeedback.
        found = _split_conversations(row, names, better, worse, prompt)
    else:
        found = _responses(row, prompt, {names[0]: better, names[1]: worse})
    if isinstance(found, str):
        return found
    prompt, responses = found
    if responses[0] == responses[1]:
        return EQUAL
    margin = _margin(row)
    if template is not None:
        findings.splits[template] += 1
    return Preference(prompt=prompt, responses=responses, ranks=[1, 2], margin=margin, place=row.place)


def _prompt_beside(row: Row, names: tuple[str, str], answer: Any) -> str | Messages | None:
    """The row's own prompt; None where the answers bring it."""
    if _has(row, "prompt"):
        return _prompt(row)
    others = [name for name in (PROMPT_NAMES[1:] if names[0] != "chosen" else MESSAGES) if _has(row, name)]
    if not others or (isinstance(answer, list) and len(answer) > 1):
        return None
    value = unfolded(row, others[0], row.values[others[0]])
    if isinstance(value, str) and others[0] in MESSAGES:
        messages_of(row, others[0], value)
    return _prompt(row, others[0])


def _ranking(row: Row) -> Preference | str:
    """The row's preference, or why it is none."""
    prompt = _prompt(row)
    responses = json_list(_required(row, "responses"))
    if not has_scores(row):
        _required(row, "ranks", "or scores, of which more is better")
    if not isinstance(responses, list):
        refuse(row, "responses", responses, f"is a {type(responses).__name__}", "give a list")
    return _ranked(row, prompt, responses, row)


def _ranked(ranking: Row, prompt: str | Messages, responses: list[Any], row: Row) -> Preference | str:
    if len(responses) < 2:
        refuse(row, "responses", responses, f"ranks {len(responses)} response", "give at least two, or remove the row")
    ranks = ranks_of(ranking, responses)
    prompt, texts = _responses(row, prompt, {f"responses[{i}]": value for i, value in enumerate(responses)})
    if len(set(ranks)) == 1:
        return TIED
    return Preference(prompt=prompt, responses=texts, ranks=ranks, place=row.place)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One answer with a label, as KTO has them."""

    prompt: str | Messages
    response: str
    is_good: bool
    place: str


def _labelled(row: Row, name: str) -> _Labelled:
    prompt, (response,) = _responses(row, _prompt(row), {name: row.values[name]})
    return _Labelled(prompt, response, is_true(row, "label"), row.place)


def _of_labels(labelled: list[_Labelled], findings: Findings) -> list[Preference]:
    """A preference for each prompt that has good and bad answers: all good ones tied before all bad ones, which train the
    same pairs as a row for each."""
    by_prompt: dict[str, list[_Labelled]] = {}
    for answer in labelled:
        by_prompt.setdefault(json.dumps(answer.prompt, sort_keys=True), []).append(answer)
    preferences = []
    for answers in by_prompt.values():
        sides = {
            is_good: dict.fromkeys(a.response for a in answers if a.is_good == is_good) for is_good in (True, False)
        }
        contrary = sides[True].keys() & sides[False].keys()
        good, bad = ([text for text in sides[is_good] if text not in contrary] for is_good in (True, False))
        used = {*good, *bad} if good and bad else set()
        for answer in answers:
            if answer.response not in used:
                findings.left_out[EQUAL if answer.response in contrary else ALONE] += 1
        if used:
            ranks = [1] * len(good) + [2] * len(bad)
            first = answers[0]
            preferences.append(Preference(prompt=first.prompt, responses=[*good, *bad], ranks=ranks, place=first.place))
    return preferences


def _split_texts(
    row: Row, names: tuple[str, str], chosen: str, rejected: str
) -> tuple[tuple[str | Messages, list[str]] | str, str | None]:
    """Prompt and responses of two transcripts, and by which template they were found; or why the row compares nothing."""
    require_text(row, names[0], chosen)
    require_text(row, names[1], rejected)
    if chosen == rejected:
        return EQUAL, None
    found = split(chosen, rejected)
    if found == PARTED:
        return PARTED, None
    if isinstance(found, str):
        move = f"add a column prompt, or name yours, columns: {{prompt: ITS_NAME}}, and leave it out of {names[0]}"
        # The words of this row are no reason to count by.
        place = f"{names[0]} is a transcript with {names[1]} and no prompt is given"
        raise BadRow(f"{row.place}: {place}: {found}; {move}", reason=f"{place}: where the answer begins is in doubt")
    for name, response in zip(names, found.answers, strict=True):
        if not response.strip():
            problem = f"has an empty response after the shared {shorten(found.prompt[-30:])}"
            refuse(row, name, row.values[name], problem, "remove or complete the row")
    return (found.prompt, found.answers), found.template.name


def _split_conversations(
    row: Row, names: tuple[str, str], chosen: Any, rejected: Any, prompt: str | Messages | None
) -> tuple[str | Messages, list[str]] | str:
    chosen, rejected = messages_of(row, names[0], chosen), messages_of(row, names[1], rejected)
    responses = [last_answer(row, names[0], chosen), last_answer(row, names[1], rejected)]
    if len(chosen) < 2 or len(rejected) < 2:
        refuse(row, names[0], chosen, "holds no message before the answer", "add a column prompt")
    if isinstance(prompt, str) and all(prompt.strip() != message["content"].strip() for message in chosen[:-1]):
        move = "leave one of them out"
        refuse(row, "prompt", prompt, f"is none of the messages of {names[0]}: which is the prompt?", move)
    if not same_messages(chosen[:-1], rejected[:-1]):
        return PARTED
    return chosen[:-1], responses


def _responses(row: Row, prompt: str | Messages, values: dict[str, Any]) -> tuple[str | Messages, list[str]]:
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


def _margin(row: Row) -> float | None:
    value = row.values.get("margin")
    if value is None or value == "":
        return None
    margin = number(value)
    if margin is None:
        refuse(row, "margin", value, "is not a finite number", "correct it or leave it empty")
    return margin


def _prompt(row: Row, name: str = "prompt") -> str | Messages:
    value = unfolded(row, name, _required(row, name, "or messages"))
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


def _without_answer(row: Row, name: str) -> Messages:
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


def _answer_name(row: Row) -> str | None:
    """The column of the answer to the row's prompt."""
    names = [name for name in ("response", "completion") if _has(row, name)]
    if len(names) > 1 and row.values[names[0]] != row.values[names[1]]:
        move = "leave one of them out, as with columns: {response: response, other: completion}"
        refuse(row, names[0], row.values[names[0]], f"stands beside another {names[1]}: which is the answer?", move)
    return names[0] if names else None


def _messages_name(row: Row) -> str | None:
    """The column that holds the row's conversation."""
    names = [name for name in MESSAGES if _has(row, name)]
    if len(names) > 1:
        first, second = (messages_of(row, name, row.values[name]) for name in names[:2])
        if not same_messages(first, second):
            refuse(row, names[0], row.values[names[0]], f"stands beside other {names[1]}", "leave one of them out")
    return names[0] if names else None


def _has(row: Row, name: str) -> bool:
    return row.values.get(name) is not None


def _required(row: Row, name: str, instead: str = "") -> Any:
    if _has(row, name):
        return row.values[name]
    return _lacks(row, name, instead)


def _lacks(row: Row, name: str, instead: str) -> NoReturn:
    if name in row.values:
        raise BadRow(f"{row.place}: {name} is null; remove or complete the row", reason=f"{name} is null")
    present = ", ".join(str(column) for column in row.values if column != name) or "none"
    problem = f"there is no column {name}{f' ({instead})' if instead else ''}; the other columns are {present}"
    move = f"to rename one, set columns: {{{name}: ITS_NAME}}"
    raise BadRow(f"{row.place}: {problem}; {move}", reason=f"there is no column {name}")
