import pytest
import reference
import torch
from cases import Draws, law, rubbish, seeds, spoiled
from hypothesis import given
from torch import tensor

from ppo_core import EmptyMaskError, explained_variance, masked_mean, masked_whiten


@law
@given(seeds)
def test_masked_mean_equals_its_definition(seed):
    draws = Draws(seed)
    mask, x = draws.mask_with_gaps(), draws.normal(4, 6)
    assert masked_mean(x, mask).item() == pytest.approx(reference.mean(x[mask].tolist()), abs=1e-12)


@law
@given(seeds, rubbish)
def test_masked_entries_change_neither_value_nor_gradient(seed, junk):
    draws = Draws(seed)
    mask, x, weights = draws.mask_with_gaps(), draws.normal(4, 6), draws.normal(4, 6)

    def run(x):
        x = x.clone().requires_grad_()
        parts = [masked_mean(x, mask), masked_whiten(x, mask), masked_whiten(x, mask, center=False)]
        sum((part * weights).sum() for part in parts).backward()
        return [part.detach() for part in parts], x.grad

    clean, clean_grad = run(spoiled(x, mask, 0.0))
    dirty, dirty_grad = run(spoiled(x, mask, junk))
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(clean_grad, dirty_grad)
    assert (dirty_grad[~mask] == 0).all()


@law
@given(seeds)
def test_whitened_values_have_deviation_one_and_the_mean_that_center_says(seed):
    draws = Draws(seed)
    mask, x = draws.mask_with_gaps(), 3 * draws.normal(4, 6) + 5
    for center in (True, False):
        whitened = masked_whiten(x, mask, center=center)
        real = whitened[mask].tolist()
        assert reference.std(real) == pytest.approx(1, abs=1e-5)
        assert reference.mean(real) == pytest.approx(0 if center else reference.mean(x[mask].tolist()), abs=1e-9)
        assert (whitened[~mask] == 0).all()


@law
@given(seeds)
def test_whitening_does_not_notice_shift_and_scale(seed):
    draws = Draws(seed)
    mask, x = draws.mask_with_gaps(), draws.normal(4, 6)
    torch.testing.assert_close(masked_whiten(7 * x - 2, mask), masked_whiten(x, mask), rtol=1e-4, atol=1e-4)


def test_whitening_worked_example():
    # mean 4, deviations -3, 0, 3: variance 18/2 = 9
    x, mask = tensor([[1.0, 4.0, 7.0, 99.0]]), tensor([[True, True, True, False]])
    torch.testing.assert_close(masked_whiten(x, mask), tensor([[-1.0, 0.0, 1.0, 0.0]]))
    torch.testing.assert_close(masked_whiten(x, mask, center=False), tensor([[3.0, 4.0, 5.0, 0.0]]))


def test_equal_values_whiten_to_zero_without_dividing_by_zero():
    assert masked_whiten(torch.full((2, 3), 5.0), torch.ones(2, 3, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


def test_fewer_than_two_tokens_are_left_as_they_are():
    x = tensor([[5.0, float("nan")]])
    assert masked_whiten(x, tensor([[True, False]])).tolist() == [[5.0, 0.0]]
    assert masked_whiten(x, tensor([[False, False]])).tolist() == [[0.0, 0.0]]


def test_the_mean_of_nothing_is_refused():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(EmptyMaskError, match=r"mask of shape \(2, 3\) selects no token; drop empty responses"):
        masked_mean(torch.zeros(2, 3), nothing)
    with pytest.raises(EmptyMaskError):
        explained_variance(torch.zeros(2, 3), torch.zeros(2, 3), nothing)


@law
@given(seeds, rubbish)
def test_explained_variance_equals_its_definition_and_ignores_padding(seed, junk):
    draws = Draws(seed)
    mask = draws.mask()
    values, returns = draws.normal(4, 6), draws.normal(4, 6)
    if mask.sum() < 2:
        return
    expected = reference.explained_variance(values[mask].tolist(), returns[mask].tolist())
    got = explained_variance(spoiled(values, mask, junk), spoiled(returns, mask, junk), mask)
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_explained_variance_of_a_perfect_an_ignorant_and_a_wrong_critic():
    returns, mask = tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full((1, 3), 7.0), returns, mask) == 0
    assert explained_variance(-returns, returns, mask) == -3


def test_returns_that_do_not_vary_leave_nothing_to_explain():
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(tensor([[0.3, 0.1, 0.2]]), torch.full((1, 3), 0.1), mask) == 0
