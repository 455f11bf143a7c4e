"""Standard errors, against their definitions, against simulated samples, and with cases worked by hand."""

import math
import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_core import explained_variance
from tasks.metrics.explained_variance import explained_variance_stderr
from tasks.metrics.standard_errors import correlation_stderr, mean_metric, mean_stderr, with_stderr

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(numbers)
def test_of_independent_values_it_is_their_standard_deviation_over_the_root_of_their_number(xs):
    assert mean_stderr(xs) == pytest.approx(statistics.stdev(xs) / math.sqrt(len(xs)), abs=1e-9)


@given(numbers)
def test_of_groups_of_one_size_it_is_that_of_their_means(means):
    # Three responses to each prompt that lie around the prompt's own mean by -1, 0 and 1.
    xs = [mean + offset for mean in means for offset in (-1.0, 0.0, 1.0)]
    groups = [number for number, _ in enumerate(means) for _ in range(3)]
    assert mean_stderr(xs, groups) == pytest.approx(mean_stderr(means), abs=1e-9)


def test_equal_responses_to_a_prompt_count_once_and_not_for_each():
    # Two prompts, means 0 and 2: the mean's standard error is sqrt(2) / sqrt(2) = 1, however often each was sampled.
    assert mean_stderr([0.0] * 50 + [2.0] * 50, ["a"] * 50 + ["b"] * 50) == pytest.approx(1.0)
    assert mean_stderr([0.0] * 50 + [2.0] * 50) == pytest.approx(0.1005, abs=1e-4)


@pytest.mark.parametrize(("xs", "groups"), [([1.0], None), ([], None), ([1.0, 2.0, 3.0], ["a", "a", "a"])])
def test_of_one_value_or_one_prompt_it_is_unknown(xs, groups):
    assert mean_stderr(xs, groups) is None


def test_it_is_how_far_means_of_other_samples_lie_apart():
    draw = random.Random(0)

    def a_sample():
        # Groups of unequal size with something in common.
        xs, groups = [], []
        for group in range(30):
            common = draw.gauss(0, 1)
            for _ in range(draw.randint(1, 5)):
                xs.append(common + draw.gauss(0, 0.5))
                groups.append(group)
        return xs, groups

    samples = [a_sample() for _ in range(600)]
    spread = statistics.stdev(statistics.fmean(xs) for xs, _ in samples)
    claimed = statistics.fmean(mean_stderr(*sample) for sample in samples)
    alone = statistics.fmean(mean_stderr(xs) for xs, _ in samples)
    assert claimed == pytest.approx(spread, rel=0.1)
    assert alone < 0.75 * spread


def test_a_correlation_near_0_over_64_rollouts_has_an_eighth():
    assert correlation_stderr(0.0, range(64)) == pytest.approx(0.126, abs=1e-3)
    # Several samples of a prompt are not so many more prompts.
    assert correlation_stderr(0.0, list(range(64)) * 8) == pytest.approx(0.126, abs=1e-3)
    # r = 1/2 over 10: (1 - 1/4) / 3.
    assert correlation_stderr(0.5, range(10)) == pytest.approx(0.25)
    assert correlation_stderr(0.5, ["a", "a"]) is None


def jackknife(values, returns, lengths, groups):
    """Explained variance without one group after the other, each by the function of the mathematics."""
    of_token = [group for group, length in zip(groups, lengths, strict=True) for _ in range(length)]
    without = []
    for left_out in dict.fromkeys(groups):
        kept = torch.tensor([group != left_out for group in of_token])
        everywhere = torch.ones(int(kept.sum()), dtype=torch.bool)
        without.append(float(explained_variance(values[kept], returns[kept], everywhere)))
    mean = statistics.fmean(without)
    return math.sqrt((len(without) - 1) / len(without) * sum((x - mean) ** 2 for x in without))


@given(st.integers(0, 10_000), st.integers(2, 8))
def test_of_explained_variance_it_is_the_jackknife_over_prompts(seed, num_prompts):
    torch.manual_seed(seed)
    lengths = torch.randint(1, 5, (2 * num_prompts,))
    groups = [position // 2 for position in range(2 * num_prompts)]
    returns = torch.randn(int(lengths.sum()), dtype=torch.float64) + 100
    values = returns + torch.randn_like(returns)
    expected = jackknife(values, returns, lengths.tolist(), groups)
    assert explained_variance_stderr(values, returns, lengths, groups) == pytest.approx(expected, rel=1e-6)


def test_explained_variance_of_returns_that_do_not_vary_has_none():
    lengths = torch.tensor([2, 2, 2])
    same = torch.full((6,), 3.0)
    assert explained_variance_stderr(torch.randn(6), same, lengths, ["a", "b", "c"]) is None
    # All that varies is in one response: without it nothing is left to explain.
    returns = torch.tensor([1.0, 2.0, 3.0, 3.0, 3.0, 3.0])
    assert explained_variance_stderr(same, returns, lengths, ["a", "b", "c"]) is None
    assert explained_variance_stderr(same, torch.randn(6), lengths, ["a", "a", "a"]) is None


def test_a_metric_comes_with_its_standard_error_where_that_is_known():
    assert with_stderr("x", 1.0, 0.5) == {"x": 1.0, "x_stderr": 0.5}
    assert with_stderr("x", 1.0, None) == {"x": 1.0}
    assert mean_metric("x", [0.0, 2.0]) == {"x": 1.0, "x_stderr": pytest.approx(1.0)}
