import math

import pytest
import reference
import torch
from cases import Draws, law, rubbish, seeds, spoiled
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck

from ppo_core import ConfigError, EmptyMaskError, policy_loss, value_loss

clipranges = st.sampled_from([0.2, (0.2, 0.28), (0.1, 3.0)])
dual_clips = st.sampled_from([None, 1.5, 3.0])
value_clips = st.sampled_from([None, 0.2, 1.0])
TRUE = tensor([[True]])


def policy_case(seed):
    """Ratios from about 1/5 to 5, so that every branch of the clip is taken."""
    draws = Draws(seed)
    logprobs = -draws.normal(4, 6).abs()
    return logprobs + 0.8 * draws.normal(4, 6), logprobs, draws.normal(4, 6), draws.mask()


def value_case(seed):
    draws = Draws(seed)
    return draws.normal(4, 6), draws.normal(4, 6), draws.normal(4, 6), draws.mask()


def widths(cliprange):
    return cliprange if isinstance(cliprange, tuple) else (cliprange, cliprange)


@law
@given(seeds, clipranges, dual_clips, st.integers(1, 50))
def test_policy_loss_and_its_statistics_equal_their_definitions(seed, cliprange, dual_clip, num_tokens):
    new_logprobs, logprobs, advantages, mask = policy_case(seed)
    loss, stats = policy_loss(
        new_logprobs, logprobs, advantages, mask, cliprange=cliprange, dual_clip=dual_clip, num_tokens=num_tokens
    )
    low, high = widths(cliprange)
    tokens = list(zip(*(x[mask].tolist() for x in (new_logprobs, logprobs, advantages)), strict=True))
    ratios = [math.exp(new) / math.exp(old) for new, old, _ in tokens]
    expected = {
        "clipfrac": sum(reference.policy_clip_binds(*token, low, high) for token in tokens) / num_tokens,
        # The rollout policy drew the tokens: it stands first in the divergence.
        "approx_kl": sum(reference.estimate(old, new, "k3") for new, old, _ in tokens) / num_tokens,
        "k1_kl": sum(reference.estimate(old, new, "k1") for new, old, _ in tokens) / num_tokens,
        "ratio_mean": sum(ratios) / num_tokens,
        "ratio_max_deviation": max(abs(ratio - 1) for ratio in ratios),
    }
    objective = sum(reference.policy_objective(*token, low, high, dual_clip) for token in tokens)
    assert loss.item() == pytest.approx(-objective / num_tokens, abs=1e-9)
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(expected, abs=1e-9)


@law
@given(seeds, value_clips, st.integers(1, 50))
def test_value_loss_equals_its_definition(seed, clip, num_tokens):
    new_values, values, returns, mask = value_case(seed)
    loss, stats = value_loss(new_values, values, returns, mask, cliprange_value=clip, num_tokens=num_tokens)
    tokens = list(zip(*(x[mask].tolist() for x in (new_values, values, returns)), strict=True))
    errors = [reference.value_error(*token, clip) for token in tokens]
    assert loss.item() == pytest.approx(sum(errors) / num_tokens, abs=1e-9)
    binding = sum(e > reference.value_error(*t, None) + 1e-12 for e, t in zip(errors, tokens, strict=True))
    assert stats["clipfrac"].item() == pytest.approx(binding / num_tokens)


@law
@given(seeds, rubbish, st.integers(0, 3))
def test_masked_places_change_neither_loss_nor_gradient_nor_statistics(seed, junk, extra):
    def run(loss_function, case, fill, **settings):
        *inputs, mask = case
        inputs = [torch.nn.functional.pad(spoiled(x, mask, fill), (0, extra), value=fill) for x in inputs]
        new, *fixed = inputs
        new.requires_grad_()
        mask = torch.nn.functional.pad(mask, (0, extra))
        loss, stats = loss_function(new, *fixed, mask, num_tokens=int(mask.sum()), **settings)
        loss.backward()
        assert (new.grad[~mask] == 0).all()
        return [loss.detach(), new.grad, *stats.values()]

    for loss_function, case, settings in (
        (policy_loss, policy_case(seed), {"cliprange": 0.2, "dual_clip": 3.0}),
        (value_loss, value_case(seed), {"cliprange_value": 0.2}),
        (value_loss, value_case(seed), {"cliprange_value": None}),
    ):
        clean = run(loss_function, case, 0.0, **settings)
        dirty = run(loss_function, case, junk, **settings)
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@law
@given(seeds, st.integers(1, 3))
def test_loss_gradient_and_statistics_do_not_depend_on_how_a_minibatch_is_split(seed, cut):
    order = Draws(seed + 1).permutation(4)
    for loss_function, case, settings in (
        (policy_loss, policy_case(seed), {"cliprange": 0.2}),
        (value_loss, value_case(seed), {"cliprange_value": 0.2}),
    ):
        new, *fixed = case
        num_tokens = int(case[-1].sum())

        def run(parts, new=new, fixed=fixed, num_tokens=num_tokens, loss_function=loss_function, settings=settings):
            leaf = new.clone().requires_grad_()
            results = [
                loss_function(leaf[rows], *(x[rows] for x in fixed), num_tokens=num_tokens, **settings)
                for rows in parts
            ]
            sum(loss for loss, _ in results).backward()
            names = [name for name in results[0][1] if name != "ratio_max_deviation"]
            sums = [sum(stats[name] for _, stats in results) for name in names]
            return torch.stack([sum(loss for loss, _ in results).detach(), *sums]), leaf.grad

        whole, whole_grad = run([torch.arange(4)])
        split, split_grad = run([order[:cut], order[cut:]])
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(split_grad, whole_grad, rtol=1e-12, atol=1e-12)


