"""The norm of a gradient, and what a limit of it does."""

import math

import pytest
import torch
from cases import Draws, law, seeds
from hypothesis import given
from hypothesis import strategies as st

from ppo_core import ALONE, Sharing
from ppo_core.clipping import _square, scale_gradients, total_norm

SHARED = Sharing(None, 2)


@pytest.mark.parametrize("sharing", [ALONE, SHARED])
def test_the_norm_is_the_root_of_all_squares(sharing):
    gradients = [torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.tensor([4.0, 2.0]), torch.tensor(2.0), torch.zeros(0, 3)]
    norm = total_norm(gradients, sharing)
    assert norm.dtype == torch.float32
    assert float(norm) == 7.0
    assert total_norm([gradient.double() for gradient in gradients], sharing).dtype == torch.float64
    assert float(total_norm([], sharing)) == 0.0
    for wrong in (math.inf, math.nan):
        assert not math.isfinite(float(total_norm([*gradients, torch.tensor([wrong])], sharing)))


def test_with_shares_the_norm_is_in_float32_at_least():
    assert total_norm([torch.ones(2, 2, dtype=torch.bfloat16)], SHARED).dtype == torch.float32


@law
@given(seed=seeds, shape=st.sampled_from([(6,), (6, 5), (7, 33), (4, 3, 40), (64, 129)]), where=st.floats(0, 1))
def test_with_shares_it_does_not_matter_who_has_which_rows(seed, shape, where):
    gradient = Draws(seed).normal(*shape).float()
    first = int(where * len(gradient))
    parts = _square(gradient[:first]) + _square(gradient[first:])
    assert torch.equal(parts.sqrt().float(), total_norm([gradient], SHARED))


def test_a_gradient_above_the_limit_is_scaled_down_to_it_and_one_below_is_left_alone():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    scale_gradients(parameters, 10.0, torch.tensor(5.0))
    assert [parameter.grad.tolist() for parameter in parameters[:2]] == [[3.0, 0.0], [0.0, 4.0]]
    scale_gradients(parameters, 2.5, torch.tensor(5.0))
    assert parameters[0].grad.tolist() == pytest.approx([1.5, 0.0])
    assert parameters[1].grad.tolist() == pytest.approx([0.0, 2.0])
    assert parameters[2].grad is None
