"""Rewards that a policy can game, for runs that are to fall ill."""

import json
import re
from functools import cache
from pathlib import Path

from shared_data import SHARED

VALENCE = SHARED / "sentiment" / "vader_word_valence.json"


@cache
def valences():
    return json.loads(Path(VALENCE).read_text())


def valence(prompts, responses, rows):
    """The sum of the valences of a response's words: to say one kind word again and again pays best."""
    return [sum(valences().get(word, 0.0) for word in re.findall(r"[a-z']+", text.lower())) for text in responses]


def brevity(prompts, responses, rows):
    """To say nothing pays best."""
    return [-len(response) / 20 for response in responses]
