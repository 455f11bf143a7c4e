"""Charts: which ones there are, what stands in them, and that the same numbers give the same bytes."""

import json
import math

import plotly.graph_objects as go
import pytest

from tasks.charts import calibration_chart, charts_of, curves, histogram, scatter
from tasks.charts.figure import Panel, Series, heights

BY_HISTORY = {
    "reward", "reward_hacking", "kl", "response_length", "entropy", "explained_variance", "reward_model_accuracy",
    "reward_against_kl",
}  # fmt: skip


def history(rounds=2, iterations=3):
    return [
        {
            "round": round,
            "iteration": iteration,
            "score/mean": 0.1 * iteration + round,
            "score/std": 1.0,
            "score/helpful": 0.2 * iteration,
            "score/short": -0.1 * iteration,
            "kl/mean": 0.5 * iteration + round,
            "rollouts/response_length": 20.0 + iteration,
            "rollouts/length_cut_share": 0.25,
            "update/entropy": 3.0 - 0.1 * iteration,
            "update/explained_variance": -4.0 + iteration,
            "reward_model/accuracy": 0.8,
            "audit/quality": 0.5 * iteration,
            "audit/quality_gap": 0.1 * iteration,
            "audit/length_correlation": 0.2 * iteration,
            "audit/distinct_2": 1 - 0.1 * iteration,
        }
        for round in range(1, rounds + 1)
        for iteration in range(1, iterations + 1)
    ]


def calibration():
    bins = [
        {"lower": 0.5 + 0.05 * b, "pairs": 10 * b + 1, "mean_confidence": 0.525 + 0.05 * b, "accuracy": 0.5 + 0.05 * b}
        for b in range(10)
    ]
    return {"pairs": 460, "accuracy": 0.75, "mean_margin": 0.8, "calibration_error": 0.03, "bins": bins}


def named(chart, label):
    (found,) = [trace for trace in chart["data"] if trace.get("name") == label]
    return found


def test_every_chart_is_one_that_plotly_takes():
    charts = charts_of(history(), calibration())
    assert set(charts) == BY_HISTORY | {"reward_model_calibration"}
    for chart in [
        *charts.values(),
        histogram("a", "b", {"x": [1.0, 2.0]}),
        scatter("a", ("x", [1]), ("y", [2]), ["id"]),
    ]:
        # It refuses whatever is no field of its schema.
        go.Figure(chart)


def test_the_same_numbers_give_the_same_bytes():
    assert json.dumps(charts_of(history(), calibration())) == json.dumps(charts_of(history(), calibration()))


def test_a_point_says_its_round_and_iteration():
    line = named(charts_of(history())["reward"], "score")
    assert line["x"] == [1, 2, 3, 4, 5, 6]
    assert line["y"] == pytest.approx([1.1, 1.2, 1.3, 2.1, 2.2, 2.3])
    assert line["customdata"] == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_the_score_has_a_band_of_its_spread_and_the_held_out_rewards_beside_it():
    chart = charts_of(history(1, 2))["reward"]
    assert named(chart, "± 1 standard deviation")["y"] == pytest.approx([2.1, 2.2, 0.2, 0.1])
    assert named(chart, "quality (held out)")["y"] == [0.5, 1.0]
    assert named(chart, "helpful")["y"] == [0.2, 0.4]


def test_one_component_is_the_score_itself_and_is_not_drawn_twice():
    rows = [{name: value for name, value in row.items() if name != "score/short"} for row in history()]
    assert "helpful" not in [trace["name"] for trace in charts_of(rows)["reward"]["data"]]


def test_rounds_are_marked_where_there_are_several():
    layout = charts_of(history(3, 2))["entropy"]["layout"]
    lines = [shape["x0"] for shape in layout["shapes"] if shape["type"] == "line" and shape["xref"] == "x"]
    assert lines == [2.5, 4.5]
    assert [note["text"] for note in layout["annotations"]] == ["round 1", "round 2", "round 3", "nats per token"]
    assert [note["text"] for note in charts_of(history(1, 6))["entropy"]["layout"]["annotations"]] == ["nats per token"]
    many = charts_of(history(40, 1))["entropy"]["layout"]["annotations"]
    assert [note["text"] for note in many[:-1]] == [str(4 * n) for n in range(1, 11)]


def test_a_healthy_range_is_shaded_as_far_as_it_reaches():
    rows = history(1, 3)

    def shaded(**ends):
        panel = Panel(title="entropy", series=[Series(metric="update/entropy")], **ends)
        (band,) = [shape for shape in curves(rows, "t", [panel])["layout"]["shapes"] if shape["type"] == "rect"]
        return band["y0"], band["y1"], band["yref"]

    # The values go from 2.7 to 2.9, and a twentieth of that is left at both ends.
    assert shaded(low=2.75, high=2.8) == (2.75, 2.8, "y")
    assert shaded(low=2.75) == (2.75, 2.91, "y")
    assert shaded(high=2.8) == (2.69, 2.8, "y")
    # An axis is not made longer for a range that no value is near.
    assert shaded(low=0.0, high=30.0) == (2.69, 2.91, "y")
    assert shaded(low=5.0) == (5.0, 5.0, "y")


