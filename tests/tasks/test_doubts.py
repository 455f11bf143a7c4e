"""What speaks against a gain: by slow definitions over tables made by hand."""

import math
import statistics

import pyarrow as pa
import pytest

from tasks.config.rewards import FunctionReward, ModelReward, TrainedReward
from tasks.evaluate_policy import doubts
from tasks.metrics.policy_comparison import distinct_metric, empty_metric, lead

REWARDS = {
    "brief": FunctionReward(function="m:brief", weight=3.0),
    "learned": TrainedReward(model="trained", weight=2.0),
    "other": ModelReward(model="some/model", weight=-1.0),
}


def a_table(responses, *, learned, other, brief, kind):
    score = [3 * b + 2 * a - c for a, b, c in zip(learned, brief, other, strict=True)]
    return pa.table(
        {
            "prompt_id": ["a", "a", "b", "b", "c", "c"],
            "response": [text for text, _ in responses],
            "response_token_ids": [ids for _, ids in responses],
            "score": score,
            "score_learned": learned,
            "score_other": other,
            "score_brief": brief,
            "score_kind": kind,
        }
    )


@pytest.fixture(scope="module")
def tables():
    said = (" so", [1, 2])
    policy = a_table(
        [("", [9]), (" \n", [7, 9]), said, said, (" so so so", [1, 2, 1, 2, 1, 2]), said],
        learned=[1.0, 2.0, 3.0, 4.0, 5.0, 7.0], other=[0.0] * 6, brief=[1.0] * 6, kind=[0.0, 1.0, 0.0, 2.0, 0.0, 1.0],
    )  # fmt: skip
    reference = a_table(
        [said, said, ("", [9]), said, said, said],
        learned=[0.0, 1.0, 0.0, 2.0, 1.0, 1.0], other=[1.0, 0.0, 2.0, 1.0, 0.0, 0.0], brief=[5.0, -3.0, 1.0, 0.0, 2.0, 9.0],
        kind=[1.0, 2.0, 0.0, 3.0, 2.0, 1.0],
    )  # fmt: skip
    return policy, reference


def test_lengths_empty_and_repetitive_responses_are_counted_for_both(tables):
    found = doubts(*tables, REWARDS, ["kind"])
    assert found["evaluation/response_length"] == pytest.approx((1 + 2 + 2 + 2 + 6 + 2) / 6)
    assert found["evaluation/reference_response_length"] == pytest.approx(11 / 6)
    # The sign that ends a response is no text, nor is white space.
    assert found["evaluation/empty_share"] == pytest.approx(2 / 6)
    assert found["evaluation/reference_empty_share"] == pytest.approx(1 / 6)
    # A response of one token has no pair; 1 2 1 2 1 2 has five pairs, two of them distinct.
    assert found["evaluation/distinct_2"] == pytest.approx((1 + 1 + 1 + 2 / 5 + 1) / 5)
    assert found["evaluation/reference_distinct_2"] == 1.0
    # By prompts: 2 empty of one, none of the two others.
    assert found["evaluation/empty_share_stderr"] == pytest.approx(statistics.stdev([1, 0, 0]) / math.sqrt(3))


def test_the_gap_at_the_end_is_the_difference_of_the_gains(tables):
    policy, reference = tables

    def gain(name):
        now, before = (table.column(name).to_pylist() for table in (policy, reference))
        return (statistics.mean(now) - statistics.mean(before)) / statistics.stdev(before)

    found = doubts(policy, reference, REWARDS, ["kind"])
    assert found["evaluation/kind_gap"] == pytest.approx(gain("score") - gain("score_kind"))
    # Of the differences at each prompt, by hand.
    stds = [statistics.stdev(reference.column(name).to_pylist()) for name in ("score", "score_kind")]
    lead_of = [
        [s / stds[0] - k / stds[1] for s, k in zip(*(t.column(n).to_pylist() for n in ("score", "score_kind")), strict=True)]
        for t in (policy, reference)
    ]  # fmt: skip
    difference = [now - before for now, before in zip(*lead_of, strict=True)]
    of_prompts = [statistics.mean(difference[i : i + 2]) for i in (0, 2, 4)]
    assert found["evaluation/kind_gap_stderr"] == pytest.approx(statistics.stdev(of_prompts) / math.sqrt(3))


def test_what_is_held_against_the_held_out_reward_is_what_reward_models_say_of_the_reference(tables):
    policy, reference = tables
    columns = [reference.column(f"score_{name}").to_pylist() for name in ("learned", "other", "kind")]
    expected = statistics.correlation([2 * a - b for a, b, _ in zip(*columns, strict=True)], columns[2])
    found = doubts(policy, reference, REWARDS, ["kind"])
    assert found["evaluation/reference_kind_correlation"] == pytest.approx(expected)
    # Three prompts, whatever their samples.
    assert found["evaluation/reference_kind_correlation_stderr"] == pytest.approx((1 - expected**2) / math.sqrt(2))


def test_without_a_reward_model_there_is_nothing_that_could_have_learned(tables):
    rules = {"brief": REWARDS["brief"]}
    assert "evaluation/reference_kind_correlation" not in doubts(*tables, rules, ["kind"])
    assert "evaluation/kind_gap" in doubts(*tables, rules, ["kind"])


def test_a_lead_is_counted_in_standard_deviations_of_the_start_and_a_constant_has_none():
    start = {"score": {"mean": 1.0, "std": 2.0}, "other": {"mean": 0.0, "std": 0.5}}
    assert lead([3.0, 1.0], [0.0, 1.0], **start) == [1.0, -2.0]
    still = {"score": {"mean": 1.0, "std": 0.0}, "other": {"mean": 0.0, "std": 0.5}}
    assert lead([3.0, 1.0], [0.0, 1.0], **still) == [0.0, -2.0]


def test_responses_without_pairs_of_tokens_have_no_share_of_distinct_ones():
    assert distinct_metric("x", [[1], []], 2, ["a", "b"]) == {}
    assert distinct_metric("x", [[1], [1, 1, 1]], 2, ["a", "b"]) == {"x": 0.5}


def test_every_response_that_says_something_counts():
    assert empty_metric("x", ["", " ", "\n\t", "a", " . "], "abcde")["x"] == pytest.approx(0.6)
