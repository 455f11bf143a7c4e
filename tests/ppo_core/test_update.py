import copy
import math

import pytest
import reference
import torch
from cases import Draws, few, seeds
from hypothesis import given
from hypothesis import strategies as st
from small_models import HistoryCritic, HistoryPolicy, history_policy, tiny_llama
from torch import tensor

from ppo_core import (
    NonFiniteError,
    Optimizers,
    PPOConfig,
    Ragged,
    RolloutBatch,
    SamplingConfig,
    ShapeError,
    derive_seed,
    gae,
    masked_whiten,
    ppo_update,
    response_logprobs,
    sample,
    token_rewards,
)

PROMPTS = [[1], [2, 3, 4], [5, 6], [7, 1, 2, 3, 4, 5], [2], [3, 3, 3]]
ONE_STEP = {"epochs": 1, "num_minibatches": 1}


class CountingSGD(torch.optim.SGD):
    """Plain gradient descent: unlike Adam it does not blow a rounding up to a full step."""

    num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        return super().step(closure)


class World:
    """A policy, a critic, and rollouts of that policy with made-up advantages, values and returns."""

    def __init__(self, seed=0, *, policy_lr=0.5, critic_lr=0.5, temperature=1.0, advantage=None):
        self.policy, self.critic = history_policy(seed), HistoryCritic(97)
        self.optimizers = Optimizers(
            policy=CountingSGD(self.policy.parameters(), policy_lr),
            critic=CountingSGD(self.critic.parameters(), critic_lr),
        )
        batch = sample(
            self.policy,
            Ragged.from_rows(PROMPTS, torch.int64),
            sampling=SamplingConfig(max_new_tokens=5, stop_token_ids=(0, 1), temperature=temperature),
            seeds=[derive_seed(seed, i) for i in range(len(PROMPTS))],
        )
        draws, n = Draws(seed), len(batch.responses.values)
        padded = batch.padded()
        with torch.no_grad():
            exact = response_logprobs(self.policy, padded, temperature=temperature)[padded.response_mask]
        self.batch = batch.with_columns(
            logprobs=exact,
            values=torch.zeros(n, dtype=torch.float64),
            advantages=draws.normal(n) if advantage is None else torch.full((n,), advantage, dtype=torch.float64),
            returns=draws.normal(n),
        )

    def update(self, *, seed=0, batch=None, on_tokens=None, temperature=1.0, micro_batch_tokens=8192, **settings):
        return ppo_update(
            self.policy,
            self.critic,
            self.optimizers,
            self.batch if batch is None else batch,
            PPOConfig(**settings),
            seed=seed,
            temperature=temperature,
            micro_batch_tokens=micro_batch_tokens,
            on_tokens=on_tokens,
        )

    @property
    def weights(self):
        return [self.policy.table.detach().clone(), self.critic.policy.table.detach().clone()]


