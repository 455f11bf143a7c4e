import dataclasses
import json
import math

import pytest
import reference
import torch
from cases import Draws, law, rows_of, rubbish, seeds, spoiled
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from ppo_core import (
    ConfigError,
    EmptyMaskError,
    NonFiniteError,
    RunningMoments,
    ShapeError,
    overlong_penalty,
    token_rewards,
    treated_scores,
)

numbers = st.lists(st.floats(-1e3, 1e3), max_size=8)


def moments_of(*batches):
    moments = RunningMoments()
    for batch in batches:
        moments = moments.with_scores(tensor(batch, dtype=torch.float64))
    return moments


@law
@given(seeds, rubbish)
def test_rewards_equal_their_definition_whatever_the_padding_holds(seed, junk):
    draws = Draws(seed)
    mask, kl, scores = draws.mask_with_gaps(), draws.normal(4, 6), draws.normal(4)
    rewards = token_rewards(scores, spoiled(kl, mask, junk), mask, kl_coef=0.3)
    assert (rewards[~mask] == 0).all()
    for score, kls, got in zip(scores.tolist(), rows_of(kl, mask), rows_of(rewards, mask), strict=True):
        assert got == pytest.approx(reference.token_rewards(score, kls, 0.3), abs=1e-12)


@law
@given(seeds)
def test_rewards_of_a_response_sum_to_its_score_less_the_penalty(seed):
    draws = Draws(seed)
    mask, kl, scores = draws.mask(), draws.normal(4, 6), draws.normal(4)
    sums = token_rewards(scores, kl, mask, kl_coef=0.3).sum(dim=1)
    torch.testing.assert_close(sums, scores - 0.3 * torch.where(mask, kl, 0.0).sum(dim=1))


@law
@given(seeds, rubbish)
def test_padding_gets_no_gradient(seed, junk):
    draws = Draws(seed)
    mask, scores = draws.mask(), draws.normal(4)
    kl = spoiled(draws.normal(4, 6), mask, junk).requires_grad_()
    token_rewards(scores, kl, mask, kl_coef=0.25).sum().backward()
    assert torch.equal(kl.grad, torch.where(mask, -0.25, 0.0).double())


def test_token_rewards_worked_example():
    kl = tensor([[0.5, 1.0, 2.0], [1.0, 9.0, 9.0]])
    mask = tensor([[True, True, True], [True, False, False]])
    rewards = token_rewards(tensor([10.0, -4.0]), kl, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.25, -0.5, 9.0], [-4.5, 0.0, 0.0]]


def test_a_row_without_a_token_is_refused_by_number():
    mask = tensor([[True], [False]])
    with pytest.raises(EmptyMaskError, match="selects no token in row 1; drop empty responses"):
        token_rewards(torch.zeros(2), torch.zeros(2, 1), mask, kl_coef=0.1)


def test_scores_that_do_not_fit_are_refused():
    mask = tensor([[True], [True]])
    unchecked = getattr(token_rewards, "__wrapped__", token_rewards)
    with pytest.raises(ShapeError, match=r"scores is \(3,\) for 2 responses; give one per response"):
        unchecked(torch.zeros(3), torch.zeros(2, 1), mask, kl_coef=0.1)
    with pytest.raises(ShapeError, match=r"kl is \(2, 2\) but response_mask is \(2, 1\)"):
        unchecked(torch.zeros(2), torch.zeros(2, 2), mask, kl_coef=0.1)


@law
@given(st.lists(numbers, max_size=5))
def test_running_moments_are_those_of_all_scores_in_whatever_batches_they_came(batches):
    scores = [score for batch in batches for score in batch]
    for moments in (moments_of(*batches), moments_of(scores), moments_of(*([score] for score in scores))):
        assert moments.count == len(scores)
        assert moments.mean == pytest.approx(reference.mean(scores) if scores else 0, abs=1e-9)
        assert moments.std == pytest.approx(reference.std(scores) if len(scores) > 1 else 0, abs=1e-6)


@law
@given(numbers)
def test_running_moments_survive_being_written_as_json(scores):
    moments = moments_of(scores)
    assert RunningMoments(**json.loads(json.dumps(dataclasses.asdict(moments)))) == moments
    assert set(dataclasses.asdict(moments)) == {"count", "mean", "squared_deviations"}


def test_running_moments_worked_example():
    # 1, 3 and then 5, 7: mean 4, squared deviations 9 + 1 + 1 + 9
    first = moments_of([1.0, 3.0])
    assert (first.count, first.mean, first.squared_deviations, first.std) == (2, 2.0, 2.0, math.sqrt(2))
    both = moments_of([1.0, 3.0], [5.0, 7.0])
    assert (both.count, both.mean, both.squared_deviations) == (4, 4.0, 20.0)
    assert both.std == pytest.approx(math.sqrt(20 / 3))
    assert first.count == 2


def test_one_score_or_none_has_no_deviation():
    assert RunningMoments().std == 0
    assert moments_of([5.0]).std == 0
    assert moments_of([], [5.0], []) == RunningMoments(count=1, mean=5.0)


def test_running_moments_keep_their_digits_far_from_zero():
    # In single precision these two would be one number.
    assert moments_of([1e8], [1e8 + 1]).std == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_kept_out_of_the_moments(bad):
    with pytest.raises(NonFiniteError, match=f"scores hold {bad}; look at what gave that score"):
        moments_of([1.0, bad])


past_scores = st.one_of(st.none(), st.lists(st.floats(-10, 10), min_size=2, max_size=6, unique_by=round))


