"""One step of an update against its formulas, written out token by token."""

import itertools
import math

import pytest
import reference
import torch
from cases import Draws
from torch import tensor
from update_world import ONE_STEP, World, assert_same_weights, history

UNLIMITED = {"max_grad_norm": math.inf, "critic_max_grad_norm": math.inf}


def response_tokens(world, batch):
    """For each response its tokens: their row of the table, tempered logits of policy and reference, and data."""
    columns = {name: batch.column(name) for name in ("logprobs", "advantages", "returns")}
    for i in range(len(batch)):
        prompt, response = batch.prompts.row(i).tolist(), batch.responses.row(i).tolist()
        data = zip(*(columns[name].row(i).tolist() for name in columns), strict=True)
        tokens = []
        for t, (token, (old, advantage, target)) in enumerate(zip(response, data, strict=True)):
            h = history(prompt + response[:t])
            z, ref_z = (
                [x / world.temperature for x in model.table[h].tolist()] for model in (world.policy, world.reference)
            )
            tokens.append((h, z, ref_z, token, old, advantage, target))
        yield tokens


def times(factor, xs):
    return [factor * x for x in xs]


def plus(xs, ys):
    return [x + y for x, y in zip(xs, ys, strict=True)]


def pg_slope(z, ref_z, token, old, advantage):
    return times(-advantage, reference.logprob_slope(z, token))


def ppo_slope(z, ref_z, token, old, advantage):
    new = reference.logprob(z, token)
    if reference.policy_clip_binds(new, old, advantage, 0.1, 0.3):
        return [0.0] * len(z)
    return times(-advantage * math.exp(new - old), reference.logprob_slope(z, token))


def with_entropy(z, ref_z, token, old, advantage):
    return plus(pg_slope(z, ref_z, token, old, advantage), times(-0.2, reference.entropy_slope(z)))


def with_sampled_kl(direction):
    def slope(z, ref_z, token, old, advantage):
        new, ref = reference.logprob(z, token), reference.logprob(ref_z, token)
        per_logprob = new - ref if direction == "reverse" else 1 - math.exp(ref - new)
        kl = times(math.exp(new - old) * per_logprob, reference.logprob_slope(z, token))
        return plus(pg_slope(z, ref_z, token, old, advantage), times(0.3, kl))

    return slope


def with_exact_kl(direction):
    def slope(z, ref_z, token, old, advantage):
        kl = reference.kl_slope(z, ref_z, direction)
        return plus(pg_slope(z, ref_z, token, old, advantage), times(0.3, kl))

    return slope


def kl_settings(estimator, direction):
    return {"loss": "pg", "kl_loss_coef": 0.3, "kl_loss_estimator": estimator, "kl_loss_direction": direction}


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("slope", "settings"),
    [
        pytest.param(pg_slope, {"loss": "pg"}, id="pg"),
        pytest.param(ppo_slope, {"cliprange": (0.1, 0.3)}, id="ppo"),
        pytest.param(with_entropy, {"loss": "pg", "entropy_coef": 0.2}, id="entropy"),
        pytest.param(with_sampled_kl("reverse"), kl_settings("k1", "reverse"), id="k1"),
        pytest.param(with_sampled_kl("reverse"), kl_settings("k3", "reverse"), id="k3"),
        pytest.param(with_sampled_kl("forward"), kl_settings("k2", "forward"), id="k2 forward"),
        pytest.param(with_exact_kl("reverse"), kl_settings("exact", "reverse"), id="exact"),
        pytest.param(with_exact_kl("forward"), kl_settings("exact", "forward"), id="exact forward"),
    ],
)
def test_one_step_moves_the_weights_as_the_formula_says(slope, settings, temperature, aggregation):
    world = World(policy_lr=0.5, critic_lr=0.25, temperature=temperature)
    batch = world.off_policy()
    expected_table, expected_values = world.weights
    for tokens in response_tokens(world, batch):
        num_terms = len(tokens) * len(batch) if aggregation == "seq_mean" else len(batch.responses.values)
        for h, z, ref_z, token, old, advantage, target in tokens:
            # The logits of the table reach the loss divided by the temperature, the values as they are.
            change = tensor(slope(z, ref_z, token, old, advantage), dtype=torch.float64) / temperature
            expected_table[h] -= 0.5 * change / num_terms
            expected_values[h, 0] -= 0.25 * (0 - target) / num_terms
    world.update(batch=batch, **ONE_STEP, **UNLIMITED, **settings, aggregation=aggregation)
    assert_same_weights(world.weights, [expected_table, expected_values])