def test_gradients_equal_finite_differences():
    for seed in range(5):
        new, *fixed = policy_case(seed)
        assert gradcheck(
            lambda x, f=fixed: policy_loss(x, *f, cliprange=(0.2, 0.3), dual_clip=2.0, num_tokens=7)[0],
            new.requires_grad_(),
        )
        new, *fixed = value_case(seed)
        for clip in (None, 0.5):
            assert gradcheck(
                lambda x, f=fixed, c=clip: value_loss(x, *f, cliprange_value=c, num_tokens=7)[0], new.requires_grad_()
            )


@law
@given(seeds)
def test_on_policy_the_ratio_is_one_and_the_gradient_is_minus_the_advantage_per_token(seed):
    _, logprobs, advantages, mask = policy_case(seed)
    new_logprobs = logprobs.clone().requires_grad_()
    num_tokens = int(mask.sum())
    loss, stats = policy_loss(new_logprobs, logprobs, advantages, mask, cliprange=0.2, num_tokens=num_tokens)
    loss.backward()
    torch.testing.assert_close(new_logprobs.grad, torch.where(mask, -advantages / num_tokens, 0.0))
    assert stats["ratio_mean"].item() == pytest.approx(1)
    assert stats["approx_kl"] == stats["k1_kl"] == stats["clipfrac"] == stats["ratio_max_deviation"] == 0


def test_policy_loss_worked_examples():
    # ratio 2: a gain is cut at 1.2, a loss counts in full or down to the dual clip
    new_logprobs, logprobs = tensor([[math.log(0.5)]]), tensor([[math.log(0.25)]])

    def loss(advantage, **settings):
        return policy_loss(new_logprobs, logprobs, tensor([[advantage]]), TRUE, num_tokens=1, **settings)[0].item()

    assert loss(3.0, cliprange=0.2) == pytest.approx(-3.6)
    assert loss(-3.0, cliprange=0.2) == pytest.approx(6.0)
    assert loss(-3.0, cliprange=0.2, dual_clip=1.5) == pytest.approx(4.5)
    assert loss(3.0, cliprange=0.2, dual_clip=1.5) == pytest.approx(-3.6)
    assert loss(3.0, cliprange=(0.2, 0.5)) == pytest.approx(-4.5)
    assert loss(3.0, cliprange=(0.2, 1.5)) == pytest.approx(-6.0)


def test_value_loss_worked_examples():
    # from 0 towards a return of 1: at 0.5, with a clip at 0.2, the error counts as if the value were still 0.2
    def loss(new_value, target, clip):
        one, zero = tensor([[new_value]]), tensor([[0.0]])
        return value_loss(one, zero, tensor([[target]]), TRUE, cliprange_value=clip, num_tokens=1)[0].item()

    assert loss(0.5, 1.0, 0.2) == pytest.approx(0.32)
    assert loss(0.5, 1.0, None) == pytest.approx(0.125)
    assert loss(0.5, -1.0, 0.2) == pytest.approx(1.125)


def test_a_value_beyond_its_range_stops_moving_towards_the_return_but_not_back():
    def gradient(target):
        new_value = tensor([[0.5]], requires_grad=True)
        loss, _ = value_loss(new_value, tensor([[0.0]]), tensor([[target]]), TRUE, cliprange_value=0.2, num_tokens=1)
        loss.backward()
        return new_value.grad.item()

    assert gradient(1.0) == 0
    assert gradient(-1.0) == pytest.approx(1.5)


def test_statistics_carry_no_gradient():
    new_logprobs, logprobs, advantages, mask = policy_case(0)
    _, stats = policy_loss(new_logprobs.requires_grad_(), logprobs, advantages, mask, cliprange=0.2, num_tokens=5)
    new_values, values, returns, mask = value_case(0)
    for clip in (None, 0.2):
        _, more = value_loss(new_values.requires_grad_(), values, returns, mask, cliprange_value=clip, num_tokens=5)
        stats |= {f"value {clip}": more["clipfrac"]}
    assert not any(value.requires_grad for value in stats.values())


def test_a_count_of_no_tokens_and_a_dual_clip_inside_the_trust_region_are_refused():
    x = tensor([[0.0]])
    with pytest.raises(EmptyMaskError, match="num_tokens=0 must be the response tokens of the minibatch"):
        policy_loss(x, x, x, TRUE, cliprange=0.2, num_tokens=0)
    with pytest.raises(EmptyMaskError, match="num_tokens=0"):
        value_loss(x, x, x, TRUE, cliprange_value=None, num_tokens=0)
    with pytest.raises(ConfigError, match=r"dual_clip=1\.0 must be above 1"):
        policy_loss(x, x, x, TRUE, cliprange=0.2, num_tokens=1, dual_clip=1.0)