def test_a_useless_critic_does_not_flatten_the_curve():
    low, high = charts_of(history())["explained_variance"]["layout"]["yaxis"]["range"]
    assert (low, high) == pytest.approx((-1.06, 1.06))


@pytest.mark.parametrize(
    ("metric", "gone"),
    [
        ("score/mean", {"reward_against_kl"}),
        ("kl/mean", {"kl", "reward_against_kl"}),
        ("rollouts/response_length", set()),
        ("rollouts/length_cut_share", set()),
        ("score/std", set()),
        ("update/entropy", {"entropy"}),
        ("update/explained_variance", {"explained_variance"}),
        ("reward_model/accuracy", {"reward_model_accuracy"}),
        ("audit/quality_gap", set()),
        ("audit/length_correlation", set()),
        ("audit/distinct_2", set()),
    ],
)
def test_a_metric_that_no_row_has_takes_only_its_own_charts_with_it(metric, gone):
    rows = [{name: value for name, value in row.items() if name != metric} for row in history(1, 2)]
    assert set(charts_of(rows)) == BY_HISTORY - gone


def test_a_metric_missing_in_some_rows_is_left_out_there():
    rows = history()
    for row, value in zip(rows, (None, math.nan, math.inf), strict=False):
        row.update(dict.fromkeys(("score/mean", "kl/mean", "update/entropy"), value))
    charts = charts_of(rows)
    assert set(charts) == BY_HISTORY
    assert charts["entropy"]["data"][0]["x"] == [4, 5, 6]
    json.dumps(charts, allow_nan=False)


def test_without_history_there_is_no_chart():
    assert charts_of([], {"pairs": 0, "bins": []}) == {}


def test_a_long_run_is_a_line_without_markers():
    assert charts_of(history(1, 61))["entropy"]["data"][0]["mode"] == "lines"
    assert charts_of(history(1, 60))["entropy"]["data"][0]["mode"] == "lines+markers"


def test_panels_share_the_height_by_their_weights():
    (upper, lower) = heights([2, 1])
    assert upper[1] == 1
    assert lower[0] == pytest.approx(0, abs=1e-6)
    assert upper[1] - upper[0] == pytest.approx(2 * (lower[1] - lower[0]), rel=1e-5)


def test_a_bin_of_few_pairs_has_a_wide_error():
    chart = calibration_chart(
        {"pairs": 4, "bins": [{"lower": 0.5, "pairs": 4, "mean_confidence": 0.52, "accuracy": 0.5}]}
    )
    assert named(chart, "± 1 standard error")["error_y"]["array"] == [0.25]


def test_distributions_over_each_other_have_the_same_bins():
    chart = histogram("t", "score", {"a": [0.0, 1.0, math.nan], "b": [9.0, 10.0]}, num_bins=10)
    assert [trace["y"] for trace in chart["data"]] == [[1, 1, *[0] * 8], [*[0] * 9, 2]]
    assert chart["data"][0]["x"] == chart["data"][1]["x"] == [0.5 + i for i in range(10)]
    assert histogram("t", "score", {"a": [math.nan]}) is None


def test_a_limit_is_a_line_in_a_distribution_that_reaches_near_it():
    chart = histogram("t", "tokens", {"a": [1.0, 5.0]}, mark=("context", 10.0))
    (line,), (word,) = chart["layout"]["shapes"], chart["layout"]["annotations"]
    assert (line["x0"], line["x1"], word["text"], word["x"]) == (10.0, 10.0, "context", 10.0)
    # Farther away, the values would be a single bar beside it.
    assert "shapes" not in histogram("t", "tokens", {"a": [1.0, 5.0]}, mark=("context", 11.0))["layout"]


def test_a_point_of_a_scatter_leads_to_its_row():
    chart = scatter("t", ("length", [1, 2, None]), ("score", [0.5, math.nan, 1.0]), ["a", "b", "c"], ["A", "B", "C"])
    (points,) = chart["data"]
    assert (points["x"], points["y"], points["customdata"], points["text"]) == ([1], [0.5], ["a"], ["A"])
    assert scatter("t", ("x", [None]), ("y", [1]), ["a"]) is None


def test_of_many_points_some_are_drawn_evenly_from_all_and_never_by_webgl():
    numbers = list(range(5001))
    chart = scatter("t", ("x", numbers), ("y", numbers), numbers)
    assert chart["data"][0]["type"] == "scatter"
    assert chart["data"][0]["customdata"] == numbers[::3]


def test_markup_in_the_text_of_a_point_is_shown():
    chart = scatter("t", ("x", [1]), ("y", [1]), ["a"], ["<b>bold</b> & <a href='x'>y</a>"])
    assert chart["data"][0]["text"] == ["&lt;b&gt;bold&lt;/b&gt; &amp; &lt;a href='x'&gt;y&lt;/a&gt;"]
