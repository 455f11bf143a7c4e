"""What all charts share: colours, axes, panels one above the other, the marks of rounds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figure = dict[str, Any]
"""``{"data": [...], "layout": {...}}``, as Plotly takes it. Colours of text and ground are left to whoever shows it."""
History = Sequence[Mapping[str, Any]]
"""A row for each iteration, through all rounds: ``round``, ``iteration`` and the metrics known of it."""
# Distinct also for colour-blind readers and in grey: Okabe and Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
MUTED = "#8a8f98"
BAND = "rgba(0, 158, 115, 0.10)"
"""Where a metric is healthy."""
BY_ITERATION = "iteration, through all rounds"
GAP = 0.14
"""Of the height, between two panels."""
MOST_MARKERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart."""

    metric: str
    label: str = ""
    scale: float = 1.0
    band: str = ""
    """The metric whose value lies above and below the line as a band."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One axis with its lines."""

    title: str
    series: Sequence[Series]
    low: float | None = None
    """Where the metric is healthy from, and up to; None where there is no such end."""
    high: float | None = None
    range: tuple[float, float] | None = None
    lines: Sequence[float] = ()
    """Values that a line across the panel marks."""
    weight: float = 1.0
    """The height, of the sum of all panels' weights."""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def knows(history: History, metric: str) -> bool:
    """Whether any iteration has a finite value of the metric."""
    return any(is_number(row.get(metric)) for row in history)


def rounded(value: float) -> float:
    """Seven significant digits, more than anybody sees in a chart."""
    return float(f"{value:.7g}")


def axis_name(kind: str, number: int) -> str:
    """``x``, ``x2``, …: how a trace names its axis."""
    return kind if number == 1 else f"{kind}{number}"


def heights(weights: Sequence[float]) -> list[tuple[float, float]]:
    """The place of each panel from the bottom, 0 to 1, the first panel on top."""
    free = 1.0 - GAP * (len(weights) - 1)
    places, top = [], 1.0
    for weight in weights:
        height = free * weight / sum(weights)
        places.append((rounded(max(0.0, top - height)), rounded(top)))
        top -= height + GAP
    return places


def layout_of(title: str, **more: Any) -> dict[str, Any]:
    """What is the same in all charts."""
    return {
        "title": {"text": title},
        "margin": {"l": 46, "r": 12, "t": 30, "b": 38},
        "hovermode": "closest",
        "showlegend": False,
        "legend": {
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 10},
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        **more,
    }


def round_marks(history: History) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A dotted line where a round begins, and its number above the chart; nothing where there is one round."""
    rounds = [row["round"] for row in history]
    begins = [i for i, number in enumerate(rounds) if i == 0 or rounds[i - 1] != number]
    if len(begins) < 2:
        return [], []
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    shapes = [
        {"type": "line", "xref": "x", "yref": "paper", "x0": i + 0.5, "x1": i + 0.5, "y0": 0, "y1": 1, "line": line}
        for i in begins[1:]
    ]
    # Numbers of many rounds would run into each other.
    named = [i for i in begins if rounds[i] % math.ceil(len(begins) / 10) == 0]
    words = "round {}" if len(begins) <= 4 else "{}"
    annotations = [
        {
            "text": words.format(rounds[i]),
            "x": i + 0.5,
            "xref": "x",
            "xanchor": "left",
            "y": 1.0,
            "yref": "paper",
            "yanchor": "top",
            "showarrow": False,
            "font": {"size": 10, "color": MUTED},
        }
        for i in named
    ]
    return shapes, annotations


def unit_above(text: str, top: float) -> dict[str, Any]:
    """What a panel measures, above it: beside a low panel it would not fit."""
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": top, "yref": "paper", "yanchor": "bottom"}
    return {"text": text, **place, "xshift": -40, "showarrow": False, "font": {"size": 10, "color": MUTED}}


def finite(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values if is_number(value)]
