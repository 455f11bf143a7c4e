"""Whether a score is to be believed: what it rises with, and which responses have it for no good reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flows.analysis.duplicates import near_duplicates
from flows.analysis.phrases import Phrase, grown_phrases
from flows.query import DataSet, Rows

MOST_ROWS = 5000
"""Responses that are read; of more, so many evenly from all."""
MOST_SUSPICIOUS = 20
HELD_OUT = "held_out_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """What speaks against the score of some rollouts, held against those of the run's first iteration."""

    rows: list[dict[str, Any]]
    """Those that were read: id, prompt, response, length, score, held-out rewards by name."""
    held_out: list[str]
    suspicious: list[dict[str, Any]]
    phrases: list[Phrase]
    openings: list[Phrase]
    duplicates: list[dict[str, Any]]
    duplicate_share: float
    """Of the responses, those that are nearly the same as another one."""


def suspicion_of(now: DataSet, first: DataSet) -> Suspicion:
    """Read the rollouts of two places.

    A rollout is suspicious by its score less its held-out rewards, each in standard deviations from its mean over all.
    """
    rows = sampled(now.search())
    names = [name for name in now.columns if name.startswith(HELD_OUT)]
    table = rows.dicts(["rollout_id", "prompt_id", "prompt", "response", "length", "score", *names])
    texts = [row["response"] for row in table]
    scores = numbers_of(table, "score")
    held_out = {name: numbers_of(table, name) for name in names}
    prompts = [row["prompt_id"] for row in table]
    before = [row["response"] for row in sampled(first.search()).dicts(["response"])]
    groups = near_duplicates(texts)
    return Suspicion(
        rows=table,
        held_out=names,
        suspicious=most_suspicious(table, names),
        phrases=grown_phrases(before, texts, scores, held_out=held_out, prompts=prompts),
        openings=grown_phrases(before, texts, scores, held_out=held_out, prompts=prompts, openings=True, most=10),
        duplicates=[duplicate(table, group.rows, group.share) for group in groups[:10]],
        duplicate_share=sum(group.share for group in groups),
    )


def numbers_of(table: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A number of each row, NaN where there is none."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in table], dtype=np.float64)


def sampled(rows: Rows) -> Rows:
    """The rows, or as many evenly from all as are read."""
    if rows.found <= MOST_ROWS:
        return rows
    return rows.every(-(-rows.found // MOST_ROWS))


def most_suspicious(
    table: Sequence[Mapping[str, Any]], names: Sequence[str], *, most: int = MOST_SUSPICIOUS
) -> list[dict[str, Any]]:
    """The rollouts whose score is highest above what their held-out rewards would have it."""
    known = [row for row in table if row["score"] is not None and any(row.get(name) is not None for name in names)]
    if not known or not names:
        return []
    doubt = standardized([row["score"] for row in known])
    doubt = doubt - np.mean([standardized([row.get(name) for row in known]) for name in names], axis=0)
    worst = np.argsort(-doubt, kind="stable")[:most]
    return [{**known[i], "doubt": float(doubt[i])} for i in worst if doubt[i] > 0]


def standardized(values: Sequence[float | None]) -> np.ndarray:
    """In standard deviations from the mean; 0 where there is no value, or where all are alike."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known = numbers[np.isfinite(numbers)]
    spread = known.std() if len(known) else 0.0
    found = (numbers - known.mean()) / spread if spread > 0 else np.zeros(len(numbers))
    return np.where(np.isfinite(found), found, 0.0)


def duplicate(table: Sequence[Mapping[str, Any]], rows: Sequence[int], share: float) -> dict[str, Any]:
    """A group of near-duplicates by one of them: how many, of how many prompts, and what they score."""
    own = [table[i] for i in rows]
    scores = [row["score"] for row in own if row["score"] is not None]
    return {
        "rollout_id": own[0]["rollout_id"],
        "response": own[0]["response"],
        "responses": len(own),
        "prompts": len({row["prompt_id"] for row in own}),
        "share": share,
        "score": float(np.mean(scores)) if scores else None,
    }
