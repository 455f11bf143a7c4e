"""What two texts differ in, word by word."""

import re
from difflib import SequenceMatcher
from typing import Literal

Which = Literal["same", "a", "b"]
MOST_WORDS = 1000
"""Between the common beginning and end of two texts: the time grows with the square of them."""
_WORD = re.compile(r"\s*(?:\w+|[^\w\s])|\s+\Z")


def word_differences(a: str, b: str) -> list[tuple[Which, str]]:
    """Pieces of text in their order: those of both (same), and those of one alone (a, b).

    White space goes with the word behind it, so that the pieces of a text together are the text. Where more than
    ``MOST_WORDS`` lie between the first and the last difference, all that lies there is one difference.
    """
    old, new = _WORD.findall(a), _WORD.findall(b)
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    end_old, end_new = len(old) - tail, len(new) - tail
    found: list[tuple[Which, str]] = [("same", "".join(old[:head]))]
    if max(end_old, end_new) - head > MOST_WORDS:
        found += [("a", "".join(old[head:end_old])), ("b", "".join(new[head:end_new]))]
    else:
        matcher = SequenceMatcher(None, old[head:end_old], new[head:end_new], autojunk=False)
        for operation, i, j, k, l in matcher.get_opcodes():  # noqa: E741
            if operation == "equal":
                found.append(("same", "".join(old[head + i : head + j])))
            else:
                found.append(("a", "".join(old[head + i : head + j])))
                found.append(("b", "".join(new[head + k : head + l])))
    found.append(("same", "".join(old[end_old:])))
    return [(operation, text) for operation, text in found if text]
