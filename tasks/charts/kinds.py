"""The kinds of charts: curves over iterations, histograms, points."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.charts.figure import (
    BAND,
    BLUE,
    BY_ITERATION,
    COLORS,
    MOST_MARKERS,
    MUTED,
    Figure,
    History,
    Panel,
    Series,
    axis_name,
    finite,
    heights,
    is_number,
    knows,
    layout_of,
    round_marks,
    rounded,
    unit_above,
)

MOST_POINTS = 2000
"""Points of a scatter; of more, so many evenly from all. Plotly's other way to draw many, WebGL, compiles code in the
browser, which the pages' content security policy forbids."""


def curves(history: History, title: str, panels: Sequence[Panel]) -> Figure | None:
    """Metrics by iteration through all rounds, a panel per axis; None where no line of any panel is known.

    Each point has ``[round, iteration]`` in ``customdata``, so that a click can lead to its rollouts.
    """
    panels = [panel for panel in panels if any(knows(history, series.metric) for series in panel.series)]
    if not panels:
        return None
    shapes, annotations = round_marks(history)
    layout = layout_of(title, shapes=shapes, annotations=annotations)
    data: list[dict[str, Any]] = []
    for number, (panel, place) in enumerate(zip(panels, heights([p.weight for p in panels]), strict=True), start=1):
        axis = axis_name("y", number)
        known = [series for series in panel.series if knows(history, series.metric)]
        colors = COLORS if number == 1 else COLORS[number - 1 :]
        for series, color in zip(known, colors, strict=False):
            data += traces_of(history, series, color, axis, is_alone=len(known) == 1)
        layout["yaxis" + axis[1:]] = {"domain": list(place), "nticks": 6 if place[1] - place[0] > 0.4 else 4}
        annotations.append(unit_above(panel.title, place[1]))
        if panel.range is not None:
            layout["yaxis" + axis[1:]]["range"] = list(panel.range)
        shapes += [line_across(axis, value) for value in panel.lines]
        if panel.low is not None or panel.high is not None:
            shapes.append(band_across(axis, panel, history))
    x_axis: dict[str, Any] = {
        "title": {"text": BY_ITERATION, "font": {"size": 11}},
        "anchor": axis_name("y", len(panels)),
    }
    # A tick for each iteration while there are few; else Plotly's own, which are whole numbers then.
    layout["xaxis"] = {**x_axis, "range": [0.5, len(history) + 0.5], **({"dtick": 1} if len(history) <= 8 else {})}
    layout["showlegend"] = any(trace["showlegend"] for trace in data)
    return {"data": data, "layout": layout}


