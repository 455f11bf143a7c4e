"""What all charts share: figures, lines over iterations, the marks of rounds."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]
"""One row per iteration, through all rounds: ``round``, ``iteration`` and the metrics known of it."""
# Distinct also for colour-blind readers and in grey: Okabe and Ito, "Color Universal Design", 2008.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MUTED = "#8a8f98"
STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.dpi": 130,
    "font.size": 10,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "savefig.facecolor": "white",
    "text.color": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
BY_ITERATION = "iteration, counted through all rounds"


def line_figure(
    history: History, metric: str, title: str, unit: str, *, bottom: float | None = None
) -> "Figure | None":
    """One metric by iteration."""
    if not points(history, metric):
        return None
    figure, (axes,) = new_figure(title, unit)
    draw_line(axes, history, metric, COLORS[0])
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    mark_rounds(axes, history)
    return figure


def new_figure(title: str, *y_labels: str) -> "tuple[Figure, list[Axes]]":
    """A figure with a panel per label, one above the other, the first one the tallest. Not pyplot: it keeps figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0 if len(y_labels) == 1 else 5.0), layout="constrained")
    ratios = [3.0, *[1.0] * (len(y_labels) - 1)]
    panels = figure.subplots(len(y_labels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0].tolist()
    for axes, label in zip(panels, y_labels, strict=True):
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(whole_numbers())
    panels[0].set_title(title, pad=16)
    panels[-1].set_xlabel(BY_ITERATION)
    return figure, panels


def whole_numbers() -> Any:
    """Where the ticks of a count go."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def draw_line(axes: "Axes", history: History, metric: str, color: str, *, scale: float = 1, **style: Any) -> None:
    """A metric by iteration; where an iteration does not know it, the line goes on from the next that does."""
    known = points(history, metric)
    if known:
        x, y = zip(*known, strict=True)
        marker = "o" if len(known) <= 60 else None
        axes.plot(x, [scale * value for value in y], color=color, marker=marker, **style)


def mark_rounds(axes: "Axes", history: History, *, named: bool = True) -> None:
    """A vertical line where a round begins, with its number above the plot."""
    rounds = [row["round"] for row in history]
    begins = [i for i, number in enumerate(rounds) if i == 0 or rounds[i - 1] != number]
    if len(begins) < 2:
        return
    for i in begins:
        if i > 0:
            axes.axvline(i + 0.5, color=MUTED, linewidth=0.9, linestyle=":")
        # Numbers of many rounds would run into each other.
        if named and rounds[i] % math.ceil(len(begins) / 10) == 0:
            axes.annotate(
                f"round {rounds[i]}" if len(begins) <= 6 else str(rounds[i]),
                (i + 0.5, 1.0),
                xytext=(3, 3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color="#555555",
                fontsize=8.5,
            )
    axes.set_xlim(0.5, len(history) + 0.5)


def points(history: History, metric: str) -> list[tuple[int, float]]:
    """(position from 1, value) of each row that knows the metric as a finite number."""
    return [(x, row[metric]) for x, row in enumerate(history, start=1) if is_number(row.get(metric))]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
