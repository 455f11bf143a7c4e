"""Tokens that another engine drew, or an older policy: the weights, the weighted losses, and that they undo the bias."""

import math

import pytest
import reference
import torch
from cases import Draws, law, rows_of, rubbish, seeds, spoiled
from hypothesis import given
from hypothesis import strategies as st
from test_update_formulas import response_tokens
from torch import tensor
from update_world import ONE_STEP, World, assert_same_weights

from ppo_core import ConfigError, PPOConfig, ShapeError, importance_weights, pg_loss, policy_loss

caps = st.sampled_from([1.0, 1.5, 2.0, math.inf])
some_responses = st.one_of(st.none(), st.integers(1, 9))


def case(seed):
    """New, old and engine's log-probabilities (ratios from about 1/5 to 5), advantages, and the mask."""
    draws = Draws(seed)
    old = -draws.normal(4, 6).abs()
    new, sampling = old + 0.8 * draws.normal(4, 6), old + 0.8 * draws.normal(4, 6)
    return new, old, sampling, draws.normal(4, 6), draws.mask_with_gaps()


def policy(new, old, advantages, mask, **settings):
    return policy_loss(new, old, advantages, mask, cliprange=0.2, dual_clip=3.0, **settings)


LOSSES = {
    "policy": (policy, lambda new, old, a: reference.policy_objective(new, old, a, 0.2, 0.2, 3.0)),
    "pg": (pg_loss, lambda new, old, a: new * a),
}
both = pytest.mark.parametrize(("loss_function", "objective"), LOSSES.values(), ids=LOSSES)


@law
@given(seeds, caps, rubbish)
def test_a_weight_is_the_ratio_of_trainer_to_engine_up_to_the_cap(seed, cap, fill):
    _, old, sampling, _, mask = case(seed)
    weights, stats = importance_weights(
        spoiled(old, mask, fill), spoiled(sampling, mask, fill), mask, cap=cap, num_tokens=10
    )
    ratios = [
        math.exp(o) / math.exp(s)
        for row in zip(rows_of(old, mask), rows_of(sampling, mask), strict=True)
        for o, s in zip(*row, strict=True)
    ]
    assert weights[mask].tolist() == pytest.approx([min(r, cap) for r in ratios], rel=1e-12)
    assert bool((weights[~mask] == 1).all())
    assert stats["importance_mean"].item() == pytest.approx(sum(min(r, cap) for r in ratios) / 10)
    assert stats["importance_capped"].item() == pytest.approx(sum(r > cap for r in ratios) / 10)
    assert stats["sampling_approx_kl"].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 10)


def test_weights_worked_example():
    # engine twice too eager, four times too shy, exact: the second is truncated
    old, sampling = tensor([[0.25, 0.8, 0.5]]).log(), tensor([[0.5, 0.2, 0.5]]).log()
    weights, stats = importance_weights(old, sampling, tensor([[True, True, True]]), cap=2.0, num_tokens=3)
    assert weights.tolist() == [[0.5, 2.0, 1.0]]
    assert stats["importance_mean"].item() == pytest.approx(3.5 / 3)
    assert stats["importance_capped"].item() == pytest.approx(1 / 3)
    # r - 1 - log r of the ratios 1/2, 4 and 1
    assert stats["sampling_approx_kl"].item() == pytest.approx((2.5 - math.log(2)) / 3)


@law
@given(seeds, caps, some_responses)
@both
def test_a_weighted_loss_is_the_sum_of_weighted_terms_and_its_statistics_stay(
    loss_function, objective, seed, cap, num_responses
):
    new, old, sampling, advantages, mask = case(seed)
    weights, _ = importance_weights(old, sampling, mask, cap=cap, num_tokens=7)
    counts = {"num_tokens": 7, "num_responses": num_responses}
    loss, stats = loss_function(new, old, advantages, mask, weights=weights, **counts)
    rows = zip(*(rows_of(x, mask) for x in (new, old, sampling, advantages)), strict=True)
    terms = [[min(math.exp(o - s), cap) * objective(n, o, a) for n, o, s, a in zip(*row, strict=True)] for row in rows]
    assert loss.item() == pytest.approx(-reference.aggregate(terms, 7, num_responses), abs=1e-9)
    _, unweighted = loss_function(new, old, advantages, mask, **counts)
    assert stats == unweighted


@given(seeds, some_responses)
@law
@both
def test_an_engine_that_agrees_with_the_trainer_changes_no_bit(loss_function, objective, seed, num_responses):
    new, old, _, advantages, mask = (x.float() if x.is_floating_point() else x for x in case(seed))

    def run(weights):
        leaf = new.clone().requires_grad_()
        counts = {"num_tokens": int(mask.sum()), "num_responses": num_responses}
        loss, _ = loss_function(leaf, old, advantages, mask, weights=weights, **counts)
        loss.backward()
        return loss, leaf.grad

    weights, _ = importance_weights(old, old.clone(), mask, cap=1.0, num_tokens=1)
    for weighted, plain in zip(run(weights), run(None), strict=True):
        assert torch.equal(weighted, plain)


@both
def test_on_policy_the_gradient_of_a_token_is_minus_its_weight_times_its_advantage(loss_function, objective):
    old = tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
    sampling, advantages = old - tensor([[math.log(1.5), math.log(0.5), 9.0]]), tensor([[2.0, -1.0, 1.0]]).double()
    mask = tensor([[True, True, True]])
    leaf = old.clone().requires_grad_()
    weights, _ = importance_weights(leaf, sampling, mask, cap=2.0, num_tokens=3)
    loss, _ = loss_function(leaf, old, advantages, mask, weights=weights, num_tokens=3)
    loss.backward()
    # The weights are data, also where the log-probabilities that they are made of are those in training.
    assert leaf.grad[0].tolist() == pytest.approx([-1.5 * 2 / 3, 0.5 / 3, -2.0 / 3])


