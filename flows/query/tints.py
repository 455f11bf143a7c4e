"""How strongly, and on which colour, a token stands for one of its numbers: the same on pages, in reports and notebooks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FULL_TINT = 2.5
"""Standard deviations around zero, where no colour is, at which one is full: one token out of all proportion does not pale
the others, and tokens that are all alike are no extremes."""
# Okabe and Ito's blue and orange, distinct for colour-blind readers too.
BLUE, ORANGE = "0, 114, 178", "230, 159, 0"
TINTS: Mapping[str, bool] = {
    "advantage": True,
    "kl": True,
    "reward": True,
    "value": True,
    "return": True,
    "logprob": False,
    "sampling_logprob": False,
    "ref_logprob": False,
}
"""Numbers of a token, and whether they lie around zero: blue above and orange below. The others are all on one side, and
orange is what is far from zero: an unlikely token."""


def tints_of(tokens: Sequence[Mapping[str, Any]], name: str) -> tuple[list[dict[str, Any]], float]:
    """The tokens with their ``tint``, from −1 (full orange) to 1 (full blue), and the value at which a colour is full.

    The tint of a token that has no such number is None.
    """
    values = [token.get(name) for token in tokens]
    known = [value for value in values if value is not None and math.isfinite(value)]
    scale = FULL_TINT * math.sqrt(statistics.fmean(value**2 for value in known)) if any(known) else 1.0
    return [{**token, "tint": _tint(value, scale)} for token, value in zip(tokens, values, strict=True)], scale


def _tint(value: float | None, scale: float) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(max(-1.0, min(1.0, value / scale)), 3)


def background(tint: float | None) -> str:
    """The tint as a colour of CSS, which lets the text through on light and on dark ground."""
    if tint is None:
        return "rgba(128, 128, 128, 0.25)"
    return f"rgba({BLUE if tint >= 0 else ORANGE}, {0.6 * abs(tint):.2f})"