def assert_same_weights(these, those, tolerance=1e-12):
    for a, b in zip(these, those, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_in_the_first_minibatch_the_ratio_is_one_and_the_kl_zero(temperature):
    stats = World(temperature=temperature).update(**ONE_STEP, temperature=temperature)
    assert stats.first_minibatch_ratio_deviation < 1e-12
    assert abs(stats.approx_kl) < 1e-12
    assert abs(stats.k1_kl) < 1e-12
    assert stats.ratio_mean == pytest.approx(1)
    assert stats.clipfrac == 0


def test_a_wrong_temperature_shows_in_the_first_ratio():
    assert World(temperature=1.0).update(**ONE_STEP, temperature=0.7).first_minibatch_ratio_deviation > 0.01


def test_the_first_ratio_is_that_of_the_first_minibatch_alone():
    stats = World(policy_lr=50.0).update(epochs=2, num_minibatches=2, max_grad_norm=math.inf)
    assert stats.first_minibatch_ratio_deviation < 1e-12
    assert stats.approx_kl > 1e-3


def history(tokens):
    number = 0
    for token in tokens:
        number = (number * 31 + 7 * token + 1) % 97
    return number


def test_one_step_moves_the_weights_as_the_formula_says():
    # On policy, the gradient of the loss is that of -A log p: in a table of logits, -A (one-hot - softmax).
    world = World(policy_lr=0.5, critic_lr=0.25)
    (table, values), batch = world.weights, world.batch
    num_tokens = len(batch.responses.values)
    expected_table, expected_values = table.clone(), values.clone()
    flat = zip(batch.token_columns["advantages"].tolist(), batch.token_columns["returns"].tolist(), strict=True)
    for i in range(len(batch)):
        prompt, response = batch.prompts.row(i).tolist(), batch.responses.row(i).tolist()
        for t, token in enumerate(response):
            (advantage, target), h = next(flat), history(prompt + response[:t])
            probabilities = reference.softmax(table[h].tolist())
            for v in range(8):
                expected_table[h, v] += 0.5 * advantage * ((v == token) - probabilities[v]) / num_tokens
            expected_values[h, 0] -= 0.25 * (0 - target) / num_tokens
    world.update(**ONE_STEP, max_grad_norm=math.inf, critic_max_grad_norm=math.inf)
    assert_same_weights(world.weights, [expected_table, expected_values])


@few
@given(seeds, st.integers(1, 60))
def test_the_update_does_not_depend_on_micro_batches_hence_on_padding(seed, micro_batch_tokens):
    whole, split = World(seed), World(seed)
    stats = whole.update(epochs=2, num_minibatches=2, micro_batch_tokens=10_000).as_dict()
    split_stats = split.update(epochs=2, num_minibatches=2, micro_batch_tokens=micro_batch_tokens).as_dict()
    assert_same_weights(split.weights, whole.weights)
    assert split_stats == pytest.approx(stats, abs=1e-10)


@few
@given(seeds)
def test_the_update_does_not_depend_on_row_order(seed):
    straight, permuted = World(seed), World(seed)
    straight.update(epochs=2, num_minibatches=1)
    permuted.update(epochs=2, num_minibatches=1, batch=permuted.batch.select(Draws(seed).permutation(len(PROMPTS))))
    assert_same_weights(permuted.weights, straight.weights)


def test_a_transformer_does_not_notice_micro_batches_either():
    weights = []
    for micro_batch_tokens in (10_000, 1):
        world = World()
        policy = tiny_llama()
        optimizers = Optimizers(policy=CountingSGD(policy.parameters(), 0.1), critic=world.optimizers.critic)
        config = PPOConfig(**ONE_STEP)
        ppo_update(policy, world.critic, optimizers, world.batch, config, seed=0, micro_batch_tokens=micro_batch_tokens)
        weights.append([p.detach() for p in policy.parameters()])
    assert_same_weights(*weights, tolerance=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_minibatches():
    results = []
    for seed in (1, 1, 2):
        world = World()
        world.update(seed=seed)
        results.append(world.weights)
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


def test_each_epoch_visits_the_rows_in_another_order():
    def visited(seed, epochs):
        tokens = []
        World().update(seed=seed, epochs=epochs, num_minibatches=6, on_tokens=tokens.append)
        return tokens

    assert sorted(World().batch.responses.lengths.tolist()) != World().batch.responses.lengths.tolist()
    twice = visited(3, 2)
    assert twice[:6] == visited(3, 1)
    assert twice[6:] != twice[:6]
    assert sorted(twice[6:]) == sorted(twice[:6])


@pytest.mark.parametrize(("critic_epochs", "critic_steps"), [(None, 4), (1, 2), (5, 10)])
def test_policy_and_critic_have_their_own_number_of_epochs(critic_epochs, critic_steps):
    world = World()
    tokens = []
    stats = world.update(epochs=2, critic_epochs=critic_epochs, num_minibatches=2, on_tokens=tokens.append)
    assert world.optimizers.policy.num_steps == stats.num_optimizer_steps == 4
    assert world.optimizers.critic.num_steps == critic_steps
    assert stats.num_tokens == len(world.batch.responses.values)
    assert sum(tokens) == stats.num_tokens * max(2, critic_epochs or 2)


def test_gradients_are_scaled_down_to_their_own_limits_and_reported_as_they_were():
    free, bound = World(), World()
    before = free.weights
    norms = free.update(**ONE_STEP, max_grad_norm=math.inf, critic_max_grad_norm=math.inf)
    for (a, b), norm in zip(
        zip(before, free.weights, strict=True), (norms.grad_norm, norms.critic_grad_norm), strict=True
    ):
        assert (a - b).norm().item() == pytest.approx(0.5 * norm, rel=1e-6)
    stats = bound.update(
        **ONE_STEP, max_grad_norm=norms.grad_norm / 10, critic_max_grad_norm=norms.critic_grad_norm / 5
    )
    assert (stats.grad_norm, stats.critic_grad_norm) == pytest.approx((norms.grad_norm, norms.critic_grad_norm))
    moved = [(a - b).norm().item() for a, b in zip(before, bound.weights, strict=True)]
    assert moved == pytest.approx([0.05 * norms.grad_norm, 0.1 * norms.critic_grad_norm], rel=1e-4)


def test_statistics_of_one_step_equal_their_definitions():
    world = World(temperature=0.8)
    batch = world.batch.with_columns(
        logprobs=world.batch.token_columns["logprobs"] - 0.4 * Draws(1).normal(len(world.batch.responses.values)),
        values=0.5 * world.batch.token_columns["returns"] + 0.1,
    )
    z_of_token = [
        world.policy.table[history(batch.prompts.row(i).tolist() + batch.responses.row(i).tolist()[:t])].tolist()
        for i in range(len(batch))
        for t in range(len(batch.responses.row(i)))
    ]
    tokens = batch.responses.values.tolist()
    old, values, advantages, returns = (
        batch.token_columns[name].tolist() for name in ("logprobs", "values", "advantages", "returns")
    )
    new = [reference.logprob(z, token, 0.8) for z, token in zip(z_of_token, tokens, strict=True)]
    stats = world.update(
        batch=batch, **ONE_STEP, temperature=0.8, cliprange=(0.1, 0.3), cliprange_value=0.05, dual_clip=2.0
    )
    triples = list(zip(new, old, advantages, strict=True))
    value_errors = [reference.value_error(0.0, v, r, 0.05) for v, r in zip(values, returns, strict=True)]
    assert stats.policy_loss == pytest.approx(
        -reference.mean([reference.policy_objective(*x, 0.1, 0.3, 2.0) for x in triples]), abs=1e-9
    )
    assert stats.value_loss == pytest.approx(reference.mean(value_errors), abs=1e-9)
    assert stats.approx_kl == pytest.approx(reference.mean([reference.estimate(o, n, "k3") for n, o, _ in triples]))
    assert stats.k1_kl == pytest.approx(reference.mean([o - n for n, o, _ in triples]))
    assert stats.clipfrac == pytest.approx(
        reference.mean([float(reference.policy_clip_binds(*x, 0.1, 0.3)) for x in triples])
    )
    assert stats.value_clipfrac == pytest.approx(
        reference.mean([float(e > r**2 / 2 + 1e-12) for e, r in zip(value_errors, returns, strict=True)])
    )
    ratios = [math.exp(n - o) for n, o, _ in triples]
    assert stats.ratio_mean == pytest.approx(reference.mean(ratios))
    assert stats.first_minibatch_ratio_deviation == pytest.approx(max(abs(r - 1) for r in ratios))
    assert stats.entropy == pytest.approx(reference.mean([reference.entropy([x / 0.8 for x in z]) for z in z_of_token]))
    assert stats.explained_variance == pytest.approx(0.75)


def test_statistics_are_means_over_all_minibatches():
    # Weights that do not move: each minibatch then shows what the first pass shows.
    losses = []
    for rows in range(6):
        world = World(policy_lr=0.0, critic_lr=0.0)
        losses.append(world.update(batch=world.batch.select(tensor([rows])), **ONE_STEP).value_loss)
    stats = World(policy_lr=0.0, critic_lr=0.0).update(epochs=3, num_minibatches=6)
    assert stats.value_loss == pytest.approx(reference.mean(losses))
    assert set(stats.as_dict()) == set(stats.__dataclass_fields__) - {"kl_loss"}
    assert stats.as_dict()["value_loss"] == stats.value_loss


@pytest.mark.parametrize(("column", "name"), [("advantages", "policy"), ("returns", "critic")])
def test_a_loss_that_is_not_finite_stops_before_the_step(column, name):
    world = World()
    spoiled = world.batch.token_columns[column].clone()
    spoiled[3] = torch.nan
    before = world.weights
    with pytest.raises(NonFiniteError, match=f"of the {name}, epoch 0, minibatch 0; no step was taken"):
        world.update(batch=world.batch.with_columns(**{column: spoiled}), **ONE_STEP)
    changed = 0 if name == "policy" else 1
    assert torch.equal(world.weights[changed], before[changed])


def test_the_epoch_and_minibatch_that_failed_are_named():
    world = World()
    row = int((world.batch.responses.lengths >= 1).nonzero()[2])
    returns = world.batch.column("returns").padded(fill=0.0)
    returns[row] = torch.inf
    batch = world.batch.with_columns(returns=returns[world.batch.responses.mask()])
    with pytest.raises(NonFiniteError) as failure:
        world.update(batch=batch, epochs=1, num_minibatches=6)
    steps = world.optimizers.critic.num_steps
    assert f"critic, epoch 0, minibatch {steps};" in str(failure.value)


def test_missing_columns_are_named():
    world = World()
    bare = RolloutBatch(prompts=world.batch.prompts, responses=world.batch.responses, stopped=world.batch.stopped)
    with pytest.raises(ShapeError, match=r"lacks the token columns \['advantages', 'values', 'returns'\]"):
        world.update(batch=bare.with_columns(logprobs=world.batch.token_columns["logprobs"]))


def test_models_stay_in_the_mode_they_are_in_and_leftover_gradients_do_not_count():
    clean, dirty = World(), World()
    dirty.policy.eval()
    dirty.critic.train()
    for model in (dirty.policy, dirty.critic):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 5.0)
    clean.update()
    dirty.update()
    assert_same_weights(clean.weights, dirty.weights)
    assert not dirty.policy.training
    assert dirty.critic.training


def test_half_precision_models_are_updated_with_single_precision_losses():
    world = World()
    world.policy, world.critic = copy.deepcopy(world.policy).bfloat16(), copy.deepcopy(world.critic).bfloat16()
    world.optimizers = Optimizers(
        policy=CountingSGD(world.policy.parameters(), 0.5), critic=CountingSGD(world.critic.parameters(), 0.5)
    )
    before = world.weights
    stats = world.update(**ONE_STEP)
    assert all(math.isfinite(value) for value in stats.as_dict().values())
    assert not torch.equal(world.weights[0], before[0])


def test_a_rewarded_token_becomes_likely_and_the_critic_learns_its_value():
    torch.manual_seed(0)
    policy = HistoryPolicy(torch.zeros(97, 6))
    critic = HistoryCritic(97, torch.float32)
    optimizers = Optimizers(
        policy=torch.optim.Adam(policy.parameters(), 0.1), critic=torch.optim.Adam(critic.parameters(), 0.1)
    )
    prompts = Ragged.from_rows([[1]] * 32, torch.int64)
    for iteration in range(12):
        seeds = [derive_seed(iteration, i) for i in range(32)]
        batch = sample(policy, prompts, sampling=SamplingConfig(max_new_tokens=2, stop_token_ids=(0,)), seeds=seeds)
        padded = batch.padded()
        mask = padded.response_mask
        scores = (padded.response_ids == 4).float().sum(dim=1)
        rewards = token_rewards(scores, torch.zeros(mask.shape), mask, kl_coef=0.0)
        with torch.no_grad():
            values = critic(
                input_ids=padded.input_ids, attention_mask=padded.attention_mask, position_ids=padded.position_ids
            )[:, padded.prompt_width - 1 : -1]
        advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
        batch = batch.with_columns(
            values=values[mask], advantages=masked_whiten(advantages, mask)[mask], returns=returns[mask]
        )
        config = PPOConfig(num_minibatches=2, cliprange_value=None)
        stats = ppo_update(policy, critic, optimizers, batch, config, seed=iteration)
        assert stats.first_minibatch_ratio_deviation < 1e-5
    start = history([1])
    assert policy.table[start].softmax(dim=0)[4].item() > 0.9
    assert policy.table[history([1, 4])].softmax(dim=0)[4].item() > 0.9
    assert critic.policy.table[start].item() == pytest.approx(scores.mean().item(), abs=0.3)
