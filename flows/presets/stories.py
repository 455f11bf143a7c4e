"""Preferences for the ``stories`` preset: which of two sentences people rated as the kinder one."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPT = "They said:"


def rated_pairs(seed: int, path: str, min_gap: float = 1.0) -> Iterator[dict[str, Any]]:
    """Pairs of rated sentences, the better rated one chosen; ``path`` is JSON Lines with ``text`` and ``score``.

    Each sentence stands in one pair at most, so that none is both trained on and held out. ``min_gap`` is the least
    difference of the two ratings.
    """
    rows = [
        json.loads(line) for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    random.Random(f"pairs {seed}").shuffle(rows)
    waiting: list[dict[str, Any]] = []
    for row in rows:
        partner = next((other for other in waiting if abs(other["score"] - row["score"]) >= min_gap), None)
        if partner is None:
            waiting.append(row)
            continue
        waiting.remove(partner)
        better, worse = sorted((row, partner), key=lambda sentence: -sentence["score"])
        yield {
            "prompt": PROMPT,
            "chosen": f" {better['text'].strip()}",
            "rejected": f" {worse['text'].strip()}",
            "margin": better["score"] - worse["score"],
        }
