"""The charts of a run, through all its rounds."""

from collections.abc import Mapping
from typing import Any

from tasks.charts.figure import MUTED, Figure, History, Panel, Series, is_number, knows, layout_of, rounded
from tasks.charts.kinds import curves
from tasks.charts.of_reward_model import calibration_chart
from tasks.metrics.declared import declaration, named

MOST_LINES = 5
"""Components of the score, or held-out rewards, that one chart shows."""
LOWEST_EXPLAINED_VARIANCE = -1.0
"""Below it the axis ends: how bad a useless critic is says nothing, and would flatten the rest of the curve."""


def charts_of(history: History, calibration: Mapping[str, Any] | None = None) -> dict[str, Figure]:
    """All charts of a run of which something is known, by name, the most telling first."""
    charts = {
        "reward": reward_chart(history),
        "reward_hacking": hacking_chart(history),
        "kl": kl_chart(history),
        "response_length": length_chart(history),
        "entropy": curves(history, "Entropy of the policy", [panel("update/entropy", "nats per token")]),
        "explained_variance": explained_variance_chart(history),
        "reward_model_accuracy": accuracy_chart(history),
        "reward_against_kl": reward_against_kl_chart(history),
        "reward_model_calibration": None if calibration is None else calibration_chart(calibration),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def panel(metric: str, title: str, **more: Any) -> Panel:
    """A metric alone, with the range in which its declaration calls it healthy."""
    healthy = declaration(metric).healthy
    return Panel(title=title, series=[Series(metric=metric)], low=healthy.low, high=healthy.high, **more)


def all_named(history: History, pattern: str) -> list[str]:
    """The metrics of a declared pattern that have a value, by name."""
    names = sorted(set(named(pattern, (name for row in history for name in row))))
    return [name for name in names if knows(history, name)]


def reward_chart(history: History) -> Figure | None:
    """The score with one standard deviation over responses, its components, and the rewards that training never sees."""
    components = all_named(history, "score/<reward>")
    held_out = all_named(history, "audit/<reward>")[:MOST_LINES]
    # A single component is the score itself, up to its weight.
    shown = components[: MOST_LINES - len(held_out)] if len(components) > 1 else []
    lines = [Series(metric="score/mean", label="score", band="score/std")]
    lines += [Series(metric=name, label=f"{words(name)} (held out)") for name in held_out]
    lines += [Series(metric=name, label=words(name)) for name in shown]
    return curves(history, "Score and held-out rewards", [Panel(title="mean over responses", series=lines)])


def words(metric: str) -> str:
    return metric.partition("/")[2].replace("_", " ")


def kl_chart(history: History) -> Figure | None:
    """How far the policy has moved from its reference, and what each nat costs."""
    panels = [
        panel("kl/mean", "KL, nats per response", weight=2),
        Panel(title="coefficient of the penalty", series=[Series(metric="kl/coef", label="coefficient")]),
    ]
    return curves(history, "KL(policy ‖ reference)", panels)


def length_chart(history: History) -> Figure | None:
    """Mean length, and the share of responses that ran into the limit."""
    panels = [
        panel("rollouts/response_length", "tokens, mean over responses", weight=2),
        Panel(
            title="cut off at the limit, %",
            series=[Series(metric="rollouts/length_cut_share", label="cut off at the limit, %", scale=100)],
            range=(-4, 104),
        ),
    ]
    return curves(history, "Length of the responses", panels)


def explained_variance_chart(history: History) -> Figure | None:
    """How much of the returns the critic foresaw; 1 is all, 0 is no more than their mean."""
    name = "update/explained_variance"
    values = [row[name] for row in history if is_number(row.get(name))]
    low = max(min(values, default=0.0), LOWEST_EXPLAINED_VARIANCE)
    own = panel(name, "share of the variance", lines=(0.0, 1.0), range=(rounded(min(low, 0.0) - 0.06), 1.06))
    return curves(history, "Explained variance of the critic", [own])


def accuracy_chart(history: History) -> Figure | None:
    """How many held-out preferences the reward model ranks as people do, round by round."""
    series = Series(metric="reward_model/accuracy", label="reward model")
    own = Panel(title="share of held-out pairs", series=[series], range=(0.45, 1.02), lines=(0.5,))
    return curves(history, "Accuracy of the reward model", [own])


def hacking_chart(history: History) -> Figure | None:
    """Whether the score outruns what training never sees, follows length, or feeds on repetition."""
    gaps = all_named(history, "audit/<reward>_gap")[:MOST_LINES]
    panels = [
        Panel(
            title="rise of the score less rise of a held-out reward, sd",
            series=[Series(metric=name, label=words(name).removesuffix(" gap")) for name in gaps],
            lines=(0.0,),
            weight=2,
        ),
        panel("audit/length_correlation", "correlation of score and length", range=(-1.05, 1.05), lines=(0.0,)),
        Panel(
            title="distinct bigrams, %",
            series=[Series(metric="audit/distinct_2", label="distinct bigrams, %", scale=100)],
        ),
    ]
    return curves(history, "Does the score outrun the held-out rewards?", panels)


def reward_against_kl_chart(history: History) -> Figure | None:
    """What each nat of distance from the reference bought."""
    both = [row for row in history if is_number(row.get("kl/mean")) and is_number(row.get("score/mean"))]
    if not both:
        return None
    numbers = [history.index(row) + 1 for row in both]
    points = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [rounded(row["kl/mean"]) for row in both],
        "y": [rounded(row["score/mean"]) for row in both],
        "customdata": [[row["round"], row["iteration"]] for row in both],
        "line": {"color": MUTED, "width": 1},
        "marker": {
            "color": numbers,
            "colorscale": "Viridis",
            "size": 8,
            "colorbar": {"title": {"text": "iteration", "font": {"size": 10}}, "thickness": 10, "outlinewidth": 0},
            "showscale": len(both) > 1,
        },
        "hovertemplate": "score %{y:.3g} at %{x:.3g} nats<br>round %{customdata[0]}, iteration %{customdata[1]}"
        "<extra></extra>",
    }
    layout = layout_of("Score against KL")
    layout["xaxis"] = {"title": {"text": "KL, nats per response", "font": {"size": 11}}}
    layout["yaxis"] = {"title": {"text": "score, mean over responses", "font": {"size": 11}}}
    return {"data": [points], "layout": layout}
