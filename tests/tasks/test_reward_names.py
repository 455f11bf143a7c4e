"""Names of rewards, held against the names of declared metrics."""

import re

import pytest

from tasks.config.rewards import OF_A_REWARD, OURS, collision

# The names that would make one of our metrics, by a metric of a reward: `audit/<reward>_correlation`, of "length".
TAKEN = [
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "empty_share",
    "kl",
    "length",
    "length_correlation",
    "mean",
    "reference_distinct_2",
    "reference_empty_share",
    "reference_response_length",
    "reference_score",
    "reference_score_std",
    "response_length",
    "score",
    "score_gain",
    "score_std",
    "std",
]


def test_these_are_all_the_names_that_are_taken():
    patterns = [re.escape(template).replace("<reward>", r"(\w+)") for template in OF_A_REWARD]
    found = {match[1] for pattern in patterns for metric in OURS if (match := re.fullmatch(pattern, metric))}
    assert found == set(TAKEN)


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_would_make_one_of_our_metrics_is_refused(name):
    assert f"the name {name!r} would make a metric" in collision([name])


@pytest.mark.parametrize(
    ("names", "metric"),
    [
        (["tone", "tone_gain"], "audit/tone_gain"),
        (["tone_gain", "tone"], "audit/tone_gain"),
        (["tone", "reference_tone"], "evaluation/reference_tone"),
        (["tone", "tone_correlation"], "audit/tone_correlation"),
        (["tone", "reference_tone_std"], "evaluation/reference_tone_std"),
        (["tone", "tone_gap"], "audit/tone_gap"),
    ],
)
def test_two_rewards_whose_metrics_would_have_one_name_are_refused(names, metric):
    assert f"would make a metric {metric}, which the reward" in collision(names)


def test_a_standard_error_is_no_reward():
    assert "stands for a standard error" in collision(["tone_stderr"])


@pytest.mark.parametrize("names", [["quality", "brevity", "true_quality"], ["tone", "tone2"], ["lengths", "std_of_x"]])
def test_other_names_stand_together(names):
    assert collision(names) is None
