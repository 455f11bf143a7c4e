"""Responses that say nearly the same though their prompts differ: a policy falls into that when one answer pays."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SHINGLE_WORDS = 3
NUM_HASHES, NUM_BANDS = 64, 16
"""Two texts that share four fifths of their shingles meet in one of the bands with a probability of 0.9998."""
LEAST_SHARED = 0.8
"""Of the shingles of two texts, by Jaccard, from which on they are nearly the same."""
PRIME = (1 << 31) - 1
NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Responses that are nearly the same."""

    rows: tuple[int, ...]
    share: float
    """Of all responses."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def near_duplicates(texts: Sequence[str]) -> list[Group]:
    """Groups of two and more texts that share most of their words in a row, the largest first. A text is in one at most.

    Broder, "On the resemblance and containment of documents", 1997: the share of equal minima under random hashes is the
    Jaccard similarity of the sets. The hashes are the same each time.
    """
    shingles = [shingles_of(text) for text in texts]
    signatures = np.stack([signature_of(own) for own in shingles]) if texts else np.zeros((0, NUM_HASHES))
    group_of = list(range(len(texts)))

    def root(i: int) -> int:
        while group_of[i] != i:
            group_of[i] = i = group_of[group_of[i]]
        return i

    rows = NUM_HASHES // NUM_BANDS
    for band in range(NUM_BANDS):
        first: dict[bytes, int] = {}
        for i in range(len(texts)):
            if not shingles[i]:
                continue
            key = signatures[i, band * rows : (band + 1) * rows].tobytes()
            other = first.setdefault(key, i)
            if other != i and root(other) != root(i) and jaccard(shingles[i], shingles[other]) >= LEAST_SHARED:
                group_of[max(root(i), root(other))] = min(root(i), root(other))
    members: dict[int, list[int]] = {}
    for i in range(len(texts)):
        if shingles[i]:
            members.setdefault(root(i), []).append(i)
    groups = [own for own in members.values() if len(own) > 1]
    return [
        Group(rows=tuple(own), share=len(own) / len(texts)) for own in sorted(groups, key=lambda g: (-len(g), g[0]))
    ]


def shingles_of(text: str) -> frozenset[int]:
    """Hashes of each three words in a row, without case and punctuation; of a shorter text, of all its words."""
    words = NOT_A_WORD.sub(" ", text.lower()).split()
    if not words:
        return frozenset()
    parts = [words[i : i + SHINGLE_WORDS] for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]
    # Not hash(), which differs from process to process.
    return frozenset(zlib.crc32(" ".join(part).encode("utf-8", "surrogatepass")) for part in parts)


_DRAW = np.random.default_rng(0)
_FACTORS = _DRAW.integers(1, PRIME, NUM_HASHES, dtype=np.uint64)
_OFFSETS = _DRAW.integers(0, PRIME, NUM_HASHES, dtype=np.uint64)


def signature_of(shingles: frozenset[int]) -> np.ndarray:
    """(NUM_HASHES,) the least of each hash over the shingles."""
    if not shingles:
        return np.zeros(NUM_HASHES, dtype=np.uint64)
    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles)) % PRIME
    least: np.ndarray = ((values[:, None] * _FACTORS + _OFFSETS) % PRIME).min(axis=0)
    return least


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other) if one or other else 0.0