@law
@given(seeds, past_scores, st.sampled_from([None, 0.5, 2.0]), st.sampled_from([0.0, 1.5]))
def test_scores_are_normalised_then_clipped_then_lowered_where_cut_off(seed, past, clip, penalty):
    draws = Draws(seed)
    scores, cut_off = 3 * draws.normal(6), draws.integers(2, 6).bool()
    moments = None if past is None else moments_of(past)
    got = treated_scores(scores, cut_off, moments=moments, clip=clip, cut_off_penalty=penalty)
    expected = reference.treated(scores.tolist(), cut_off.tolist(), past, clip, penalty)
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    whitened = treated_scores(
        scores, cut_off, moments=moments, clip=clip, cut_off_penalty=penalty, whiten=True
    ).tolist()
    if reference.std(expected) < 1e-2:
        return
    mean, std = reference.mean(expected), reference.std(expected)
    assert whitened == pytest.approx([(x - mean) / std + mean for x in expected], rel=1e-3, abs=1e-3)
    assert reference.mean(whitened) == pytest.approx(mean, abs=1e-9)


def test_each_treatment_of_scores_alone_worked_example():
    scores, cut_off = tensor([-4.0, 0.0, 7.0]), tensor([False, True, False])
    # mean 2, deviation 5
    moments = moments_of([-3.0, 2.0, 7.0])
    assert treated_scores(scores, cut_off).tolist() == [-4.0, 0.0, 7.0]
    assert treated_scores(scores, cut_off, moments=moments).tolist() == pytest.approx([-1.2, -0.4, 1.0])
    assert treated_scores(scores, cut_off, clip=3.0).tolist() == [-3.0, 0.0, 3.0]
    assert treated_scores(scores, cut_off, cut_off_penalty=1.5).tolist() == [-4.0, -1.5, 7.0]
    # mean 1, squared deviations 25 + 1 + 36
    std = math.sqrt(31)
    expected = [-5 / std + 1, -1 / std + 1, 6 / std + 1]
    assert treated_scores(scores, cut_off, whiten=True).tolist() == pytest.approx(expected, abs=1e-6)


def test_an_unfinished_response_has_no_score_where_none_is_kept_and_pays_all_the_same():
    scores, cut_off = tensor([-4.0, 3.0, 7.0]), tensor([False, True, True])
    assert treated_scores(scores, cut_off, keep_cut_off=False).tolist() == [-4.0, 0.0, 0.0]
    # 0 after normalisation (mean 2, deviation 5) and clipping, not before.
    treated = treated_scores(
        scores, cut_off, moments=moments_of([-3.0, 2.0, 7.0]), clip=1.0, keep_cut_off=False, cut_off_penalty=0.5
    )
    assert treated.tolist() == pytest.approx([-1.0, -0.5, -0.5])


def test_a_length_penalty_is_each_response_s_own_and_comes_before_whitening():
    scores, cut_off = tensor([1.0, 2.0, 3.0]), tensor([False, False, True])
    paid = treated_scores(scores, cut_off, clip=2.0, length_penalty=tensor([0.0, 0.5, 1.0]), cut_off_penalty=0.25)
    assert paid.tolist() == [1.0, 1.5, 0.75]
    whitened = treated_scores(scores, cut_off, length_penalty=tensor([0.0, 1.0, 2.0]), whiten=True)
    assert whitened.tolist() == [1.0, 1.0, 1.0]


@law
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_overlong_penalty_is_that_of_dapo(max_length, ramp, length, penalty):
    ramp = min(ramp, max_length)
    # Their equation 13, case by case, of which ours is the negative.
    if length <= max_length - ramp:
        theirs = 0.0
    elif length <= max_length:
        theirs = ((max_length - ramp) - length) / ramp
    else:
        theirs = -1.0
    got = overlong_penalty(tensor([length]), max_length=max_length, ramp=ramp, penalty=penalty)
    assert got.tolist() == pytest.approx([-penalty * theirs], abs=1e-6)


def test_the_overlong_penalty_worked_example():
    lengths = tensor([1, 6, 7, 8, 10])
    assert overlong_penalty(lengths, max_length=10, ramp=4, penalty=2.0).tolist() == [0.0, 0.0, 0.5, 1.0, 2.0]
    for ramp in (0, 11):
        with pytest.raises(ConfigError, match=f"ramp={ramp} must be at least 1 and at most max_length=10"):
            overlong_penalty(lengths, max_length=10, ramp=ramp)


def test_all_treatments_of_scores_worked_example():
    # normalised (-1.2, -0.4, 1), clipped (-1, -0.4, 1), lowered (-1, -1.4, 1); then mean -1.4/3
    scores, cut_off = tensor([-4.0, 0.0, 7.0]), tensor([False, True, False])
    treated = treated_scores(
        scores, cut_off, moments=moments_of([-3.0, 2.0, 7.0]), clip=1.0, cut_off_penalty=1.0, whiten=True
    )
    lowered = [-1.0, -1.4, 1.0]
    mean, std = -1.4 / 3, math.sqrt((3.96 - 1.96 / 3) / 2)
    assert treated.tolist() == pytest.approx([(x - mean) / std + mean for x in lowered], abs=1e-6)


def test_scores_equal_to_all_before_are_normalised_to_zero():
    assert treated_scores(tensor([5.0]), tensor([False]), moments=moments_of([5.0])).tolist() == [0.0]


def test_a_clip_of_nothing_and_another_shape_are_refused():
    for clip in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match=f"clip={clip} must be positive; None does not clip"):
            treated_scores(tensor([1.0]), tensor([False]), clip=clip)
    unchecked = getattr(treated_scores, "__wrapped__", treated_scores)
    with pytest.raises(ShapeError, match=r"cut_off is \(2,\) but scores is \(1,\)"):
        unchecked(tensor([1.0]), tensor([False, True]))
