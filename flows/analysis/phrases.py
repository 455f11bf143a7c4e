"""Phrases that a policy has come to use: n-grams and openings that more responses have, and what they do to the score."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
LONGEST_NGRAM = 4
OPENING_WORDS = 3
LEAST_RESPONSES = 3
"""Responses that must have a phrase now: one that two have is chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A phrase, the shares of responses that have it, and the mean score of those with it less that of those without."""

    text: str
    share_before: float
    share_now: float
    responses: int
    """How many have it now."""
    effect: float | None
    effect_stderr: float | None
    """None where all have it, or none: there is nothing to compare with."""

    @property
    def growth(self) -> float:
        return self.share_now - self.share_before

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "growth": self.growth}


def words_of(text: str) -> list[str]:
    """Words in lower case, and each punctuation mark as one."""
    return WORD.findall(text.lower())


def ngrams_of(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + n]) for n in range(1, LONGEST_NGRAM + 1) for i in range(len(words) - n + 1)}


def opening_of(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)[:OPENING_WORDS]
    return {tuple(words)} if words else set()


def grown_phrases(
    before: Sequence[str], now: Sequence[str], scores: Sequence[float], *, openings: bool = False, most: int = 20
) -> list[Phrase]:
    """The phrases whose share of responses grew most from ``before`` to ``now``, the most grown first.

    ``scores`` are those of ``now``. Of phrases within each other that the same responses have, the longest alone is told.
    """
    split = opening_of if openings else ngrams_of
    counts_before = Counter(phrase for text in before for phrase in split(text))
    having: dict[tuple[str, ...], list[int]] = {}
    for i, text in enumerate(now):
        for phrase in split(text):
            having.setdefault(phrase, []).append(i)

    def growth(phrase: tuple[str, ...]) -> float:
        return len(having[phrase]) / len(now) - counts_before[phrase] / max(1, len(before))

    known = [phrase for phrase, rows in having.items() if len(rows) >= LEAST_RESPONSES and growth(phrase) > 0]
    known.sort(key=lambda phrase: (-growth(phrase), -len(phrase), phrase))
    told: list[tuple[str, ...]] = []
    for phrase in known:
        if len(told) == most:
            break
        if not any(is_within(phrase, other) and having[phrase] == having[other] for other in told):
            told.append(phrase)
    values = np.asarray(scores, dtype=np.float64)
    return [
        Phrase(
            text=" ".join(phrase),
            share_before=counts_before[phrase] / max(1, len(before)),
            share_now=len(having[phrase]) / len(now),
            responses=len(having[phrase]),
            **_effect(values, having[phrase]),
        )
        for phrase in told
    ]


def is_within(phrase: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether a phrase is a part of another one."""
    n = len(phrase)
    return any(other[i : i + n] == phrase for i in range(len(other) - n + 1))


def _effect(scores: np.ndarray, rows: Sequence[int]) -> dict[str, float | None]:
    """The difference of two means, and its standard error by Welch."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[rows] = True
    mask_known = np.isfinite(scores)
    with_it, without = scores[mask & mask_known], scores[~mask & mask_known]
    if len(with_it) < 2 or len(without) < 2:
        return {"effect": None, "effect_stderr": None}
    spread = with_it.var(ddof=1) / len(with_it) + without.var(ddof=1) / len(without)
    return {"effect": float(with_it.mean() - without.mean()), "effect_stderr": math.sqrt(spread)}
