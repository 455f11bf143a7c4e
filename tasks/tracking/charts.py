"""Plots of a run: its metrics by iteration through all rounds, and how far the reward model can be believed.

The same history gives the same bytes: a plot is part of a stage's output, whose digest must not depend on the day.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.metrics.declared import named

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
MAX_COMPONENTS = len(COLORS) - 1
LOWEST_EXPLAINED_VARIANCE = -1.0
"""Below it the axis ends: how bad a useless critic is says nothing, and would flatten the rest of the curve."""


def draw_plots(directory: Path, history: History, calibration: Mapping[str, Any] | None) -> None:
    """Write one PNG per topic; a topic of which nothing is known gets none."""
    import matplotlib.style

    directory.mkdir(parents=True, exist_ok=True)
    figures = {
        "reward": reward_figure,
        "kl": kl_figure,
        "reward_against_kl": reward_against_kl_figure,
        "response_length": response_length_figure,
        "entropy": entropy_figure,
        "explained_variance": explained_variance_figure,
        "reward_hacking": reward_hacking_figure,
    }
    # The user's own style file would change the bytes.
    with matplotlib.style.context(["default", dict(STYLE)]):
        for name, draw in figures.items():
            save(draw(history), directory / f"{name}.png")
        if calibration is not None:
            save(calibration_figure(calibration), directory / "reward_model_calibration.png")


def save(figure: "Figure | None", path: Path) -> None:
    """Write a figure without the name and version of what drew it."""
    if figure is not None:
        figure.savefig(path, format="png", metadata={"Software": None})


def reward_figure(history: History) -> "Figure | None":
    """Mean score with one standard deviation over responses, and the components that it is the sum of."""
    if not points(history, "score/mean"):
        return None
    figure, (axes,) = new_figure("Reward of the rollouts", "score, mean over responses")
    banded = [
        (x, row["score/mean"], row["score/std"])
        for x, row in enumerate(history, start=1)
        if is_number(row.get("score/mean")) and is_number(row.get("score/std"))
    ]
    if banded:
        positions = [x for x, _, _ in banded]
        low, high = [m - s for _, m, s in banded], [m + s for _, m, s in banded]
        axes.fill_between(positions, low, high, color=COLORS[0], alpha=0.12, linewidth=0, label="± 1 std of responses")
    draw_line(axes, history, "score/mean", COLORS[0], label="score")
    components = components_of(history)
    # A single component is the score itself, up to its weight.
    if 1 < len(components) <= MAX_COMPONENTS:
        for component, color in zip(components, COLORS[1:], strict=False):
            draw_line(axes, history, component, color, label=component.removeprefix("score/"), linewidth=1.2)
    mark_rounds(axes, history)
    axes.legend(loc="best")
    return figure


def kl_figure(history: History) -> "Figure | None":
    """How far the policy has moved from its reference."""
    return line_figure(history, "kl/mean", "KL(policy ‖ reference)", "nats per response")


def entropy_figure(history: History) -> "Figure | None":
    """How undecided the policy still is."""
    return line_figure(history, "update/entropy", "Entropy of the policy", "nats per response token", bottom=0.0)


def reward_against_kl_figure(history: History) -> "Figure | None":
    """What each nat of distance from the reference bought."""
    both = [
        (x, row["kl/mean"], row["score/mean"])
        for x, row in enumerate(history, start=1)
        if is_number(row.get("kl/mean")) and is_number(row.get("score/mean"))
    ]
    if not both:
        return None
    figure, (axes,) = new_figure("Reward against KL", "score, mean over responses")
    axes.set_xlabel("KL(policy ‖ reference), nats per response")
    numbers, kl, score = zip(*both, strict=True)
    axes.plot(kl, score, color=MUTED, linewidth=0.9, alpha=0.6, zorder=1)
    drawn = axes.scatter(kl, score, c=numbers, cmap="viridis", s=34, zorder=2, edgecolors="white", linewidths=0.6)
    if len(both) > 1:
        bar = figure.colorbar(drawn, ax=axes, pad=0.02)
        bar.set_label(BY_ITERATION)
        bar.outline.set_visible(False)
        bar.locator = whole_numbers()
        bar.update_ticks()
    return figure


def response_length_figure(history: History) -> "Figure | None":
    """Mean length, and below it the share of responses that ran into the limit."""
    if not points(history, "rollouts/response_length"):
        return None
    cut = bool(points(history, "rollouts/length_cut_share"))
    figure, panels = new_figure(
        "Length of the responses", "tokens, mean over responses", *(["cut off at\nthe limit, %"] if cut else [])
    )
    draw_line(panels[0], history, "rollouts/response_length", COLORS[0])
    panels[0].set_ylim(bottom=0)
    mark_rounds(panels[0], history)
    if cut:
        draw_line(panels[1], history, "rollouts/length_cut_share", COLORS[1], scale=100)
        panels[1].set_ylim(-4, 104)
        mark_rounds(panels[1], history, named=False)
    return figure


def explained_variance_figure(history: History) -> "Figure | None":
    """How much of the returns the critic foresaw; 1 is all, 0 is no more than their mean."""
    known = points(history, "update/explained_variance")
    if not known:
        return None
    figure, (axes,) = new_figure("Explained variance of the critic", "share of the returns' variance")
    for level in (0.0, 1.0):
        axes.axhline(level, color=MUTED, linewidth=0.9)
    draw_line(axes, history, "update/explained_variance", COLORS[0])
    lowest = min(value for _, value in known)
    axes.set_ylim(max(min(lowest, 0.0), LOWEST_EXPLAINED_VARIANCE) - 0.06, 1.06)
    if lowest < LOWEST_EXPLAINED_VARIANCE:
        note = f"below the axis: down to {lowest:.3g}"
        axes.text(0.99, 0.03, note, transform=axes.transAxes, ha="right", color="#555555", fontsize=8.5)
    mark_rounds(axes, history)
    return figure


def reward_hacking_figure(history: History) -> "Figure | None":
    """Whether the score outruns what training never sees, follows length, or feeds on repetition."""
    gaps = sorted(set(named("audit/<reward>_gap", (name for row in history for name in row))))
    gaps = [name for name in gaps if points(history, name)][: len(COLORS)]
    labels = {
        "gap": "score's lead, std",
        "audit/length_correlation": "correlation\nwith length",
        "audit/distinct_2": "distinct\nbigrams, %",
    }
    drawn = [key for key in labels if (gaps if key == "gap" else points(history, key))]
    if not drawn:
        return None
    figure, panels = new_figure("Is the score to be believed?", *(labels[key] for key in drawn))
    for key, axes in zip(drawn, panels, strict=True):
        if key == "gap":
            axes.axhline(0.0, color=MUTED, linewidth=0.9)
            for name, color in zip(gaps, COLORS, strict=False):
                held_out = name.removeprefix("audit/").removesuffix("_gap")
                draw_line(axes, history, name, color, label=f"rise of the score less rise of {held_out}")
            axes.legend(loc="best")
        elif key == "audit/length_correlation":
            axes.axhline(0.0, color=MUTED, linewidth=0.9)
            draw_line(axes, history, key, COLORS[1])
            axes.set_ylim(-1.05, 1.05)
        else:
            draw_line(axes, history, key, COLORS[2], scale=100)
        mark_rounds(axes, history, named=axes is panels[0])
    return figure


def calibration_figure(calibration: Mapping[str, Any]) -> "Figure | None":
    """Reliability of σ(s⁺ − s⁻) on preferences never trained on: how often the surer side was right."""
    bins = [b for b in calibration.get("bins", ()) if is_number(b["mean_confidence"]) and is_number(b["accuracy"])]
    if not bins:
        return None
    figure, (axes, counts) = new_figure("Calibration of the reward model", "share of pairs ranked rightly", "pairs")
    counts.set_xlabel("confidence of the reward model in its ranking, $\\sigma(|s_a - s_b|)$")
    counts.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    confidence, accuracy = [b["mean_confidence"] for b in bins], [b["accuracy"] for b in bins]
    pairs = [b["pairs"] for b in bins]
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1.1, linestyle="--", label="perfectly calibrated")
    # A standard error of the share, so that a bin of three pairs is not taken for a fact.
    errors = [math.sqrt(max(a * (1 - a), 0.0) / max(n, 1)) for a, n in zip(accuracy, pairs, strict=True)]
    label = "± 1 standard error"
    axes.errorbar(confidence, accuracy, yerr=errors, color=COLORS[0], marker="o", linewidth=1.4, capsize=2, label=label)
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(min(0.48, *(a - e - 0.02 for a, e in zip(accuracy, errors, strict=True))), 1.03)
    axes.legend(loc="lower right")
    axes.text(0.02, 0.96, calibration_summary(calibration), transform=axes.transAxes, va="top")
    counts.bar([0.525 + 0.05 * bin_of(c) for c in confidence], pairs, width=0.044, color=COLORS[0], alpha=0.75)
    return figure


def calibration_summary(calibration: Mapping[str, Any]) -> str:
    """The two numbers that the diagram comes to, as far as they are known."""
    named = {"accuracy": calibration.get("accuracy"), "calibration error": calibration.get("calibration_error")}
    lines = [f"{name} {value:.1%}" for name, value in named.items() if is_number(value)]
    return "\n".join([*lines, f"{calibration.get('pairs', 0):,} held-out pairs"])


def bin_of(confidence: float) -> int:
    """Which of the ten bins between 1/2 and 1 a confidence lies in."""
    return min(9, max(0, int((confidence - 0.5) * 20)))


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


def components_of(history: History) -> list[str]:
    """The names of the metrics that are components of the score, in a stable order."""
    names = set(named("score/<reward>", (name for row in history for name in row)))
    return sorted(name for name in names if points(history, name))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
