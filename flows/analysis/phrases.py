"""Phrases that a policy has come to use: n-grams and openings that more responses have, and what they do to the score."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np

from flows.analysis.differences_of_means import Array, Difference, difference_of_means

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
LONGEST_NGRAM = 4
OPENING_WORDS = 3
LEAST_RESPONSES = 3
"""Responses that must have a phrase now: one that two have is chance."""
Z = 2.0
"""Standard errors by which a share must have grown."""
SAME = 0.9
"""Of the responses that have one or the other of two phrases, the share that has both, from which they tell one thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A phrase, the shares of responses that have it, and what it does to their scores."""

    text: str
    share_before: float
    share_now: float
    growth_stderr: float
    """Responses taken as independent."""
    responses: int
    """How many have it now."""
    effect: Difference | None
    """The mean score of those with it less that of those without; None where all have it, or nothing is scored."""
    held_out: Mapping[str, Difference | None] = field(default_factory=dict)
    """The same of each held-out reward."""

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
    before: Sequence[str],
    now: Sequence[str],
    scores: Array,
    *,
    held_out: Mapping[str, Array] | None = None,
    prompts: Sequence[str] | None = None,
    openings: bool = False,
    most: int = 20,
) -> list[Phrase]:
    """The phrases whose share of responses grew most from ``before`` to ``now``, the most grown first, as far as chance
    does not explain it.

    ``scores``, ``held_out`` and ``prompts`` are those of ``now``; the responses to one prompt are alike. Of phrases that
    share words and have nearly the same responses, the one of the most words alone is told.
    """
    split = opening_of if openings else ngrams_of
    having: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, text in enumerate(now):
        for phrase in split(text):
            having[phrase].append(i)
    # Most phrases are in a single response: nothing else is counted of them.
    frequent = {phrase for phrase, rows in having.items() if len(rows) >= LEAST_RESPONSES}
    counts_before = Counter(chain.from_iterable(frequent & split(text) for text in before))

    def shares(phrase: tuple[str, ...]) -> tuple[float, float]:
        return counts_before[phrase] / max(1, len(before)), len(having[phrase]) / len(now)

    def growth(phrase: tuple[str, ...]) -> float:
        share_before, share_now = shares(phrase)
        return share_now - share_before

    def growth_stderr(phrase: tuple[str, ...]) -> float:
        sizes = (max(1, len(before)), len(now))
        return math.sqrt(sum(p * (1 - p) / n for p, n in zip(shares(phrase), sizes, strict=True)))

    known = [phrase for phrase in frequent if growth(phrase) > Z * growth_stderr(phrase)]
    known.sort(key=lambda phrase: (-growth(phrase), -num_words(phrase), -len(phrase), phrase))
    groups = np.unique(range(len(now)) if prompts is None else prompts, return_inverse=True)[1]

    def effect(values: Array, phrase: tuple[str, ...]) -> Difference | None:
        has_it = np.zeros(len(now), dtype=bool)
        has_it[having[phrase]] = True
        return difference_of_means(values, has_it, groups)

    return [
        Phrase(
            text=" ".join(phrase),
            share_before=shares(phrase)[0],
            share_now=shares(phrase)[1],
            growth_stderr=growth_stderr(phrase),
            responses=len(having[phrase]),
            effect=effect(np.asarray(scores, dtype=np.float64), phrase),
            held_out={name: effect(own, phrase) for name, own in (held_out or {}).items()},
        )
        for phrase in told_once(known, {phrase: frozenset(having[phrase]) for phrase in known}, most)
    ]


def told_once(
    known: Sequence[tuple[str, ...]], having: Mapping[tuple[str, ...], frozenset[int]], most: int
) -> list[tuple[str, ...]]:
    """The first phrases in this order of which no two tell one thing; of those that do, the one of the most words."""
    told: list[tuple[str, ...]] = []
    for phrase in known:
        same = next((i for i, other in enumerate(told) if tell_one_thing(phrase, other, having)), None)
        if same is None:
            if len(told) == most:
                break
            told.append(phrase)
        elif num_words(phrase) > num_words(told[same]):
            told[same] = phrase
    return told


def tell_one_thing(
    phrase: tuple[str, ...], other: tuple[str, ...], having: Mapping[tuple[str, ...], frozenset[int]]
) -> bool:
    """Whether two phrases share a word and nearly all responses."""
    if set(phrase).isdisjoint(other):
        return False
    shared = len(having[phrase] & having[other])
    return shared >= SAME * (len(having[phrase]) + len(having[other]) - shared)


def num_words(phrase: tuple[str, ...]) -> int:
    """How many of a phrase's parts are no punctuation marks."""
    return sum(word[0].isalnum() or word[0] == "_" for word in phrase)


def search_of(phrase: str, *, is_opening: bool = False) -> str:
    """A search that finds the responses with a phrase, whatever stands between its words."""
    words = phrase.split(" ")
    gaps = [r"\s+" if ends_in_word(a) and ends_in_word(b[0]) else r"\s*" for a, b in pairwise(words)]
    pattern = "".join(escaped(word) + gap for word, gap in zip(words, [*gaps, ""], strict=True))
    # What is a word's edge in a pattern is known of ASCII alone.
    begin = r"^\s*" if is_opening else r"\b" if words[0][0].isascii() and ends_in_word(words[0][0]) else ""
    end = r"\b" if words[-1][-1].isascii() and ends_in_word(words[-1]) else ""
    return f"response:/{begin}{pattern}{end}/"


def ends_in_word(text: str) -> bool:
    return text[-1].isalnum() or text[-1] == "_"


def escaped(word: str) -> str:
    """A word so that a pattern takes it as it is."""
    return "".join(c if c.isalnum() or c == "_" else "\\" + c for c in word)
