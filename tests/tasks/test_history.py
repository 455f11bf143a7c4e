"""Metrics of several outputs as one, against those of all their rows together."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.history import merged, rows_of
from tasks.metrics.standard_errors import mean_metric

shards = st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=6), min_size=1, max_size=4)


@given(shards)
def test_a_mean_over_shards_is_that_of_all_rows(parts):
    found = merged((len(part), {"x": statistics.fmean(part)}) for part in parts)
    assert found["x"] == pytest.approx(statistics.fmean(x for part in parts for x in part), abs=1e-9)


def test_a_standard_error_over_shards_is_that_of_the_sum_of_independent_parts():
    # 10 rows with 0.3 and 30 with 0.1: sqrt(3² + 3²) / 40.
    found = merged([(10, {"x": 1.0, "x_stderr": 0.3}), (30, {"x": 1.0, "x_stderr": 0.1})])
    assert found["x_stderr"] == pytest.approx(18**0.5 / 40)


def test_equal_shards_have_the_standard_error_of_their_rows():
    xs = [float(x % 7) for x in range(400)]
    parts = [xs[start : start + 100] for start in range(0, 400, 100)]
    found = merged((100, mean_metric("x", part)) for part in parts)
    assert found["x_stderr"] == pytest.approx(mean_metric("x", xs)["x_stderr"], rel=0.02)


def test_a_metric_that_one_output_lacks_is_the_others_own():
    assert merged([(10, {"x": 1.0}), (90, {"y": 2.0})]) == {"x": 1.0, "y": 2.0}


@given(shards)
def test_a_standard_deviation_over_shards_is_that_of_all_rows(parts):
    found = merged(
        (len(part), {"score/mean": statistics.fmean(part), "score/std": statistics.pstdev(part)}) for part in parts
    )
    assert found["score/std"] == pytest.approx(statistics.pstdev(x for part in parts for x in part), abs=1e-7)


def test_two_shards_of_opposite_scores_spread_as_far_as_they_lie_apart():
    parts = [(8, {"score/mean": sign, "score/std": 0.0}) for sign in (1.0, -1.0)]
    assert merged(parts) == {"score/mean": 0.0, "score/std": 1.0}


def test_the_largest_of_a_shard_is_the_largest_of_all():
    name = "rollouts/engine_logprob_max_difference"
    assert merged([(4, {name: 0.5}), (400, {name: 0.1})]) == {name: 0.5}
    assert math.isnan(merged([(4, {name: 0.5}), (4, {name: math.nan})])[name])
    assert math.isnan(merged([(4, {name: math.nan}), (4, {name: 0.5})])[name])


def test_what_is_measured_a_token_is_weighted_by_tokens():
    name, length = "rollouts/engine_logprob_difference", "rollouts/response_length"
    # 40 tokens of 0.1 and 360 of 0.5.
    found = merged([(4, {name: 0.1, length: 10.0}), (4, {name: 0.5, length: 90.0})])
    assert found == {name: pytest.approx(0.46), length: 50.0}


def test_warnings_add_up_over_shards_and_stages():
    parts = [(4, {"health/warnings": 1.0}), (4, {"health/warnings": 0.0}), (8, {"health/warnings": 2.0})]
    assert merged(parts) == {"health/warnings": 3.0}


def test_the_rows_of_a_run_are_in_order_and_apart_from_what_a_round_has_once():
    parts = {
        (2, 1): [(1, {"x": 3.0})],
        (1, 10): [(1, {"x": 2.0})],
        (1, 2): [(1, {"x": 1.0}), (3, {"x": 5.0})],
        (1, 0): [(1, {"e": 7.0})],
        (2, 2): [],
    }
    rows, rounds = rows_of(parts)
    assert rows == [
        {"round": 1, "iteration": 2, "x": 4.0},
        {"round": 1, "iteration": 10, "x": 2.0},
        {"round": 2, "iteration": 1, "x": 3.0},
    ]
    assert rounds == {1: {"e": 7.0}}
