"""Preferences in the shapes that people's data has: pairs, transcripts, rankings, ratings, verdicts, labels."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tasks.data.bad_rows import BadRow, Findings, Row, refuse
from tasks.data.shapes.columns import MESSAGES, answer_name, has, prompt_in, required, responses_after
from tasks.data.shapes.comparisons import (
    PROMPT_NAMES,
    has_scores,
    is_true,
    number,
    ranks_of,
    rated_completions,
    two_answers,
)
from tasks.data.shapes.conversations import (
    Messages,
    json_list,
    last_answer,
    messages_of,
    require_text,
    same_messages,
    unfolded,
)
from tasks.data.shapes.records import Preference, converted
from tasks.data.shapes.transcripts import PARTED, split
from tasks.errors import DataError, shorten

EQUAL = "chosen equal to rejected"
TIED = "all ranks tied"
ALONE = "labelled answers to a prompt without one of the other label"


def to_preferences(rows: Iterable[Row], findings: Findings | None = None) -> tuple[list[Preference], dict[str, int]]:
    """Preferences of rows in any of these shapes, and how many rows were left out for which reason.

    - ``prompt, chosen, rejected`` and perhaps ``margin``: texts, or message lists (chosen and rejected one assistant
      message each, or the whole conversation);
    - ``chosen, rejected``: whole transcripts or conversations; what they share is the prompt;
    - ``prompt, responses`` with ``ranks``, or with ``scores``, of which more is better; UltraFeedback's ``completions``;
    - ``prompt``, two answers such as ``answer_a, answer_b``, and which is better, such as ``winner``
      (``tasks.data.shapes.comparisons``);
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
        if has(row, "label") and not has(row, "chosen") and (name := answer_name(row)):
            labelled.append(_labelled(row, name))
            return None
        return _preference(row, found)

    preferences = converted(rows, convert, found)
    preferences += _of_labels(labelled, found)
    dropped = dict(found.left_out - before)
    if dropped and not preferences and not found.num_bad:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
        raise DataError(f"no row compares two responses: {reasons}; give other preferences")
    if findings is None:
        found.require_no_bad_rows()
    return preferences, dropped


def _preference(row: Row, findings: Findings) -> Preference | str:
    """The row's preference, or why it is none."""
    if has(row, "responses") or has(row, "ranks"):
        return _ranking(row)
    if has(row, "chosen") and has(row, "rejected"):
        return _pair(row, row.values["chosen"], row.values["rejected"], findings)
    if (rated := rated_completions(row)) is not None:
        prompt = prompt_in(row, "instruction" if has(row, "instruction") else "prompt")
        return _ranked(Row(row.place, {"scores": rated[1]}), prompt, rated[0], row)
    if (compared := two_answers(row)) is not None:
        answers, better = compared
        if better is None:
            return TIED
        chosen, rejected = answers.values() if better == 0 else reversed(answers.values())
        names = list(answers) if better == 0 else list(reversed(answers))
        return _pair(row, chosen, rejected, findings, names=(names[0], names[1]))
    required(row, "chosen", "or responses and ranks, or answer_a, answer_b and winner")
    required(row, "rejected")
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
        found = responses_after(row, prompt, {names[0]: better, names[1]: worse})
    if isinstance(found, str):
        return found
    prompt, responses = found
    if responses[0] == responses[1]:
        return EQUAL
    margin = _margin(row)
    if template is not None:
        findings.splits[template] += 1
    return Preference(
        prompt=prompt, responses=responses, ranks=[1, 2], margin=margin, place=row.place, source=row.source
    )


def _prompt_beside(row: Row, names: tuple[str, str], answer: Any) -> str | Messages | None:
    """The row's own prompt; None where the answers bring it."""
    if has(row, "prompt"):
        return prompt_in(row)
    others = [name for name in (PROMPT_NAMES[1:] if names[0] != "chosen" else MESSAGES) if has(row, name)]
    if not others or (isinstance(answer, list) and len(answer) > 1):
        return None
    value = unfolded(row, others[0], row.values[others[0]])
    if isinstance(value, str) and others[0] in MESSAGES:
        messages_of(row, others[0], value)
    return prompt_in(row, others[0])


def _ranking(row: Row) -> Preference | str:
    """The row's preference, or why it is none."""
    prompt = prompt_in(row)
    responses = json_list(required(row, "responses"))
    if not has_scores(row):
        required(row, "ranks", "or scores, of which more is better")
    if not isinstance(responses, list):
        refuse(row, "responses", responses, f"is a {type(responses).__name__}", "give a list")
    return _ranked(row, prompt, responses, row)


def _ranked(ranking: Row, prompt: str | Messages, responses: list[Any], row: Row) -> Preference | str:
    if len(responses) < 2:
        refuse(row, "responses", responses, f"ranks {len(responses)} response", "give at least two, or remove the row")
    ranks = ranks_of(ranking, responses)
    prompt, texts = responses_after(row, prompt, {f"responses[{i}]": value for i, value in enumerate(responses)})
    if len(set(ranks)) == 1:
        return TIED
    return Preference(prompt=prompt, responses=texts, ranks=ranks, place=row.place, source=row.source)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One answer with a label, as KTO has them."""

    prompt: str | Messages
    response: str
    is_good: bool
    row: Row


def _labelled(row: Row, name: str) -> _Labelled:
    prompt, (response,) = responses_after(row, prompt_in(row), {name: row.values[name]})
    return _Labelled(prompt, response, is_true(row, "label"), row)


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
                findings.leave_out(answer.row.place, EQUAL if answer.response in contrary else ALONE)
        if used:
            ranks = [1] * len(good) + [2] * len(bad)
            first = answers[0]
            preferences.append(
                Preference(
                    prompt=first.prompt,
                    responses=[*good, *bad],
                    ranks=ranks,
                    place=first.row.place,
                    source=first.row.source,
                )
            )
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


def _margin(row: Row) -> float | None:
    value = row.values.get("margin")
    if value is None or value == "":
        return None
    margin = number(value)
    if margin is None:
        refuse(row, "margin", value, "is not a finite number", "correct it or leave it empty")
    return margin