@pytest.mark.parametrize(("cap", "is_corrected"), [(math.inf, True), (4.0, True), (1.2, False)])
@both
def test_an_engine_with_a_bias_of_its_own_is_corrected_in_expectation(loss_function, objective, cap, is_corrected):
    """Over a vocabulary of four, all first tokens with their probability under the engine: no sampling error."""
    z = tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
    bias, advantages = tensor([0.5, 1.0, -0.9, 0.0]).double(), tensor([1.0, 2.0, -1.0, 0.5]).double()
    mask = torch.ones(4, 1, dtype=torch.bool)

    def gradient(drawn_from, weigh):
        """Of the expected loss in the policy's logits, tokens drawn from ``drawn_from``."""
        leaf = z.clone().requires_grad_()
        logprobs = leaf.log_softmax(0)[:, None]
        old, sampling = logprobs.detach(), drawn_from[:, None]
        weights = importance_weights(old, sampling, mask, cap=cap, num_tokens=1)[0] if weigh else None
        # A token's share of the loss is scaled by how often the engine draws it.
        probabilities = drawn_from.exp()[:, None]
        loss, _ = loss_function(logprobs, old, advantages[:, None] * probabilities, mask, weights=weights, num_tokens=1)
        return torch.autograd.grad(loss, leaf)[0]

    policy, engine = z.log_softmax(0), (z + bias).log_softmax(0)
    on_policy = gradient(policy, weigh=False)
    assert (gradient(engine, weigh=False) - on_policy).abs().max() > 0.1
    assert torch.allclose(gradient(engine, weigh=True), on_policy, atol=1e-12) == is_corrected


def engine_batch(world):
    batch = world.off_policy()
    logprobs = batch.token_columns["logprobs"]
    return batch.with_columns(sampling_logprobs=logprobs + 0.7 * Draws(5).normal(len(logprobs)))


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean"])
@pytest.mark.parametrize("loss", ["pg", "ppo"])
def test_an_update_weighs_the_surrogate_alone(loss, aggregation):
    world = World(policy_lr=0.5, critic_lr=0.25)
    batch = engine_batch(world)
    sampling = batch.column("sampling_logprobs")
    expected_table, expected_values = world.weights
    weights = []
    for i, tokens in enumerate(response_tokens(world, batch)):
        num_terms = len(tokens) * len(batch) if aggregation == "seq_mean" else len(batch.responses.values)
        for (h, z, _, token, old, advantage, target), engine in zip(tokens, sampling.row(i).tolist(), strict=True):
            weights.append(min(math.exp(old - engine), 1.5))
            new = reference.logprob(z, token)
            slope = -advantage * weights[-1]
            if loss == "ppo":
                binds = reference.policy_clip_binds(new, old, advantage, 0.2, 0.2)
                slope *= 0.0 if binds else math.exp(new - old)
            logprob_slope = tensor(reference.logprob_slope(z, token), dtype=torch.float64)
            entropy_slope = tensor(reference.entropy_slope(z), dtype=torch.float64)
            expected_table[h] -= 0.5 * (slope * logprob_slope - 0.2 * entropy_slope) / num_terms
            expected_values[h, 0] -= 0.25 * (0 - target) / num_terms
    settings = {"loss": loss, "aggregation": aggregation, "importance_cap": 1.5, "entropy_coef": 0.2}
    limits = {"max_grad_norm": math.inf, "critic_max_grad_norm": math.inf}
    # In many micro-batches, so that a cap or a mean that saw only one of them would show.
    stats = world.update(batch=batch, **ONE_STEP, **limits, **settings, micro_batch_tokens=1)
    assert_same_weights(world.weights, [expected_table, expected_values])
    assert stats.importance_mean == pytest.approx(reference.mean(weights))
    assert stats.importance_capped == pytest.approx(reference.mean([float(w == 1.5) for w in weights]))
    assert 0 < stats.importance_capped < 1
    logratios = batch.token_columns["logprobs"] - sampling.values
    assert stats.sampling_approx_kl == pytest.approx(float((logratios.exp() - 1 - logratios).mean()))


def test_an_update_of_the_trainers_own_rollouts_has_no_weights():
    assert not {"importance_mean", "importance_capped", "sampling_approx_kl"} & set(
        World().update(**ONE_STEP).as_dict()
    )


@pytest.mark.parametrize("cap", [0.99, 0.0, -1.0, math.nan])
def test_a_cap_below_one_is_refused(cap):
    with pytest.raises(ConfigError, match=r"importance_cap=.* must be at least 1, 2 is usual; inf does not truncate"):
        PPOConfig(importance_cap=cap)
    one = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match=r"cap=.* must be at least 1"):
        importance_weights(one, one, one == 0, cap=cap, num_tokens=1)


@pytest.mark.parametrize(
    ("function", "settings"), [(policy_loss, {"cliprange": 0.2}), (pg_loss, {}), (importance_weights, {"cap": 2.0})]
)
def test_a_column_of_another_shape_is_refused_by_name(function, settings):
    x, mask, odd = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 1)
    # Without the check of types that the tests switch on: broadcasting would hide the mistake.
    unchecked = getattr(function, "__wrapped__", function)
    inputs = (x, odd, mask) if function is importance_weights else (x, x, x, mask)
    settings = settings if function is importance_weights else {**settings, "weights": odd}
    with pytest.raises(ShapeError, match=r"is \(2, 1\) but response_mask is \(2, 3\)"):
        unchecked(*inputs, num_tokens=6, **settings)
