import math

import pytest
import reference
import torch
from cases import Draws, law, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck

from ppo_core import (
    ConfigError,
    EmptyMaskError,
    ShapeError,
    calibration_bins,
    expected_calibration_error,
    preference_loss,
    ranking_loss,
)


@law
@given(seeds, st.booleans(), st.sampled_from([0.0, 0.1]))
def test_preference_loss_equals_its_definition(seed, has_margin, centering):
    draws = Draws(seed)
    chosen, rejected, margin = draws.normal(5), draws.normal(5), draws.normal(5).abs()
    got = preference_loss(chosen, rejected, margin=margin if has_margin else None, centering=centering)
    margins = margin.tolist() if has_margin else [0.0] * 5
    likelihood = reference.mean(
        [reference.preference(c, r, m) for c, r, m in zip(chosen.tolist(), rejected.tolist(), margins, strict=True)]
    )
    level = reference.mean([(c + r) ** 2 for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)])
    assert got.item() == pytest.approx(likelihood + centering * level, abs=1e-10)


@law
@given(seeds, st.booleans(), st.sampled_from([0.0, 0.1]))
def test_ranking_loss_equals_its_definition_in_any_row_order(seed, has_margin, centering):
    draws = Draws(seed)
    scores, ranks, margin = draws.normal(9), 1 + draws.integers(3, 9), draws.normal(9).abs()
    groups = tensor([0, 0, 0, 0, 5, 5, 2, 2, 2])
    ranks[0], ranks[1] = 1, 2  # at least one pair
    order = draws.permutation(9)
    got = ranking_loss(
        scores[order],
        ranks[order],
        groups[order],
        margin=margin[order] if has_margin else None,
        centering=centering,
    )
    expected = reference.ranking_loss(
        scores.tolist(), ranks.tolist(), groups.tolist(), margin.tolist() if has_margin else None, centering
    )
    assert got.item() == pytest.approx(expected, abs=1e-10)


@law
@given(seeds, st.booleans(), st.sampled_from([0.0, 0.1]))
def test_rankings_of_two_are_preferences(seed, has_margin, centering):
    draws = Draws(seed)
    chosen, rejected, margin = draws.normal(4), draws.normal(4), draws.normal(4)
    # The margin of the worse response is never read.
    margins = {"margin": torch.cat([margin, torch.full((4,), torch.nan).double()])} if has_margin else {}
    ranking = ranking_loss(
        torch.cat([chosen, rejected]),
        tensor([1] * 4 + [2] * 4),
        torch.arange(4).repeat(2),
        **margins,
        centering=centering,
    )
    preference = preference_loss(chosen, rejected, margin=margin if has_margin else None, centering=centering)
    torch.testing.assert_close(ranking, preference)


def test_gradients_equal_finite_differences():
    draws = Draws(0)
    chosen, rejected = draws.normal(4).requires_grad_(), draws.normal(4).requires_grad_()
    margin = draws.normal(4)
    assert gradcheck(lambda c, r: preference_loss(c, r, margin=margin, centering=0.1), (chosen, rejected))
    scores, ranks, groups = draws.normal(6).requires_grad_(), tensor([1, 2, 2, 1, 2, 3]), tensor([0, 0, 0, 1, 1, 1])
    assert gradcheck(lambda s: ranking_loss(s, ranks, groups), scores)
    margin = draws.normal(6)
    assert gradcheck(lambda s: ranking_loss(s, ranks, groups, margin=margin, centering=0.1), scores)


def test_preference_loss_worked_examples():
    # a lead of log 3 is a probability of 3/4; with that margin it is 1/2
    lead, zero = tensor([math.log(3)]), tensor([0.0])
    assert preference_loss(lead, zero).item() == pytest.approx(math.log(4 / 3))
    assert preference_loss(lead, zero, margin=lead).item() == pytest.approx(math.log(2))
    assert preference_loss(tensor([3.0]), tensor([3.0]), centering=0.5).item() == pytest.approx(math.log(2) + 18)


def test_a_hopeless_pair_has_a_large_but_finite_loss():
    assert preference_loss(tensor([-1000.0]), tensor([1000.0])).item() == 2000


def test_each_prompt_weighs_the_same_and_a_prompt_without_a_pair_does_not_count():
    # prompt 0: three pairs of leads (log 3, 0, -log 3); prompt 1: one pair of lead log 3; prompt 2: a tie
    third = math.log(3)
    scores = tensor([third, 0.0, third, third, 0.0, 9.0, 1.0])
    ranks, groups = tensor([1, 2, 3, 1, 2, 1, 1]), tensor([0, 0, 0, 1, 1, 2, 2])
    easy, even, hard = math.log(4 / 3), math.log(2), math.log(4)
    expected = ((easy + even + hard) / 3 + easy) / 2
    assert ranking_loss(scores, ranks, groups).item() == pytest.approx(expected)