def test_statistics_of_one_step_equal_their_definitions():
    world = World(temperature=0.8)
    batch = world.batch.with_columns(
        logprobs=world.batch.token_columns["logprobs"] - 0.4 * Draws(1).normal(len(world.batch.responses.values)),
        values=0.5 * world.batch.token_columns["returns"] + 0.1,
    )
    z_of_token = [z for tokens in response_tokens(world, batch) for _, z, *_ in tokens]
    tokens = batch.responses.values.tolist()
    old, values, advantages, returns = (
        batch.token_columns[name].tolist() for name in ("logprobs", "values", "advantages", "returns")
    )
    new = [reference.logprob(z, token) for z, token in zip(z_of_token, tokens, strict=True)]
    stats = world.update(batch=batch, **ONE_STEP, cliprange=(0.1, 0.3), cliprange_value=0.05, dual_clip=1.1)
    triples = list(zip(new, old, advantages, strict=True))
    value_errors = [reference.value_error(0.0, v, r, 0.05) for v, r in zip(values, returns, strict=True)]
    assert stats.policy_loss == pytest.approx(
        -reference.mean([reference.policy_objective(*x, 0.1, 0.3, 1.1) for x in triples]), abs=1e-9
    )
    assert stats.value_loss == pytest.approx(reference.mean(value_errors), abs=1e-9)
    assert stats.approx_kl == pytest.approx(reference.mean([reference.estimate(o, n, "k3") for n, o, _ in triples]))
    ends = batch.responses.offsets.tolist()
    of_responses = [
        sum(reference.estimate(o, n, "k3") for n, o, _ in triples[start:end]) for start, end in itertools.pairwise(ends)
    ]
    assert stats.approx_kl_stderr == pytest.approx(math.sqrt(sum(x**2 for x in of_responses)) / len(tokens))
    assert stats.k1_kl == pytest.approx(reference.mean([o - n for n, o, _ in triples]))
    assert stats.clipfrac == pytest.approx(
        reference.mean([float(reference.policy_clip_binds(*x, 0.1, 0.3)) for x in triples])
    )
    assert stats.value_clipfrac == pytest.approx(
        reference.mean([float(e > r**2 / 2 + 1e-12) for e, r in zip(value_errors, returns, strict=True)])
    )
    ratios = [math.exp(n - o) for n, o, _ in triples]
    assert any(ratio > 1.1 and a < 0 for ratio, (_, _, a) in zip(ratios, triples, strict=True)), "the dual clip binds"
    assert stats.ratio_mean == pytest.approx(reference.mean(ratios))
    assert stats.first_minibatch_ratio_deviation == pytest.approx(max(abs(r - 1) for r in ratios))
    assert stats.entropy == pytest.approx(reference.mean([reference.entropy(z) for z in z_of_token]))
    assert stats.explained_variance == pytest.approx(0.75)


def test_more_epochs_over_the_same_responses_do_not_make_the_kl_better_known_and_more_minibatches_do():
    def found(**settings):
        world = World(policy_lr=0.0)
        heard = []
        stats = world.update(batch=world.off_policy(), before_step=heard.append, **settings)
        return stats.approx_kl_stderr, [minibatch.values["approx_kl_variance"] for minibatch in heard]

    once, _ = found(epochs=1, num_minibatches=1)
    assert found(epochs=3, num_minibatches=1)[0] == pytest.approx(once)
    halves, variances = found(epochs=1, num_minibatches=2)
    assert halves == pytest.approx(math.sqrt(sum(variances)) / 2)


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean"])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_the_divergence_in_the_loss_is_reported_as_it_is_defined(estimator, direction, aggregation):
    world = World(temperature=0.8)
    batch = world.off_policy()

    def divergence(h, z, ref_z, token, old, advantage, target):
        if estimator == "exact":
            return reference.kl(z, ref_z) if direction == "reverse" else reference.kl(ref_z, z)
        new, ref = reference.logprob(z, token), reference.logprob(ref_z, token)
        return reference.kl_loss(new, old, ref, estimator, direction)

    rows = [[divergence(*token) for token in tokens] for tokens in response_tokens(world, batch)]
    num_responses = len(batch) if aggregation == "seq_mean" else None
    expected = reference.aggregate(rows, len(batch.responses.values), num_responses)
    stats = world.update(batch=batch, **ONE_STEP, **kl_settings(estimator, direction), aggregation=aggregation)
    assert stats.kl_loss == pytest.approx(expected, rel=1e-9)
