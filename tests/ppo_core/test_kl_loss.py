"""A divergence in the loss is right when its gradient is right on average over the tokens that were drawn."""

import math

import pytest
import reference
import torch
from cases import Draws, law, seeds
from hypothesis import given
from torch import tensor

from ppo_core import ConfigError, ShapeError
from ppo_core.kl import kl_loss_terms

every_direction = pytest.mark.parametrize("direction", ["reverse", "forward"])
every_estimator = pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])


def exactly(xs):
    return tensor(xs, dtype=torch.float64)


def logprobs_of(z):
    return exactly([reference.logprob(z, v) for v in range(len(z))])


def three_distributions(seed):
    """Logits over five tokens of the policy in training, of the one that drew the tokens, and of the reference."""
    return Draws(seed).normal(3, 5).tolist()


def mean_over_draws(terms, logits, old_z):
    """The exact mean over the tokens that the rollout policy may draw, and its gradient by the logits."""
    mean = (exactly(reference.softmax(old_z)) * terms).sum()
    mean.backward()
    return mean.item(), logits.grad.tolist()


def divergence(z, ref_z, direction):
    return reference.kl(z, ref_z) if direction == "reverse" else reference.kl(ref_z, z)


@every_estimator
@every_direction
@law
@given(seed=seeds)
def test_the_mean_gradient_is_that_of_the_divergence_even_where_another_policy_drew_the_tokens(
    estimator, direction, seed
):
    z, old_z, ref_z = three_distributions(seed)
    logits = exactly(z).requires_grad_()
    terms = kl_loss_terms(
        logits.log_softmax(0), logprobs_of(old_z), logprobs_of(ref_z), estimator=estimator, direction=direction
    )
    _, gradient = mean_over_draws(terms, logits, old_z)
    expected = reference.slope(lambda z: divergence(z, ref_z, direction), z)
    assert gradient == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@every_direction
@law
@given(seed=seeds)
def test_the_mean_value_is_the_divergence_even_where_another_policy_drew_the_tokens(estimator, direction, seed):
    z, old_z, ref_z = three_distributions(seed)
    logits = exactly(z).requires_grad_()
    terms = kl_loss_terms(
        logits.log_softmax(0), logprobs_of(old_z), logprobs_of(ref_z), estimator=estimator, direction=direction
    )
    value, _ = mean_over_draws(terms, logits, old_z)
    assert value == pytest.approx(divergence(z, ref_z, direction), abs=1e-10)


@law
@given(seeds)
def test_the_derivatives_of_the_estimators_themselves_would_be_of_nothing_or_of_the_other_direction(seed):
    z, _, ref_z = three_distributions(seed)

    def mean_gradient(estimate):
        logits = exactly(z).requires_grad_()
        return mean_over_draws(estimate(logits.log_softmax(0) - logprobs_of(ref_z)), logits, z)[1]

    nothing, other = mean_gradient(lambda d: d), mean_gradient(lambda d: (-d).exp() - 1 + d)
    assert nothing == pytest.approx([0.0] * 5, abs=1e-12)
    assert other == pytest.approx(reference.kl_slope(z, ref_z, "forward"), abs=1e-12)
    logits = exactly(z).requires_grad_()
    new_logprobs = logits.log_softmax(0)
    ours = kl_loss_terms(new_logprobs, logprobs_of(z), logprobs_of(ref_z), estimator="k1", direction="reverse")
    _, gradient = mean_over_draws(ours, logits, z)
    assert gradient == pytest.approx(reference.kl_slope(z, ref_z, "reverse"), abs=1e-12)
    assert max(map(abs, gradient)) > 1e-6


@every_estimator
@every_direction
@law
@given(seed=seeds)
def test_values_equal_their_definition(estimator, direction, seed):
    new, old, ref = -Draws(seed).normal(3, 2, 3).abs()
    got = kl_loss_terms(new, old, ref, estimator=estimator, direction=direction)
    for a, b, c, term in zip(*(x.flatten().tolist() for x in (new, old, ref, got)), strict=True):
        assert term == pytest.approx(reference.kl_loss(a, b, c, estimator, direction), rel=1e-9, abs=1e-9)


@every_estimator
def test_the_slope_of_a_token_worked_example(estimator):
    # ratio 2 and d = log 4: reverse 2 log 4, forward 2 (1 - 1/4)
    new, old, ref = exactly([math.log(0.8)]), exactly([math.log(0.4)]), exactly([math.log(0.2)])
    for direction, slope in (("reverse", 2 * math.log(4)), ("forward", 1.5)):
        leaf = new.clone().requires_grad_()
        kl_loss_terms(leaf, old, ref, estimator=estimator, direction=direction).sum().backward()
        assert leaf.grad.item() == pytest.approx(slope)


def test_values_of_a_token_worked_example():
    # reverse: 2 k(log 4); forward: the reference drew it half as often as the rollout policy, k(-log 4) / 2
    new, old, ref = exactly([math.log(0.8)]), exactly([math.log(0.4)]), exactly([math.log(0.2)])
    log4 = math.log(4)
    for estimator, reverse, forward in (
        ("k1", 2 * log4, -log4 / 2),
        ("k2", log4**2, log4**2 / 4),
        ("k3", 2 * (1 / 4 - 1 + log4), (4 - 1 - log4) / 2),
    ):
        for direction, expected in (("reverse", reverse), ("forward", forward)):
            value = kl_loss_terms(new, old, ref, estimator=estimator, direction=direction)
            assert value.item() == pytest.approx(expected)


def test_an_unknown_direction_and_another_shape_are_refused():
    terms = getattr(kl_loss_terms, "__wrapped__", kl_loss_terms)
    x = tensor([0.0])
    with pytest.raises(ConfigError, match="direction='sideways' is neither reverse nor forward"):
        terms(x, x, x, estimator="k1", direction="sideways")
    with pytest.raises(ShapeError, match=r"ref_logprobs is \(2,\) but new_logprobs is \(1,\)"):
        terms(x, x, tensor([0.0, 0.0]), estimator="k1", direction="reverse")