def lines(title: str, x_title: str, values: Mapping[str, Sequence[float]]) -> Figure:
    """Numbers by their position, a line for each name."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(own) <= MOST_MARKERS else "lines",
            "name": name,
            "x": list(range(1, len(own) + 1)),
            "y": [rounded(value) if is_number(value) else None for value in own],
            "line": {"color": color, "width": 2},
            "marker": {"size": 4},
        }
        for (name, own), color in zip(values.items(), COLORS, strict=False)
    ]
    layout = layout_of(title, showlegend=len(data) > 1)
    layout["xaxis"] = {"title": {"text": x_title, "font": {"size": 11}}}
    return {"data": data, "layout": layout}


def traces_of(history: History, series: Series, color: str, axis: str, *, is_alone: bool) -> list[dict[str, Any]]:
    """A line, and below it the band around it where it has one. Where an iteration does not know the metric, the line goes
    on from the next one that does."""
    known = [(x, row) for x, row in enumerate(history, start=1) if is_number(row.get(series.metric))]
    x = [position for position, _ in known]
    y = [rounded(series.scale * row[series.metric]) for _, row in known]
    label = series.label or series.metric
    line = {
        "type": "scatter",
        "mode": "lines+markers" if len(known) <= MOST_MARKERS else "lines",
        "name": label,
        "x": x,
        "y": y,
        "yaxis": axis,
        "customdata": [[row["round"], row["iteration"]] for _, row in known],
        "line": {"color": color, "width": 2},
        "marker": {"color": color, "size": 5},
        "hovertemplate": f"{label} %{{y:.4g}}<br>round %{{customdata[0]}}, iteration %{{customdata[1]}}<extra></extra>",
        "showlegend": not is_alone,
    }
    spread = [row.get(series.band) for _, row in known] if series.band else []
    if not spread or not all(is_number(value) for value in spread):
        return [line]
    around = [rounded(series.scale * float(value)) for value in spread if value is not None]
    up = [rounded(a + b) for a, b in zip(y, around, strict=True)]
    down = [rounded(a - b) for a, b in zip(y, around, strict=True)]
    band = {
        "type": "scatter",
        "mode": "lines",
        "name": "± 1 standard deviation",
        "x": [*x, *reversed(x)],
        "y": [*up, *reversed(down)],
        "yaxis": axis,
        "fill": "toself",
        "fillcolor": tinted(color, 0.12),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [band, line]


def histogram(
    title: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
    *,
    counted: str = "responses",
    num_bins: int = 30,
    mark: tuple[str, float] | None = None,
) -> Figure | None:
    """One or more distributions over each other, in the same bins; None where there is no finite value.

    ``mark`` is a line upwards and what it is called, for a value up to twice the largest: farther away, the distribution
    would shrink beside it.
    """
    known = {name: np.asarray(finite(own)) for name, own in values.items()}
    everything = np.concatenate(list(known.values())) if known else np.zeros(0)
    if not len(everything):
        return None
    edges = np.histogram_bin_edges(everything, bins=num_bins)
    middles = [rounded(x) for x in (edges[:-1] + edges[1:]) / 2]
    data = [
        {
            "type": "bar",
            "name": name,
            "x": middles,
            "y": np.histogram(own, bins=edges)[0].tolist(),
            "width": rounded(edges[1] - edges[0]),
            "marker": {"color": tinted(color, 0.55)},
            "hovertemplate": f"{name}: %{{y}} around %{{x:.3g}}<extra></extra>",
        }
        for (name, own), color in zip(known.items(), COLORS, strict=False)
    ]
    layout = layout_of(title, barmode="overlay", bargap=0, showlegend=len(data) > 1)
    layout["xaxis"] = {"title": {"text": unit, "font": {"size": 11}}}
    layout["yaxis"] = {"title": {"text": counted, "font": {"size": 11}}}
    if mark is not None and mark[1] <= 2 * everything.max():
        layout["shapes"], layout["annotations"] = [line_upwards(mark[1])], [word_beside(*mark)]
    return {"data": data, "layout": layout}


def scatter(
    title: str,
    x: tuple[str, Sequence[Any]],
    y: tuple[str, Sequence[Any]],
    ids: Sequence[str],
    texts: Sequence[str] = (),
) -> Figure | None:
    """A point for each pair of finite values; ``ids`` stand in ``customdata``, so that a click can lead there.

    ``texts`` are shown as they are: of markup in them Plotly would obey some.
    """
    known = [i for i in range(len(ids)) if is_number(x[1][i]) and is_number(y[1][i])]
    if not known:
        return None
    known = known[:: -(-len(known) // MOST_POINTS)]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [rounded(x[1][i]) for i in known],
        "y": [rounded(y[1][i]) for i in known],
        "customdata": [ids[i] for i in known],
        "text": [html.escape(texts[i], quote=False) for i in known] if texts else [],
        "marker": {"color": BLUE, "size": 6, "opacity": 0.5},
        "hovertemplate": f"{x[0]} %{{x:.3g}}, {y[0]} %{{y:.3g}}<br>%{{text}}<extra></extra>",
    }
    layout = layout_of(title)
    layout["xaxis"] = {"title": {"text": x[0], "font": {"size": 11}}}
    layout["yaxis"] = {"title": {"text": y[0], "font": {"size": 11}}}
    return {"data": [points], "layout": layout}


def line_across(axis: str, value: float) -> dict[str, Any]:
    line = {"color": MUTED, "width": 1}
    return {"type": "line", "xref": "paper", "yref": axis, "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line}


def line_upwards(value: float) -> dict[str, Any]:
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": value, "x1": value, "y0": 0, "y1": 1, "line": line}


def word_beside(text: str, value: float) -> dict[str, Any]:
    place = {"x": value, "xref": "x", "xanchor": "right", "y": 1.0, "yref": "paper", "yanchor": "top"}
    return {"text": text, **place, "showarrow": False, "font": {"size": 10, "color": MUTED}}


def band_across(axis: str, panel: Panel, history: History) -> dict[str, Any]:
    """Where the metrics of a panel are healthy, as far as the values reach: an axis is not made longer to show it."""
    values = [s.scale * value for s in panel.series for value in finite(row.get(s.metric) for row in history)]
    least, most = min(values), max(values)
    margin = 0.05 * (most - least or abs(most) or 1.0)
    low = least - margin if panel.low is None else max(panel.low, least - margin)
    high = most + margin if panel.high is None else min(panel.high, most + margin)
    ends = {"y0": rounded(low), "y1": rounded(max(low, high))}
    rest = {"fillcolor": BAND, "line": {"width": 0}, "layer": "below"}
    return {"type": "rect", "xref": "paper", "yref": axis, "x0": 0, "x1": 1, **ends, **rest}


def tinted(color: str, opacity: float) -> str:
    """A colour that lets through what is below it."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"
