"""Plots: which ones are drawn, that they are pictures, and that the same history gives the same bytes."""

import math
import struct
from pathlib import Path

import pytest

from tasks.tracking import charts as plots
from tasks.tracking.charts import draw_plots

BY_HISTORY = {
    "reward.png",
    "kl.png",
    "reward_against_kl.png",
    "response_length.png",
    "entropy.png",
    "explained_variance.png",
    "reward_hacking.png",
}


def history(rounds: int = 2, iterations: int = 3) -> list[dict]:
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
            "audit/quality_gap": 0.1 * iteration,
            "audit/length_correlation": 0.2 * iteration,
            "audit/distinct_2": 1 - 0.1 * iteration,
        }
        for round in range(1, rounds + 1)
        for iteration in range(1, iterations + 1)
    ]


def calibration() -> dict:
    bins = [
        {"lower": 0.5 + 0.05 * b, "pairs": 10 * b + 1, "mean_confidence": 0.525 + 0.05 * b, "accuracy": 0.5 + 0.05 * b}
        for b in range(10)
    ]
    return {"pairs": 460, "accuracy": 0.75, "mean_margin": 0.8, "calibration_error": 0.03, "bins": bins}


def drawn(directory: Path, rows: list[dict], quality: dict | None = None) -> dict[str, bytes]:
    draw_plots(directory, rows, quality)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def topics(monkeypatch):
    """Which plots a history gives, without the time that rendering them takes."""

    def names(rows: list[dict], quality: dict | None = None) -> set[str]:
        made: set[str] = set()
        with monkeypatch.context() as patch:
            patch.setattr(plots, "save", lambda figure, path: made.add(path.name) if figure else None)
            draw_plots(Path("/tmp"), rows, quality)
        return made

    return names


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height in a PNG's header (ISO/IEC 15948, 11.2.2)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_every_topic_is_a_picture(tmp_path):
    pictures = drawn(tmp_path / "plots", history(), calibration())
    assert set(pictures) == BY_HISTORY | {"reward_model_calibration.png"}
    for png in pictures.values():
        assert size_of(png) >= (800, 450)
        assert len(png) > 10_000


def test_the_same_history_gives_the_same_bytes_whatever_the_users_style(tmp_path):
    import matplotlib

    before = drawn(tmp_path / "a", history(), calibration())
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 22, "savefig.dpi": 10}):
        assert drawn(tmp_path / "b", history(), calibration()) == before


def test_no_program_or_time_is_written_into_a_picture(tmp_path):
    for png in drawn(tmp_path, [], calibration()).values():
        assert b"Software" not in png
        assert b"tEXt" not in png
        assert b"tIME" not in png


def test_without_a_calibration_there_is_no_diagram_of_it(topics):
    assert topics(history(), None) == BY_HISTORY


@pytest.mark.parametrize(
    ("metric", "gone"),
    [
        ("score/mean", {"reward.png", "reward_against_kl.png"}),
        ("kl/mean", {"kl.png", "reward_against_kl.png"}),
        ("rollouts/response_length", {"response_length.png"}),
        ("rollouts/length_cut_share", set()),
        ("score/std", set()),
        ("update/entropy", {"entropy.png"}),
        ("update/explained_variance", {"explained_variance.png"}),
        ("audit/quality_gap", set()),
        ("audit/length_correlation", set()),
        ("audit/distinct_2", set()),
    ],
)
def test_a_metric_that_no_row_has_takes_only_its_own_plots_with_it(topics, metric, gone):
    rows = [{name: value for name, value in row.items() if name != metric} for row in history(1, 2)]
    assert topics(rows) == BY_HISTORY - gone


def test_without_any_audit_there_is_no_plot_of_one(topics):
    rows = [{name: value for name, value in row.items() if not name.startswith("audit/")} for row in history()]
    assert topics(rows) == BY_HISTORY - {"reward_hacking.png"}


def test_a_metric_missing_in_some_rows_leaves_a_gap(tmp_path):
    rows = history()
    names = ("score/mean", "score/std", "kl/mean", "update/entropy", "update/explained_variance")
    for row, value in zip(rows, (None, math.nan, math.inf), strict=False):
        row.update(dict.fromkeys(names, value))
    del rows[4]["rollouts/response_length"]
    assert set(drawn(tmp_path, rows)) == BY_HISTORY


def test_one_iteration_is_enough_and_none_draws_nothing(tmp_path, topics):
    assert set(drawn(tmp_path, history(1, 1))) == BY_HISTORY
    assert topics([], {"pairs": 0, "bins": []}) == set()


def test_no_figure_is_left_in_memory(topics):
    from matplotlib import pyplot

    topics(history(), calibration())
    assert pyplot.get_fignums() == []