def test_a_ranking_with_margin_and_centering_worked_example():
    # two pairs of one prompt with leads of log 3 and a margin of log 3 for the best: both as likely as not
    scores, ranks, groups = tensor([math.log(3), 0.0, 0.0]), tensor([1, 2, 2]), tensor([4, 4, 4])
    margin = tensor([math.log(3), 5.0, 5.0])
    assert ranking_loss(scores, ranks, groups, margin=margin).item() == pytest.approx(math.log(2))
    level = ranking_loss(scores, ranks, groups, margin=margin, centering=0.5).item()
    assert level == pytest.approx(math.log(2) + 0.5 * math.log(3) ** 2)


def test_nothing_but_ties_is_refused():
    with pytest.raises(EmptyMaskError, match="two differently ranked responses of one prompt"):
        ranking_loss(torch.zeros(3), tensor([1, 1, 2]), tensor([0, 0, 1]))
    with pytest.raises(EmptyMaskError, match="a pair"):
        preference_loss(torch.zeros(0), torch.zeros(0))


@law
@given(seeds, st.integers(1, 7))
def test_calibration_error_equals_its_definition(seed, num_bins):
    probabilities = Draws(seed).normal(40).sigmoid()
    got = expected_calibration_error(probabilities, num_bins)
    assert got.item() == pytest.approx(reference.calibration_error(probabilities.tolist(), num_bins), abs=1e-10)


def test_calibration_error_worked_examples():
    # 3 of 4 right at 3/4: calibrated. All right at 3/4: a quarter too modest. All wrong at 1: off by 1.
    assert expected_calibration_error(tensor([0.75, 0.75, 0.75, 0.25]), 10).item() == 0
    assert expected_calibration_error(tensor([0.75, 0.75]), 10).item() == 0.25
    assert expected_calibration_error(tensor([0.0, 0.0]), 10).item() == 1
    assert expected_calibration_error(tensor([1.0, 0.5]), 10).item() == 0
    # bins [0.5, 0.75) and [0.75, 1]: |0.6 - 1| and |0.8 - 0|, which one bin would let cancel to |0.7 - 0.5|
    assert expected_calibration_error(tensor([0.6, 0.2]), 2).item() == pytest.approx(0.6)
    assert expected_calibration_error(tensor([0.6, 0.2]), 1).item() == pytest.approx(0.2)


def test_calibration_needs_a_bin_and_a_pair():
    with pytest.raises(ConfigError, match="num_bins=0 must be at least 1"):
        expected_calibration_error(tensor([0.5]), 0)
    with pytest.raises(EmptyMaskError):
        expected_calibration_error(torch.zeros(0), 5)


def test_columns_of_another_shape_are_refused_by_name():
    two, three = torch.zeros(2), torch.zeros(3)
    ids = tensor([0, 1])
    preference = getattr(preference_loss, "__wrapped__", preference_loss)
    ranking = getattr(ranking_loss, "__wrapped__", ranking_loss)
    for function, columns, settings, name in (
        (preference, (two, three), {}, "rejected_scores"),
        (preference, (two, two), {"margin": three}, "margin"),
        (ranking, (two, tensor([1, 2, 3]), ids), {}, "ranks"),
        (ranking, (two, ids, tensor([0, 0, 0])), {}, "group_ids"),
        (ranking, (two, tensor([1, 2]), tensor([0, 0])), {"margin": three}, "margin"),
    ):
        with pytest.raises(ShapeError, match=rf"{name} is \(3,\) but \w+ is \(2,\)"):
            function(*columns, **settings)


def test_bins_of_confidence_by_hand():
    # Confidences 0.75 (right), 0.75 (wrong), 1 (right), and 0.5, which is undecided and alone in the first of two bins.
    found = calibration_bins(tensor([0.75, 0.25, 1.0, 0.5]), 2)
    assert [tuple(own) for own in found] == [
        (0.5, 1, 0.5, 0.5),
        (0.75, 3, pytest.approx(2.5 / 3), pytest.approx(2 / 3)),
    ]
    # A bin without a pair is none.
    assert [own.lower for own in calibration_bins(tensor([0.0]), 4)] == [0.875]
    assert calibration_bins(tensor([])) == []
