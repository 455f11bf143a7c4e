"""Comparisons of answers in the shapes that data sets have, as responses with ranks.

Two answers and a verdict (Chatbot Arena, PKU-SafeRLHF, HelpSteer, SHP and whoever writes ``answer_a, answer_b, winner``),
scores instead of ranks (UltraFeedback), and single answers with labels (KTO).
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from tasks.data.bad_rows import Row, refuse
from tasks.data.shapes.conversations import json_list

Answers = dict[str, Any]
"""Values of responses by the names of their columns."""
STEMS = "answer|response|completion|output|conversation|human_ref|text|generation|candidate|reply"
_ANSWER = re.compile(rf"({STEMS})_?(a|b|0|1|2)", re.IGNORECASE)
ENDINGS = (("a", "b"), ("0", "1"), ("1", "2"))
PROMPT_NAMES = ("prompt", "messages", "conversations", "context", "history")
"""Where the prompt of two answers stands: of HelpSteer3 in ``context``, of SHP in ``history``."""
FIRST, SECOND, TIE = 0, 1, None
VERDICTS = ("winner", "better_response_id", "safer_response_id", "overall_preference", "preference_strength", "labels")
OTHER_VERDICTS = ("preference", "preferred", "chosen", "better", "label")
"""Columns that say which of two answers is better, where they say it in words."""
TIES = ("tie", "tie (bothbad)", "bothbad", "both bad", "both", "neither", "draw", "equal", "same")


def two_answers(row: Row) -> tuple[Answers, int | None] | None:
    """The two answers of a row and the position of the better one, None for a tie; None where it has no such columns.

    Raises:
        BadRow: there are two answers, but which one is better is missing or can be read in two ways.
    """
    found: dict[str, dict[str, str]] = {}
    for name in row.values:
        if (match := _ANSWER.fullmatch(name)) and row.values[name] is not None:
            found.setdefault(match[1].lower(), {})[match[2].lower()] = name
    pairs = [
        (ends, [names[end] for end in ends]) for names in found.values() for ends in ENDINGS if set(names) == set(ends)
    ]
    if not pairs:
        return None
    if len(pairs) > 1:
        names = " and ".join(", ".join(columns) for _, columns in pairs)
        refuse(row, "the row", row.values, f"holds two pairs of answers, {names}", "leave one pair out")
    ends, columns = pairs[0]
    return {name: row.values[name] for name in columns}, _verdict(row, ends, columns)


def _verdict(row: Row, ends: tuple[str, str], columns: list[str]) -> int | None:
    """Which answer won, by all columns that say so."""
    said: dict[str, int | None] = {}
    names = [name for name in (*VERDICTS, *OTHER_VERDICTS) if row.values.get(name) not in (None, "")]
    # A winner is what the user has named so, and other columns are about something else then.
    for name in names[:1] if "winner" in names else names:
        said[name] = _reading(row, name, ends, columns)
    for which in ("a", "b", "tie"):
        name = f"winner_model_{which}" if which != "tie" else "winner_tie"
        if number(row.values.get(name)) == 1:
            said[name] = {"a": FIRST, "b": SECOND, "tie": TIE}[which]
    if not said:
        move = (
            f"add a column winner of {columns[0]!r}, {columns[1]!r} or 'tie', or name it: columns: {{winner: ITS_NAME}}"
        )
        problem = f"stands beside {columns[1]}, but nothing says which is better"
        refuse(row, columns[0], row.values[columns[0]], problem, move)
    if len(set(said.values())) > 1:
        sides = ", but ".join(f"{name} says {'a tie' if side is TIE else columns[side]}" for name, side in said.items())
        chosen = next(iter(said))
        refuse(
            row, "the row", dict(said), f"has two verdicts: {sides}", f"choose one, as columns: {{winner: {chosen}}}"
        )
    return next(iter(said.values()))


def _reading(row: Row, name: str, ends: tuple[str, str], columns: list[str]) -> int | None:
    """The position of the answer that one column names."""
    value = row.values[name]
    amount = number(value)
    if name in ("overall_preference", "preference_strength") and amount is not None:
        # HelpSteer: from -3, the first is much better, to 3.
        return TIE if amount == 0 else FIRST if amount < 0 else SECOND
    if name == "labels" and columns[0].lower().startswith("human_ref") and amount in (0, 1):
        return FIRST if amount == 1 else SECOND  # SHP: 1 where A is preferred
    if amount is not None and not isinstance(value, bool):
        # A number is one of the two endings, or it can be read in two ways.
        if str(int(amount)) in ends and amount == int(amount):
            return ends.index(str(int(amount)))
        move = f"give {columns[0]!r}, {columns[1]!r} or 'tie'"
        if ends == ("a", "b"):
            problem = f"is a number, counted from 0 or from 1, and {columns[0]} and {columns[1]} have letters"
            refuse(row, name, value, problem, move)
        refuse(
            row, name, value, f"is neither {ends[0]} nor {ends[1]}, by which {columns[0]} and {columns[1]} end", move
        )
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TIES:
            return TIE
        for position, (end, column) in enumerate(zip(ends, columns, strict=True)):
            if re.fullmatch(rf"(?:{re.escape(column.lower())}|(?:model|assistant|{STEMS})?[_ ]?{end})", word):
                return position
        # Chatbot Arena's winner may be a model's name.
        models = [row.values.get(f"model_{end}") for end in ends]
        if value in models and models[0] != models[1]:
            return models.index(value)
        if word in ("first", "second"):
            return ("first", "second").index(word)
    move = f"give {columns[0]!r}, {columns[1]!r} or 'tie'"
    return refuse(row, name, value, f"names neither {columns[0]} nor {columns[1]}", move)


def has_scores(row: Row) -> bool:
    """Whether responses come with scores in place of ranks."""
    return row.values.get("scores") is not None and row.values.get("ranks") is None


def ranks_of(row: Row, responses: list[Any]) -> list[int]:
    """Ranks of a row's responses, 1 the best: its ``ranks``, else by its ``scores``, of which more is better.

    Raises:
        BadRow: they are no list with one whole number from 1, or one finite score, for each response; or ranks and scores
            contradict each other.
    """
    scores = _scores(row, responses) if row.values.get("scores") is not None else None
    if has_scores(row):
        assert scores is not None
        ordered = sorted(set(scores), reverse=True)
        return [1 + sum(scores.count(other) for other in ordered[: ordered.index(score)]) for score in scores]
    ranks = _one_each(row, "ranks", responses)
    for rank in ranks:
        # 0 and below are refused because they are mostly scores, where more is better.
        if isinstance(rank, bool) or not isinstance(rank, int | float) or rank != rank // 1 or rank < 1:
            refuse(row, "ranks", ranks, f"holds {rank!r}", "ranks are whole numbers from 1, the best; ties share one")
    if scores is not None and any(
        (ranks[i] - ranks[j]) * (scores[i] - scores[j]) > 0 for i in range(len(ranks)) for j in range(i)
    ):
        move = "1 is the best rank and the highest score the best; leave one of the columns out"
        refuse(row, "ranks", ranks, f"says the contrary of scores {scores}", move)
    return [int(rank) for rank in ranks]


def _scores(row: Row, responses: list[Any]) -> list[float]:
    scores = [number(score) for score in _one_each(row, "scores", responses)]
    for score in scores:
        if score is None:
            move = "give one number for each response"
            refuse(row, "scores", row.values["scores"], "holds what is no finite number", move)
    return [score for score in scores if score is not None]


def _one_each(row: Row, name: str, responses: list[Any]) -> list[Any]:
    values = json_list(row.values[name])
    if not isinstance(values, list):
        refuse(row, name, values, f"is a {type(values).__name__}", "give a list")
    if len(values) != len(responses):
        refuse(row, name, values, f"has {len(values)} {name} for {len(responses)} responses", "give one for each")
    return values


def rated_completions(row: Row) -> tuple[list[Any], list[float]] | None:
    """Responses and scores of UltraFeedback's ``completions``, each with a ``response`` and an ``overall_score``; None where
    the row has no such column."""
    completions = json_list(row.values.get("completions"))
    if not isinstance(completions, list) or not all(isinstance(c, Mapping) and "response" in c for c in completions):
        return None
    scores = [number(completion.get("overall_score")) for completion in completions]
    if any(score is None for score in scores):
        move = "give each completion an overall_score, or responses and scores in columns of their own"
        refuse(row, "completions", completions, "holds one without a number overall_score", move)
    return [completion["response"] for completion in completions], [score for score in scores if score is not None]


def is_true(row: Row, name: str) -> bool:
    """A label that says whether an answer is a good one.

    Raises:
        BadRow: it is neither true nor false, 1 nor 0.
    """
    value = row.values[name]
    word = json.dumps(value) if isinstance(value, bool | int | float) else str(value).strip().lower()
    if word in ("true", "1", "1.0"):
        return True
    if word in ("false", "0", "0.0"):
        return False
    return refuse(row, name, value, "is neither true nor false", "give true for a good answer, false for a bad one")


def number(value: Any) -> float | None:
    """A finite number, also as CSV has it, as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = float(value)
    except ValueError:
        return None
    return amount if math.isfinite(amount) else None
