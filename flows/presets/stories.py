"""Data and rules for the presets on TinyStories: kinder sentences for ``stories``, checkable rules for ``r1_zero``."""

import json
import random
import re
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


def names_its_subject(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """1 where the continuation speaks of what the opening introduced: its name, without one its last word."""
    del rows
    return [
        float(re.search(rf"\b{re.escape(subject_of(prompt))}\b", response, re.IGNORECASE) is not None)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def subject_of(prompt: str) -> str:
    """Whom or what an opening introduces."""
    if named := re.search(r"\b(?:named|called) (\w+)", prompt):
        return named[1]
    return (re.findall(r"\w+", prompt) or [""])[-1]


def has_dialogue(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """1 where somebody speaks: words stand in quotation marks, and every mark that opens is closed."""
    del prompts, rows
    return [
        float(response.count('"') % 2 == 0 and re.search(r'"[^"]*\w[^"]*"', response) is not None)
        for response in responses
    ]


def variety(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """Distinct words as a share of all words: what a policy gives up that only repeats what is rewarded."""
    del prompts, rows
    words = [re.findall(r"\w+", response.lower()) for response in responses]
    return [len(set(own)) / len(own) if own else 0.0 for own in words]
