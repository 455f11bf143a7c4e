"""Metrics of several outputs as one, each way worked by hand and against those of all their rows together."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics.combining import combine
from tasks.metrics.declared.glossary import GLOSSARY
from tasks.metrics.standard_errors import mean_metric

ENTROPY, DIFFERENCE, LARGEST = (
    "update/entropy",
    "rollouts/engine_logprob_difference",
    "rollouts/engine_logprob_max_difference",
)
LENGTH, REWARD = "rollouts/response_length", "audit/kind"
shards = st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=6), min_size=1, max_size=4)


def test_a_mean_by_rows_worked_by_hand():
    # (10 * 1 + 30 * 2) / 40
    assert combine([(10, {ENTROPY: 1.0}), (30, {ENTROPY: 2.0})]) == {ENTROPY: 1.75}


@given(shards)
def test_a_mean_over_shards_is_that_of_all_rows(parts):
    found = combine((len(part), {"score/mean": statistics.fmean(part)}) for part in parts)
    assert found["score/mean"] == pytest.approx(statistics.fmean(x for part in parts for x in part), abs=1e-9)


def test_a_mean_by_tokens_worked_by_hand():
    # 40 tokens of 0.1 and 360 of 0.5: (4 + 180) / 400.
    found = combine([(4, {DIFFERENCE: 0.1, LENGTH: 10.0}), (4, {DIFFERENCE: 0.5, LENGTH: 90.0})])
    assert found == {DIFFERENCE: pytest.approx(0.46), LENGTH: 50.0}


def test_a_mean_by_tokens_over_outputs_that_do_not_say_how_many_is_refused():
    with pytest.raises(KeyError, match="rollouts/response_length"):
        combine([(4, {"kl/per_token": 0.1}), (4, {"kl/per_token": 0.3})])


def test_a_sum_worked_by_hand():
    parts = [(4, {"health/warnings": 1.0}), (4, {"health/warnings": 0.0}), (8, {"health/warnings": 2.0})]
    assert combine(parts) == {"health/warnings": 3.0}
    assert combine([(4, {"seconds/warm_up": 1.5}), (1, {"seconds/warm_up": 2.0})]) == {"seconds/warm_up": 3.5}


def test_the_largest_of_a_shard_is_the_largest_of_all():
    assert combine([(4, {LARGEST: 0.5}), (400, {LARGEST: 0.1})]) == {LARGEST: 0.5}


@pytest.mark.parametrize("values", [(0.5, math.nan), (math.nan, 0.5)])
def test_what_is_no_number_is_larger_than_all(values):
    assert math.isnan(combine((4, {LARGEST: value}) for value in values)[LARGEST])


def test_the_last_is_the_one_that_was_made_last():
    assert combine([(400, {"kl/coef": 0.2}), (4, {"kl/coef": 0.1})]) == {"kl/coef": 0.1}


def test_two_shards_of_opposite_scores_spread_as_far_as_they_lie_apart():
    parts = [(8, {"score/mean": sign, "score/std": 0.0}) for sign in (1.0, -1.0)]
    assert combine(parts) == {"score/mean": 0.0, "score/std": 1.0}


def test_a_standard_deviation_from_moments_worked_by_hand():
    # Mean (1 * 0 + 3 * 4) / 4 = 3; mean of squares (1 * 4 + 3 * 0) / 4 = 1; around 3: (1 * 9 + 3 * 1) / 4 = 3.
    parts = [(1, {"score/mean": 0.0, "score/std": 2.0}), (3, {"score/mean": 4.0, "score/std": 0.0})]
    assert combine(parts) == {"score/mean": 3.0, "score/std": 2.0}


@given(shards)
def test_a_standard_deviation_over_shards_is_that_of_all_rows(parts):
    found = combine(
        (len(part), {"score/mean": statistics.fmean(part), "score/std": statistics.pstdev(part)}) for part in parts
    )
    assert found["score/std"] == pytest.approx(statistics.pstdev(x for part in parts for x in part), abs=1e-7)


def test_the_standard_deviation_of_a_reward_lies_around_that_rewards_mean():
    tone, calm = "evaluation/reference_tone", "evaluation/reference_calm"
    parts = [(8, {tone: sign, f"{tone}_std": 0.0, calm: 0.0, f"{calm}_std": 0.5}) for sign in (1.0, -1.0)]
    assert combine(parts) == {tone: 0.0, f"{tone}_std": 1.0, calm: 0.0, f"{calm}_std": 0.5}


def test_a_standard_error_over_shards_is_that_of_the_sum_of_independent_parts():
    # 10 rows with 0.3 and 30 with 0.1: sqrt(3² + 3²) / 40.
    found = combine([(10, {REWARD: 1.0, f"{REWARD}_stderr": 0.3}), (30, {REWARD: 1.0, f"{REWARD}_stderr": 0.1})])
    assert found[f"{REWARD}_stderr"] == pytest.approx(18**0.5 / 40)


def test_equal_shards_have_the_standard_error_of_their_rows():
    xs = [float(x % 7) for x in range(400)]
    parts = [xs[start : start + 100] for start in range(0, 400, 100)]
    found = combine((100, mean_metric(REWARD, part)) for part in parts)
    assert found[f"{REWARD}_stderr"] == pytest.approx(mean_metric(REWARD, xs)[f"{REWARD}_stderr"], rel=0.02)


def test_a_metric_that_one_output_lacks_is_the_others_own():
    assert combine([(10, {ENTROPY: 1.0}), (90, {"kl/mean": 2.0})]) == {ENTROPY: 1.0, "kl/mean": 2.0}


def test_outputs_without_a_row_have_no_mean_but_0():
    assert combine([(0, {ENTROPY: 1.0}), (0, {ENTROPY: 2.0})]) == {ENTROPY: 0.0}


@pytest.mark.parametrize("name", ["update/entropi", "update/entropy_stderr"])
def test_what_nobody_declared_is_not_combined(name):
    with pytest.raises(AssertionError, match=f"the metric {name} is declared nowhere"):
        combine([(1, {name: 1.0}), (1, {name: 2.0})])


def test_each_way_of_combining_is_some_metric_s():
    # The cases above are all there are, but for standard errors, which are declared beside their metrics.
    assert {metric.combines.way for metric in GLOSSARY.values()} == {
        "mean by rows",
        "mean by tokens",
        "sum",
        "max",
        "last",
        "std from moments",
    }


def test_equal_outputs_are_one_of_them_however_a_metric_combines_but_for_sums():
    for name, metric in GLOSSARY.items():
        beside = {metric.combines.beside: 3.0} if metric.combines.beside else {}
        found = combine([(5, {name: 2.0, **beside})] * 3)[name]
        assert found == pytest.approx(6.0 if metric.combines.way == "sum" else 2.0)
