import math

import pytest
import reference
import torch
from cases import Draws, law, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck

import ppo_core.kl
from ppo_core import ConfigError, exact_kl, kl_estimate, next_kl_coef

estimators = st.sampled_from(["k1", "k2", "k3"])


@law
@given(seeds, estimators)
def test_estimates_equal_their_definition(seed, estimator):
    draws = Draws(seed)
    logprobs, ref_logprobs = -draws.normal(2, 3).abs(), -draws.normal(2, 3).abs()
    got = kl_estimate(logprobs, ref_logprobs, estimator)
    for a, b, estimate in zip(logprobs.view(-1), ref_logprobs.view(-1), got.view(-1), strict=True):
        assert estimate.item() == pytest.approx(reference.estimate(a.item(), b.item(), estimator), abs=1e-10)


@pytest.mark.parametrize("difference", [7e-3, 7e-4, -7e-4])
def test_k3_keeps_its_digits_in_single_precision_near_zero(difference):
    # d^2/2 - d^3/6 + d^4/24, where exp(-d) - 1 would round to a multiple of 6e-8
    logprobs = tensor([[difference]])
    d = logprobs.item()
    k3 = kl_estimate(logprobs, torch.zeros(1, 1), "k3").item()
    assert k3 == pytest.approx(d**2 / 2 - d**3 / 6 + d**4 / 24, rel=1e-3)


def test_k2_agrees_with_the_exact_divergence_for_close_distributions():
    logits = 0.01 * Draws(3).normal(2, 6)
    logprobs, ref_logprobs = logits.log_softmax(dim=1)
    k2 = (logprobs.exp() * kl_estimate(logprobs, ref_logprobs, "k2")).sum().item()
    assert k2 == pytest.approx(reference.kl(*logits.tolist()), rel=0.05)


def test_estimates_worked_example():
    # d = log 2: k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2
    logprobs, ref_logprobs = tensor([[math.log(0.5)]]), tensor([[math.log(0.25)]])
    assert kl_estimate(logprobs, ref_logprobs, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(logprobs, ref_logprobs, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(logprobs, ref_logprobs, "k3").item() == pytest.approx(math.log(2) - 0.5)


@law
@given(seeds)
def test_exact_kl_equals_its_definition(seed):
    draws = Draws(seed)
    logits, ref_logits = 2 * draws.normal(2, 3, 5), 2 * draws.normal(2, 3, 5)
    got = exact_kl(logits, ref_logits)
    assert got.shape == (2, 3)
    for z, ref_z, kl in zip(logits.view(-1, 5), ref_logits.view(-1, 5), got.view(-1), strict=True):
        assert kl.item() == pytest.approx(reference.kl(z.tolist(), ref_z.tolist()), abs=1e-10)


def test_exact_kl_does_not_depend_on_its_chunks(monkeypatch):
    draws = Draws(1)
    logits, ref_logits = draws.normal(2, 5, 7), draws.normal(2, 5, 7)
    whole = exact_kl(logits, ref_logits)
    for entries in (1, 14, 21):
        monkeypatch.setattr(ppo_core.kl, "_CHUNK_ENTRIES", entries)
        assert torch.equal(exact_kl(logits, ref_logits), whole)


@pytest.mark.parametrize("entries", [1, 8, 2**24])
def test_exact_kl_gradient_equals_finite_differences_in_chunks_of_any_size(monkeypatch, entries):
    monkeypatch.setattr(ppo_core.kl, "_CHUNK_ENTRIES", entries)
    draws = Draws(2)
    logits, ref_logits = draws.normal(2, 2, 4).requires_grad_(), draws.normal(2, 2, 4).requires_grad_()
    assert gradcheck(exact_kl, (logits, ref_logits))


@law
@given(seeds)
def test_exact_kl_has_the_slope_of_both_directions(seed):
    z, ref_z = Draws(seed).normal(2, 5).tolist()
    for first, second, direction in ((z, ref_z, "reverse"), (ref_z, z, "forward")):
        logits = tensor([first], dtype=torch.float64, requires_grad=direction == "reverse")
        ref_logits = tensor([second], dtype=torch.float64, requires_grad=direction == "forward")
        exact_kl(logits, ref_logits).sum().backward()
        trained = logits if direction == "reverse" else ref_logits
        assert trained.grad[0].tolist() == pytest.approx(reference.kl_slope(z, ref_z, direction), abs=1e-10)


def test_exact_kl_keeps_no_term_of_its_sums_for_the_gradient(monkeypatch):
    monkeypatch.setattr(ppo_core.kl, "_CHUNK_ENTRIES", 7 * 8)
    logits, ref_logits = (Draws(seed).normal(100, 7).requires_grad_() for seed in (0, 1))
    given_storage = {logits.untyped_storage().data_ptr(), ref_logits.untyped_storage().data_ptr()}
    kept = []

    def keep(x):
        kept.append(0 if x.untyped_storage().data_ptr() in given_storage else x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        exact_kl(logits, ref_logits).sum().backward()
    assert sum(kept) < 100 * 7


def test_exact_kl_of_half_precision_logits_is_summed_in_single_precision():
    logits, ref_logits = Draws(4).normal(2, 1, 4000).bfloat16()
    kl = exact_kl(logits, ref_logits)
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(reference.kl(logits[0].tolist(), ref_logits[0].tolist()), rel=1e-4)


def test_a_token_that_neither_can_produce_contributes_no_nan():
    logits = tensor([[[0.0, math.log(3), -torch.inf]]], requires_grad=True)
    kl = exact_kl(logits, tensor([[[0.0, 0.0, -torch.inf]]]))
    kl.sum().backward()
    assert kl.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)
    assert logits.grad.isfinite().all()


def test_an_unknown_estimator_is_refused():
    estimate = getattr(kl_estimate, "__wrapped__", kl_estimate)
    with pytest.raises(ConfigError, match="estimator='k4' is none of k1, k2, k3"):
        estimate(tensor([0.0]), tensor([0.0]), "k4")


def test_next_kl_coef_worked_examples():
    # 10 % above target: up by 0.1 * 64 / 640 = 1 %; far above or below it moves by the clip, 2 %
    step = {"num_responses": 64, "target": 6.0, "horizon": 640.0}
    assert next_kl_coef(0.5, 6.6, **step) == pytest.approx(0.505)
    assert next_kl_coef(0.5, 5.4, **step) == pytest.approx(0.495)
    assert next_kl_coef(0.5, 6.0, **step) == 0.5
    assert next_kl_coef(0.5, 600.0, **step) == pytest.approx(0.51)
    assert next_kl_coef(0.5, -600.0, **step) == pytest.approx(0.49)


@law
@given(st.floats(1e-6, 10), st.floats(-1e6, 1e6), st.integers(1, 1000), st.floats(0.1, 100))
def test_the_coefficient_stays_positive_and_moves_towards_the_target(kl_coef, mean_kl, num_responses, target):
    new = next_kl_coef(kl_coef, mean_kl, num_responses, target=target, horizon=1000.0)
    assert new > 0
    assert (new > kl_coef) <= (mean_kl > target)
    assert (new < kl_coef) <= (mean_kl < target)


def test_next_kl_coef_refuses_what_would_lose_the_coefficient():
    with pytest.raises(ConfigError, match=r"target=0.0 must be positive"):
        next_kl_coef(0.1, 1.0, 8, target=0.0, horizon=100.0)
    with pytest.raises(ConfigError, match=r"horizon=10.0 must exceed num_responses/5=10.0"):
        next_kl_coef(0.1, 1.0, 50, target=6.0, horizon=10.0)
