"""What holds, whatever the configuration. The fifth law, that training reaches the known optimum, is test_learning.py."""

import os
import subprocess
import sys
from pathlib import Path

import gloo_update
import pytest
import reference
import torch
from cases import Draws, few, law, rubbish, seeds, spoiled
from hypothesis import given
from hypothesis import strategies as st
from small_models import tiny_llama
from torch import tensor
from update_world import ONE_STEP, PROMPTS, CountingSGD, World, assert_same_weights

import ppo_core
from ppo_core import (
    Optimizers,
    PPOConfig,
    Ragged,
    RolloutBatch,
    ShapeError,
    Sharing,
    add_gradients,
    can_share,
    entropy,
    exact_kl,
    gae,
    gather_logprobs,
    kl_estimate,
    kl_loss,
    masked_mean,
    masked_whiten,
    pg_loss,
    policy_loss,
    ppo_update,
    token_rewards,
    value_loss,
)

ROOT = Path(ppo_core.__file__).parent.parent

CONFIGURATIONS = {
    "default": {},
    "seq_mean": {"aggregation": "seq_mean", "cliprange": (0.1, 0.3), "dual_clip": 2.0},
    "pg": {"loss": "pg", "entropy_coef": 0.2, "cliprange_value": None},
    "k1": {"kl_loss_coef": 0.3, "kl_loss_estimator": "k1"},
    "k2 forward": {"kl_loss_coef": 0.3, "kl_loss_estimator": "k2", "kl_loss_direction": "forward"},
    "k3 seq_mean": {"kl_loss_coef": 0.3, "aggregation": "seq_mean", "entropy_coef": 0.2},
    "exact": {"kl_loss_coef": 0.3, "kl_loss_estimator": "exact", "aggregation": "seq_mean"},
    "exact forward": {"kl_loss_coef": 0.3, "kl_loss_estimator": "exact", "kl_loss_direction": "forward"},
}
every_configuration = pytest.mark.parametrize("settings", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


@every_configuration
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_1_in_the_first_minibatch_the_ratio_is_one_and_the_approximate_kl_is_zero(settings, temperature):
    stats = World(temperature=temperature).update(**ONE_STEP, **settings)
    assert stats.first_minibatch_ratio_deviation < 1e-12
    assert abs(stats.approx_kl) < 1e-12
    assert abs(stats.k1_kl) < 1e-12
    assert stats.ratio_mean == pytest.approx(1)
    assert stats.clipfrac in (0, None)


@every_configuration
@few
@given(seed=seeds, micro_batch_tokens=st.integers(1, 60))
def test_2_micro_batches_hence_padding_do_not_change_loss_and_gradient(settings, seed, micro_batch_tokens):
    whole, split = World(seed), World(seed)
    plan = {"batch": whole.off_policy(), "epochs": 2, "num_minibatches": 2, **settings}
    stats = whole.update(micro_batch_tokens=10_000, **plan).as_dict()
    split_stats = split.update(micro_batch_tokens=micro_batch_tokens, **plan).as_dict()
    assert_same_weights(split.weights, whole.weights)
    assert split_stats == pytest.approx(stats, abs=1e-10)


def test_2_micro_batches_do_not_change_the_update_of_a_transformer():
    weights = []
    for micro_batch_tokens in (10_000, 1):
        world, policy = World(), tiny_llama()
        optimizers = Optimizers(policy=CountingSGD(policy.parameters(), 0.1), critic=world.optimizers.critic)
        config = PPOConfig(**ONE_STEP)
        ppo_update(policy, world.critic, optimizers, world.batch, config, seed=0, micro_batch_tokens=micro_batch_tokens)
        weights.append([p.detach() for p in policy.parameters()])
    assert_same_weights(*weights, tolerance=1e-5)


@every_configuration
@few
@given(seed=seeds)
def test_2_row_order_does_not_change_loss_and_gradient(settings, seed):
    straight, permuted = World(seed), World(seed)
    batch = straight.off_policy()
    plan = {"epochs": 2, "num_minibatches": 1, **settings}
    stats = straight.update(batch=batch, **plan).as_dict()
    permuted_stats = permuted.update(batch=batch.select(Draws(seed).permutation(len(PROMPTS))), **plan).as_dict()
    assert_same_weights(permuted.weights, straight.weights)
    assert permuted_stats == pytest.approx(stats, abs=1e-10)


@pytest.fixture(scope="module")
def shared_updates(tmp_path_factory):
    """What each of three processes has, by number of processes of a group and by update."""
    folder = tmp_path_factory.mktemp("gloo")
    paths = [str(Path(gloo_update.__file__).parent), str(ROOT)]
    run = subprocess.run(
        [sys.executable, gloo_update.__file__, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(gloo_update.NUM_PROCESSES)]


@pytest.mark.parametrize("name", gloo_update.UPDATES)
@pytest.mark.parametrize("num_processes", [2, 3])
def test_2_the_number_of_processes_does_not_change_loss_and_gradient(shared_updates, num_processes, name):
    weights, stats = gloo_update.run_update(name)
    assert torch.equal(weights[-1], torch.ones(3, dtype=torch.float64)), "no gradient, hence no decay"
    first_weights, first_stats = shared_updates[0][num_processes][name]
    assert_same_weights(first_weights, weights)
    assert first_stats == pytest.approx(stats, rel=1e-10, abs=1e-10)
    for results in shared_updates[1:num_processes]:
        other_weights, other_stats = results[num_processes][name]
        assert all(torch.equal(a, b) for a, b in zip(first_weights, other_weights, strict=True))
        assert other_stats == first_stats


@pytest.mark.parametrize("name", gloo_update.UPDATES)
@pytest.mark.parametrize(("num_processes", "shares"), [(n, shares) for n in (2, 3) for shares in gloo_update.SHARES[n]])
def test_2_with_shares_the_number_of_processes_changes_no_bit(shared_updates, num_processes, shares, name):
    weights, stats = shared_updates[0][1, shares][name]
    for results in shared_updates[:num_processes]:
        other_weights, other_stats = results[num_processes, shares][name]
        assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
        assert other_stats == stats
    # And it is the same update as without shares but for rounding.
    whole_weights, whole_stats = shared_updates[0][1][name]
    assert_same_weights(weights, whole_weights)
    assert stats == pytest.approx(whole_stats, rel=1e-10, abs=1e-10)


def test_2_gradients_of_four_shares_are_added_in_pairs():
    parameter = torch.nn.Parameter(tensor([1.0]))

    def one_of(size):
        return lambda factor: (parameter * size * factor).sum().backward()

    # (1e8 + 1) + (-1e8 + 1) in float32; one after the other they come to 1.
    add_gradients([parameter], [one_of(size) for size in (1e8, 1.0, -1e8, 1.0)], Sharing(None, 4))
    assert parameter.grad.tolist() == [0.0]


@pytest.mark.parametrize(("shares", "processes"), [(3, 2), (2, 4), (6, 2), (12, 4)])
def test_2_shares_that_processes_cannot_add_up_in_one_order_are_refused(shares, processes):
    assert not can_share(shares, processes)


@pytest.mark.parametrize(("shares", "processes"), [(1, 7), (2, 1), (4, 2), (6, 3), (8, 8)])
def test_2_shares_that_each_process_has_a_branch_of_are_taken(shares, processes):
    assert can_share(shares, processes)


@law
@given(seeds, rubbish)
def test_3_nan_or_infinity_at_a_masked_position_changes_nothing(seed, junk):
    draws = Draws(seed)
    mask = draws.mask_with_gaps()
    columns, scores = [draws.normal(4, 6) for _ in range(3)], draws.normal(4)
    count = {"num_tokens": int(mask.sum()), "num_responses": 4}

    def run(fill):
        x, y, z = (spoiled(column, mask, fill).requires_grad_() for column in columns)
        results = [
            token_rewards(scores, x, mask, kl_coef=0.1),
            *gae(x, y, mask, gamma=0.9, lam=0.8),
            masked_whiten(x, mask),
            masked_mean(x, mask),
            policy_loss(x, y, z, mask, cliprange=0.2, dual_clip=3.0, **count)[0],
            pg_loss(x, y, z, mask, **count)[0],
            value_loss(x, y, z, mask, cliprange_value=0.2, **count)[0],
            kl_loss(x, y, z, mask, estimator="k3", direction="reverse", **count),
            kl_loss(x, y, z, mask, estimator="k2", direction="forward", **count),
        ]
        sum(result.sum() for result in results).backward()
        return [*(result.detach() for result in results), *(column.grad for column in (x, y, z))]

    assert all(torch.equal(clean, dirty) for clean, dirty in zip(run(0.0), run(junk), strict=True))


@pytest.mark.parametrize("empty", [0, 1])
def test_3_an_empty_response_is_refused_where_rollouts_are_written(empty):
    responses = [[5], [6]]
    responses[empty] = []
    with pytest.raises(ShapeError, match=f"the response of row {empty} is empty; drop the row"):
        RolloutBatch(
            prompts=Ragged.from_rows([[1], [2]], torch.int64),
            responses=Ragged.from_rows(responses, torch.int64),
            stopped=tensor([True, True]),
        )


@law
@given(st.floats(-8, 8, width=32), st.floats(-(2.0**-10), 2.0**-10, width=32))
def test_4_k3_is_never_negative_even_in_single_precision_near_zero(logprob, difference):
    logprobs = tensor([[logprob]])
    assert kl_estimate(logprobs, logprobs + difference, "k3").item() >= 0


@few
@given(seeds)
def test_4_k1_and_k3_average_to_the_exact_divergence_and_k2_to_half_the_mean_square(seed):
    z, ref_z = Draws(seed).normal(2, 6).tolist()
    p = tensor(reference.softmax(z), dtype=torch.float64)
    logprobs, ref_logprobs = (
        tensor([[reference.logprob(logits, v) for v in range(6)]], dtype=torch.float64) for logits in (z, ref_z)
    )
    exact = reference.kl(z, ref_z)

    def average(estimator):
        # An expectation over all six tokens instead of samples: no tolerance for chance is needed.
        return (p * kl_estimate(logprobs, ref_logprobs, estimator)[0]).sum().item()

    assert average("k1") == pytest.approx(exact, abs=1e-10)
    assert average("k3") == pytest.approx(exact, abs=1e-10)
    squares = sum(w * (a - b) ** 2 for w, a, b in zip(p, logprobs[0], ref_logprobs[0], strict=True))
    assert average("k2") == pytest.approx(squares.item() / 2, abs=1e-10)
    logits, ref_logits = tensor([z], dtype=torch.float64), tensor([ref_z], dtype=torch.float64)
    assert exact_kl(logits, ref_logits).item() == pytest.approx(exact, abs=1e-10)


def test_4_over_many_samples_the_estimates_agree_with_the_exact_divergence():
    z, ref_z = Draws(11).normal(2, 6).tolist()
    logits, ref_logits = tensor([z], dtype=torch.float64), tensor([ref_z], dtype=torch.float64)
    n = 100_000
    drawn = torch.multinomial(
        tensor(reference.softmax(z)), n, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    logprobs, ref_logprobs = (gather_logprobs(x.expand(n, -1), drawn) for x in (logits, ref_logits))
    exact = reference.kl(z, ref_z)
    for estimator in ("k1", "k3"):
        samples = kl_estimate(logprobs, ref_logprobs, estimator)
        standard_error = samples.std().item() / n**0.5
        assert abs(samples.mean().item() - exact) < 4 * standard_error
        assert standard_error < 0.02 * exact
    # -log p is an estimate of the entropy.
    standard_error = logprobs.std().item() / n**0.5
    assert abs(-logprobs.mean().item() - entropy(logits).item()) < 4 * standard_error


@every_configuration
def test_6_two_updates_with_one_seed_are_bit_identical_and_another_seed_has_other_minibatches(settings):
    results = []
    for seed in (1, 1, 2):
        world = World()
        stats = world.update(seed=seed, **settings)
        results.append((world.weights, stats))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))
    assert results[0][1] == results[1][1]
    assert not torch.equal(results[0][0][0], results[2][0][0])
