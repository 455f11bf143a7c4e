"""Two places of one run or of two, prompt by prompt: what rose, and whether what training never sees rose with it."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flows.analysis.differences import differing_settings
from flows.query import Query, Rows, Span, Words, means_by, select
from flows.runs import Run
from tasks.errors import ConfigError, RunError

HELD_OUT, COMPONENT = "held_out_", "score_"
MOST_WORDS = 2000
"""Of a response, up to which words are compared: the time for it grows with their square."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two places."""

    run: Run
    round: int
    iteration: int
    """0 is the round's evaluation, on prompts that are held out."""
    rows: Rows

    @property
    def name(self) -> str:
        where = f"iteration {self.iteration}" if self.iteration else "evaluation"
        return f"{self.run.name}, round {self.round}, {where}"

    @property
    def place(self) -> str:
        """As ``side_of`` reads it."""
        return f"{self.run.name}:{self.round}" + (f".{self.iteration}" if self.iteration else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A prompt that both sides have answered; values are means over a side's responses to it."""

    prompt_id: str
    score: tuple[float, float]
    length: tuple[float, float]
    held_out: dict[str, tuple[float, float]]

    @property
    def score_change(self) -> float:
        return self.score[1] - self.score[0]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "score_change": self.score_change}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides joined by prompt."""

    sides: tuple[Side, Side]
    rows: list[Row]
    """The most doubtful first: the score rose, and the held-out rewards fell."""
    held_out: list[str]
    num_prompts: tuple[int, int]
    """Of each side; those that the other does not have are left out."""
    settings: list[tuple[str, Any, Any]]

    def summary(self) -> list[dict[str, Any]]:
        """Each number on both sides, its mean change over the prompts that both have, and the standard error of that."""
        return [self._summary_of(name) for name in ("score", "length", *self.held_out)]

    def _summary_of(self, name: str) -> dict[str, Any]:
        pairs = [row.held_out[name] if name in row.held_out else getattr(row, name) for row in self.rows]
        values = np.array(pairs, dtype=np.float64)
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return {"name": name, "a": None, "b": None, "change": None, "stderr": None}
        changes = values[:, 1] - values[:, 0]
        stderr = float(changes.std(ddof=1) / np.sqrt(len(changes))) if len(changes) > 1 else None
        a, b = values.mean(axis=0).tolist()
        return {"name": name, "a": a, "b": b, "change": float(changes.mean()), "stderr": stderr}


def side_of(text: str, find: Callable[[str | None], Run]) -> Side:
    """A place by what it is called: ``RUN``, ``RUN:ROUND``, ``RUN:ROUND.ITERATION``, or ``ROUND.ITERATION`` of the latest.

    Without an iteration, it is the evaluation of the round, by default of the last one.

    Raises:
        ConfigError: it cannot be read.
        RunError: there is no such run, or it has no such rollouts.
    """
    alone = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
    name, _, place = (None, "", text) if alone else text.partition(":")
    match = re.fullmatch(r"(?:(\d{1,9})(?:\.(\d{1,9}))?)?", place)
    if match is None or name == "":
        raise ConfigError(f"{text}: not a place; write RUN, RUN:ROUND, RUN:ROUND.ITERATION, or ROUND.ITERATION")
    run = find(name)
    round = Span() if match[1] is None else Span(int(match[1]), int(match[1]))
    if match[2] is not None:
        selection = select(run, rounds=round, iterations=Span(int(match[2]), int(match[2])))
        rows = selection.data_set.search()
    else:
        selection = select(run, "evaluation", rounds=round)
        rows = selection.data_set.search(Query(conditions=(Words(text="policy", column="sampled_by"),)))
    at = selection.parts[-1].place
    return Side(run=run, round=at.round, iteration=at.iteration, rows=rows)


def compared(a: Side, b: Side) -> Comparison:
    """Both sides, joined by prompt.

    Raises:
        RunError: they have no prompt in common.
    """
    names = [name for name in held_out_of(a) if name in held_out_of(b)]
    columns = ["score", "length"]
    (ids_a, means_a), (ids_b, means_b) = (
        means_by(side.rows, "prompt_id", [*columns, *(column_of(side, name) for name in names)]) for side in (a, b)
    )
    at_b = {prompt_id: i for i, prompt_id in enumerate(ids_b)}
    both = [(i, at_b[prompt_id]) for i, prompt_id in enumerate(ids_a) if prompt_id in at_b]
    if not both:
        raise RunError(
            f"{a.place} and {b.place} have no prompt in common; compare evaluations (RUN:ROUND), which all have the same"
        )

    def pair(name_a: str, name_b: str, i: int, j: int) -> tuple[float, float]:
        return float(means_a[name_a][i]), float(means_b[name_b][j])

    rows = [
        Row(
            prompt_id=ids_a[i],
            score=pair("score", "score", i, j),
            length=pair("length", "length", i, j),
            held_out={name: pair(column_of(a, name), column_of(b, name), i, j) for name in names},
        )
        for i, j in both
    ]
    return Comparison(
        sides=(a, b),
        rows=[rows[i] for i in doubtful_first(rows)],
        held_out=names,
        num_prompts=(len(ids_a), len(ids_b)),
        settings=[] if a.run.root == b.run.root else differing_settings(a.run.config, b.run.config),
    )


def held_out_of(side: Side) -> list[str]:
    """The held-out rewards that a side's rows have."""
    columns = side.rows.data_set.columns
    return [n for n in side.run.config.evaluation.held_out_rewards if {HELD_OUT + n, COMPONENT + n} & set(columns)]


def column_of(side: Side, name: str) -> str:
    """A held-out reward's column: beside an iteration's rollouts it is the audit's, in an evaluation its own."""
    return HELD_OUT + name if side.iteration else COMPONENT + name


def doubtful_first(rows: Sequence[Row]) -> list[int]:
    """By how far the score rose above the held-out rewards, each in standard deviations of its changes."""
    changes = [np.array([row.score_change for row in rows])]
    changes += [np.array([row.held_out[n][1] - row.held_out[n][0] for row in rows]) for n in rows[0].held_out]
    scaled = [np.nan_to_num(own / (np.nanstd(own) or 1.0)) for own in changes]
    doubt = scaled[0] - np.mean(scaled[1:], axis=0) if len(scaled) > 1 else scaled[0]
    order: list[int] = np.argsort(-doubt, kind="stable").tolist()
    return order


def responses_of(side: Side, prompt_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One response of a side to each of some prompts: the first."""
    names = ["rollout_id", "prompt_id", "prompt", "response", "score", "sampled_by"]
    wanted = set(prompt_ids)
    found: dict[str, dict[str, Any]] = {}
    ids = side.rows.table(["prompt_id"]).column("prompt_id").to_pylist()
    at = [i for i, own in enumerate(ids) if own in wanted]
    for i in at:
        if ids[i] not in found:
            (found[ids[i]],) = side.rows.window(i, i + 1).dicts(names)
    return found


def word_differences(a: str, b: str) -> list[tuple[str, str]]:
    """Two texts as one: ``("same" | "a" | "b", words)``, where ``a`` and ``b`` are in one of them alone."""
    left, right = (re.findall(r"\s*\S+|\s+$", text)[:MOST_WORDS] for text in (a, b))
    found: list[tuple[str, str]] = []
    for what, i, j, k, n in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if what == "equal":
            found.append(("same", "".join(left[i:j])))
            continue
        if i < j:
            found.append(("a", "".join(left[i:j])))
        if k < n:
            found.append(("b", "".join(right[k:n])))
    return found
