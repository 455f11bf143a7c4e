"""Names of rewards, held against the glossary of metrics, which a test holds against real runs."""

import re
from pathlib import Path

import pytest

from tasks.config.reward_names import OF_A_REWARD, OURS, collision

GLOSSARY = (Path(__file__).resolve().parents[2] / "tasks" / "metrics" / "README.md").read_text()
# The first cell of each row of the table: `a/b`, `a/<reward>_c`, and `…_std` after a name for the same with an ending.
CELLS = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", GLOSSARY.partition("| metric | formula |")[2], re.M)


def metrics():
    found = []
    for cell in CELLS:
        names = re.findall(r"`([^`]+)`", cell)
        for name in names:
            found += [f"{whole}{name[1:]}" for whole in names if "/" in whole] if name.startswith("…") else [name]
    return [
        name
        for name in found
        if not name.startswith("seconds/") and name.startswith(("score/", "audit/", "evaluation/"))
    ]


TEMPLATES = [name for name in metrics() if "<reward>" in name]
FIXED = [name for name in metrics() if "<reward>" not in name]
TAKEN = sorted(
    {
        found[1]
        for template in TEMPLATES
        for metric in FIXED
        if (found := re.fullmatch(re.escape(template).replace("<reward>", r"(\w+)"), metric))
    }
)


def test_the_table_was_read():
    assert {"score/<reward>", "audit/<reward>_gap", "evaluation/reference_<reward>_std"} <= set(TEMPLATES)
    assert {"score/mean", "audit/length_correlation", "evaluation/reference_distinct_2"} <= set(FIXED)
    assert {"length", "kl", "mean", "std", "score", "distinct_1", "empty_share", "response_length"} <= set(TAKEN)


def test_every_metric_of_a_reward_and_beside_rewards_is_known():
    assert {template.replace("<reward>", "{}") for template in TEMPLATES} <= set(OF_A_REWARD)
    assert set(FIXED) <= {*OURS, "evaluation/score_std"}


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
