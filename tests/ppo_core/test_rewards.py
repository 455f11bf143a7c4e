import pytest
import reference
import torch
from cases import Draws, law, rows_of, rubbish, seeds, spoiled
from hypothesis import given
from torch import tensor

from ppo_core import EmptyMaskError, token_rewards


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


def test_worked_example():
    kl = tensor([[0.5, 1.0, 2.0], [1.0, 9.0, 9.0]])
    mask = tensor([[True, True, True], [True, False, False]])
    rewards = token_rewards(tensor([10.0, -4.0]), kl, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.25, -0.5, 9.0], [-4.5, 0.0, 0.0]]


def test_a_row_without_a_token_is_refused_by_number():
    mask = tensor([[True], [False]])
    with pytest.raises(EmptyMaskError, match="selects no token in row 1; drop empty responses"):
        token_rewards(torch.zeros(2), torch.zeros(2, 1), mask, kl_coef=0.1)
