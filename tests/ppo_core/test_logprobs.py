import math

import pytest
import reference
import torch
from cases import Draws, law, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck

from ppo_core import entropy, gather_logprobs

temperatures = st.floats(0.2, 3)


@law
@given(seeds, temperatures)
def test_gathered_logprobs_equal_their_definition(seed, temperature):
    draws = Draws(seed)
    logits, token_ids = 3 * draws.normal(2, 3, 5), draws.integers(5, 2, 3)
    got = gather_logprobs(logits, token_ids, temperature=temperature)
    for z, token, logprob in zip(logits.view(-1, 5), token_ids.view(-1), got.view(-1), strict=True):
        assert logprob.item() == pytest.approx(reference.logprob(z.tolist(), int(token), temperature), abs=1e-10)


@law
@given(seeds)
def test_entropy_equals_its_definition(seed):
    logits = 3 * Draws(seed).normal(2, 3, 5)
    for z, h in zip(logits.view(-1, 5), entropy(logits).view(-1), strict=True):
        assert h.item() == pytest.approx(reference.entropy(z.tolist()), abs=1e-10)


@law
@given(seeds, st.floats(-50, 50))
def test_neither_notices_a_shift_of_all_logits(seed, shift):
    draws = Draws(seed)
    logits, token_ids = draws.normal(2, 3, 5), draws.integers(5, 2, 3)
    torch.testing.assert_close(gather_logprobs(logits + shift, token_ids), gather_logprobs(logits, token_ids))
    torch.testing.assert_close(entropy(logits + shift), entropy(logits))


def test_gradients_equal_finite_differences():
    draws = Draws(0)
    logits, token_ids = draws.normal(2, 3, 5).requires_grad_(), draws.integers(5, 2, 3)
    assert gradcheck(lambda z: gather_logprobs(z, token_ids, temperature=0.7), logits)
    assert gradcheck(entropy, logits)


def test_worked_examples():
    # odds 1 : 3, and with temperature 1/2 their squares 1 : 9
    logits, token = tensor([[[0.0, math.log(3)]]]), tensor([[1]])
    assert gather_logprobs(logits, token).item() == pytest.approx(math.log(3 / 4))
    assert gather_logprobs(logits, token, temperature=0.5).item() == pytest.approx(math.log(9 / 10))
    assert entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(math.log(8))


def test_a_token_that_cannot_occur_contributes_no_entropy_and_no_nan():
    logits = tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
    h = entropy(logits)
    h.sum().backward()
    assert h.item() == pytest.approx(math.log(2))
    assert logits.grad.tolist() == [[[0.0, 0.0, 0.0]]]


def test_half_precision_logits_are_summed_in_single_precision():
    logits = torch.full((1, 1, 100_000), 1.0, dtype=torch.bfloat16)
    for result in (-gather_logprobs(logits, tensor([[5]])), entropy(logits)):
        assert result.dtype == torch.float32
        assert result.item() == pytest.approx(math.log(100_000), rel=1e-5)
