"""How far a reward model can be believed."""

import math
from collections.abc import Mapping
from typing import Any

from tasks.charts.figure import BLUE, MUTED, Figure, heights, is_number, layout_of, rounded, unit_above

BIN_WIDTH = 0.05


def calibration_chart(calibration: Mapping[str, Any]) -> Figure | None:
    """Reliability of σ(s⁺ − s⁻) on preferences never trained on: how often the surer side was right, and below it how many
    pairs say so."""
    bins = [b for b in calibration.get("bins", ()) if is_number(b["mean_confidence"]) and is_number(b["accuracy"])]
    if not bins:
        return None
    accuracy, pairs = [b["accuracy"] for b in bins], [b["pairs"] for b in bins]
    # A standard error of the share, so that a bin of three pairs is not taken for a fact.
    errors = [math.sqrt(max(a * (1 - a), 0.0) / max(n, 1)) for a, n in zip(accuracy, pairs, strict=True)]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "perfectly calibrated",
            "x": [0.5, 1],
            "y": [0.5, 1],
            "line": {"color": MUTED, "width": 1, "dash": "dash"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "± 1 standard error",
            "x": [rounded(b["mean_confidence"]) for b in bins],
            "y": [rounded(value) for value in accuracy],
            "error_y": {"type": "data", "array": [rounded(error) for error in errors], "thickness": 1, "width": 3},
            "line": {"color": BLUE, "width": 2},
            "hovertemplate": "sure of %{x:.0%}, right in %{y:.1%}<extra></extra>",
        },
        {
            "type": "bar",
            "name": "pairs",
            "x": [rounded(b["lower"] + BIN_WIDTH / 2) for b in bins],
            "y": pairs,
            "yaxis": "y2",
            "width": BIN_WIDTH * 0.9,
            "marker": {"color": "rgba(0, 114, 178, 0.55)"},
            "hovertemplate": "%{y} pairs<extra></extra>",
            "showlegend": False,
        },
    ]
    upper, lower = heights([3, 1])
    lowest = min(0.48, *(a - e - 0.02 for a, e in zip(accuracy, errors, strict=True)))
    layout = layout_of("Calibration of the reward model", showlegend=True)
    layout["xaxis"] = {
        "title": {"text": f"confidence in a ranking; {calibration_summary(calibration)}", "font": {"size": 11}},
        "anchor": "y2",
        "range": [0.49, 1.01],
        "tickformat": ".0%",
    }
    layout["yaxis"] = {
        "domain": list(upper),
        "range": [rounded(lowest), 1.03],
        "tickformat": ".0%",
    }
    layout["yaxis2"] = {"domain": list(lower), "nticks": 3}
    layout["annotations"] = [unit_above("share of pairs ranked rightly", upper[1]), unit_above("pairs", lower[1])]
    return {"data": data, "layout": layout}


def calibration_summary(calibration: Mapping[str, Any]) -> str:
    """The two numbers that the diagram comes to, as far as they are known."""
    known = {"accuracy": calibration.get("accuracy"), "calibration error": calibration.get("calibration_error")}
    parts = [f"{name} {value:.1%}" for name, value in known.items() if is_number(value)]
    return ", ".join([*parts, f"{calibration.get('pairs', 0):,} held-out pairs"])
