import copy
import math

import pytest
import reference
import torch
from small_models import HistoryCritic, HistoryPolicy
from torch import tensor
from update_world import ONE_STEP, CountingSGD, World, assert_same_weights, history

from ppo_core import (
    ConfigError,
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
    response_values,
    sample,
    token_rewards,
)

POLICY_STATISTICS = {
    "policy_loss",
    "entropy",
    "approx_kl",
    "approx_kl_stderr",
    "k1_kl",
    "clipfrac",
    "ratio_mean",
    "first_minibatch_ratio_deviation",
    "grad_norm",
}
CRITIC_STATISTICS = {"value_loss", "value_clipfrac", "critic_grad_norm", "explained_variance"}
COUNTS = {"policy_epochs", "num_optimizer_steps", "num_tokens"}


def test_a_wrong_temperature_shows_in_the_first_ratio():
    assert World(temperature=1.0).update(**ONE_STEP, temperature=0.7).first_minibatch_ratio_deviation > 0.01


def test_the_first_ratio_is_that_of_the_first_minibatch_alone():
    stats = World(policy_lr=50.0).update(epochs=2, num_minibatches=2, max_grad_norm=math.inf)
    assert stats.first_minibatch_ratio_deviation < 1e-12
    assert stats.approx_kl > 1e-3


def test_each_epoch_visits_the_rows_in_another_order():
    def visited(seed, epochs):
        """The lengths of the responses that the policy learns from, in its order; the critic follows with as many."""
        tokens = []
        World().update(seed=seed, epochs=epochs, num_minibatches=6, on_tokens=tokens.append)
        assert tokens[6 * epochs :] == tokens[: 6 * epochs]
        return tokens[: 6 * epochs]

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
    assert sum(tokens) == stats.num_tokens * (2 + (critic_epochs or 2))


def test_a_model_that_will_not_change_any_more_is_named():
    world, before = World(), World()
    seen = {}
    names = ("policy", "critic")
    world.update(epochs=2, num_minibatches=2, on_trained=lambda name: seen.update({name: world.weights}))
    assert tuple(seen) == names
    # The policy has all its steps behind it and the critic none; in the end nothing has changed since.
    policy_then, critic_then = seen["policy"]
    assert torch.equal(policy_then, world.weights[0])
    assert torch.equal(critic_then, before.weights[1])
    assert torch.equal(seen["critic"][1], world.weights[1])


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


def test_statistics_are_means_over_all_minibatches():
    # Weights that do not move: each minibatch then shows what the first pass shows.
    losses = []
    for rows in range(6):
        world = World(policy_lr=0.0, critic_lr=0.0)
        losses.append(world.update(batch=world.batch.select(tensor([rows])), **ONE_STEP).value_loss)
    stats = World(policy_lr=0.0, critic_lr=0.0).update(epochs=3, num_minibatches=6)
    assert stats.value_loss == pytest.approx(reference.mean(losses))
    assert set(stats.as_dict()) == POLICY_STATISTICS | CRITIC_STATISTICS | COUNTS
    assert stats.as_dict()["value_loss"] == stats.value_loss


@pytest.mark.parametrize(("column", "name"), [("advantages", "policy"), ("returns", "critic")])
def test_a_loss_that_is_not_finite_stops_before_the_step(column, name):
    world = World()
    spoiled = world.batch.token_columns[column].clone()
    spoiled[3] = torch.nan
    before = world.weights
    with pytest.raises(NonFiniteError, match=f"of the {name}, epoch 0, minibatch 0; its step was not taken"):
        world.update(batch=world.batch.with_columns(**{column: spoiled}), **ONE_STEP)
    changed = 0 if name == "policy" else 1
    assert torch.equal(world.weights[changed], before[changed])


@pytest.mark.parametrize(("name", "rates"), [("policy", {"policy_lr": 1e308}), ("critic", {"critic_lr": 1e308})])
def test_weights_that_the_last_step_spoiled_are_refused(name, rates):
    world = World(**rates)
    batch = world.batch.with_columns(
        advantages=1e3 * world.batch.token_columns["advantages"], returns=1e3 * world.batch.token_columns["returns"]
    )
    with pytest.raises(
        NonFiniteError, match=f"the {name}'s weights after the update are not all finite numbers; lower"
    ):
        world.update(batch=batch, **ONE_STEP, max_grad_norm=math.inf, critic_max_grad_norm=math.inf)


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


def test_what_is_not_trained_is_not_needed_and_has_no_statistics():
    world = World()
    columns = world.batch.token_columns

    def with_columns(*names):
        return RolloutBatch(
            prompts=world.batch.prompts,
            responses=world.batch.responses,
            stopped=world.batch.stopped,
            token_columns={name: columns[name] for name in names},
        )

    before = world.weights
    stats = world.update(critic=False, batch=with_columns("logprobs", "advantages")).as_dict()
    assert set(stats) == POLICY_STATISTICS | COUNTS
    assert torch.equal(world.weights[1], before[1])
    assert not torch.equal(world.weights[0], before[0])

    before = world.weights
    stats = world.update(policy=False, batch=with_columns("values", "returns")).as_dict()
    assert set(stats) == CRITIC_STATISTICS | COUNTS
    assert stats["policy_epochs"] == stats["num_optimizer_steps"] == 0
    assert torch.equal(world.weights[0], before[0])
    assert not torch.equal(world.weights[1], before[1])


def test_alone_policy_and_critic_learn_what_they_learn_together():
    together, policy_alone, critic_alone = World(), World(), World()
    stats = together.update().as_dict()
    parts = policy_alone.update(critic=False).as_dict() | {
        name: value for name, value in critic_alone.update(policy=False).as_dict().items() if name in CRITIC_STATISTICS
    }
    assert parts == stats
    assert torch.equal(together.weights[0], policy_alone.weights[0])
    assert torch.equal(together.weights[1], critic_alone.weights[1])


def test_an_update_that_lacks_a_model_or_an_optimizer_is_refused():
    world = World()
    with pytest.raises(ConfigError, match="policy and critic are both None; give at least one model to train"):
        world.update(policy=False, critic=False)
    full = world.optimizers
    for optimizers, name in ((Optimizers(policy=full.policy), "critic"), (Optimizers(None, full.critic), "policy")):
        world.optimizers = optimizers
        with pytest.raises(ConfigError, match=f"the {name} has no optimizer; give it one, or leave the {name} out"):
            world.update()
    config = PPOConfig(kl_loss_coef=0.1, kl_loss_estimator="exact")
    with pytest.raises(ConfigError, match="kl_loss_estimator=exact needs the reference model"):
        ppo_update(world.policy, world.critic, full, world.batch, config, seed=0)


def test_missing_columns_are_named():
    world = World()
    bare = RolloutBatch(prompts=world.batch.prompts, responses=world.batch.responses, stopped=world.batch.stopped)
    with pytest.raises(ShapeError, match=r"lacks the token columns \['logprobs', 'advantages'\]"):
        world.update(batch=bare, critic=False)
    bare = bare.with_columns(logprobs=world.batch.token_columns["logprobs"])
    with pytest.raises(ShapeError, match=r"lacks the token columns \['advantages', 'values', 'returns'\]"):
        world.update(batch=bare)
    with pytest.raises(ShapeError, match=r"lacks the token columns \['advantages', 'ref_logprobs'\]"):
        world.update(batch=bare, critic=False, kl_loss_coef=0.1)
    with pytest.raises(ShapeError, match=r"lacks the token columns \['advantages'\]"):
        world.update(batch=bare, critic=False, kl_loss_coef=0.1, kl_loss_estimator="exact")


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1e4])
def test_a_constant_reward_is_learnt_in_as_many_updates_whatever_its_size(size):
    # By plain gradient descent, whose steps grow with the error; with values clipped to 0.2, 100 would take 450 updates.
    world = World(critic_lr=2.0)
    padded = world.batch.padded()
    values = world.batch.token_columns["values"]
    for _ in range(12):
        batch = world.batch.with_columns(values=values, returns=torch.full_like(values, size))
        world.update(batch=batch, policy=False, critic_max_grad_norm=math.inf)
        with torch.no_grad():
            values = response_values(world.critic, padded)[padded.response_mask]
    assert values.tolist() == pytest.approx([size] * len(values), rel=0.01)


def told(world, **settings):
    """What ``before_step`` hears in an update."""
    heard = []
    world.update(before_step=heard.append, **settings)
    return heard


def test_before_each_step_of_the_policy_its_minibatch_is_told():
    world = World(policy_lr=0.0, critic_lr=0.0)
    settings = {"loss": "pg", "kl_loss_coef": 0.3, "entropy_coef": 0.2}
    heard = told(world, **settings, epochs=2, critic_epochs=3, num_minibatches=2)
    assert [(m.epoch, m.minibatch) for m in heard] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for minibatch in heard:
        v = minibatch.values
        assert set(v) == {
            "loss",
            "policy_loss",
            "kl_loss",
            "entropy",
            "approx_kl",
            "approx_kl_variance",
            "k1_kl",
            "ratio_mean",
            "ratio_max_deviation",
            "grad_norm",
        }
        assert v["loss"] == pytest.approx(v["policy_loss"] + 0.3 * v["kl_loss"] - 0.2 * v["entropy"])
    # What is told of a single minibatch is what the update reports.
    stats = world.update(**settings, **ONE_STEP)
    (only,) = told(world, **settings, **ONE_STEP)
    for name in ("policy_loss", "kl_loss", "entropy", "approx_kl", "k1_kl", "ratio_mean", "grad_norm"):
        assert getattr(stats, name) == only.values[name]


@pytest.mark.parametrize(("epoch", "steps"), [(0, 0), (1, 2)])
def test_an_objection_before_a_step_leaves_the_weights_as_they_were(epoch, steps):
    class Objection(Exception):
        pass

    def object_to(minibatch):
        if minibatch.epoch == epoch:
            raise Objection

    stopped, shorter = World(), World()
    with pytest.raises(Objection):
        stopped.update(before_step=object_to, epochs=2, num_minibatches=2)
    if epoch:
        shorter.update(epochs=epoch, num_minibatches=2)
    # The critic's turn never comes.
    assert torch.equal(stopped.weights[0], shorter.weights[0])
    assert torch.equal(stopped.weights[1], World().weights[1])
    assert (stopped.optimizers.policy.num_steps, stopped.optimizers.critic.num_steps) == (steps, 0)


def test_the_policy_stops_after_an_epoch_whose_mean_kl_passes_the_target_and_the_critic_goes_on():
    plan = {"epochs": 4, "num_minibatches": 2}
    heard = told(World(), **plan)
    by_epoch = [[m.values["approx_kl"] for m in heard if m.epoch == epoch] for epoch in range(4)]
    means = [reference.mean(values) for values in by_epoch]
    assert means == sorted(means)
    # Between the means of two epochs, and below the largest value of the first of them.
    target = (means[1] + min(max(by_epoch[1]), means[2])) / 2
    assert means[1] < target < max(by_epoch[1])
    # The mean of the epoch alone passes this one, that of all epochs so far does not.
    late_target = 0.99 * means[2]
    assert max(means[1], reference.mean(means[:3])) < late_target
    for target_kl, epochs in ((1e-9, 2), (target, 3), (late_target, 3), ((means[2] + means[3]) / 2, 4)):
        stopped, planned = World(), World()
        stats = stopped.update(**plan, target_kl=target_kl)
        planned.update(epochs=epochs, critic_epochs=4, num_minibatches=2)
        assert stats.policy_epochs == epochs
        assert stats.num_optimizer_steps == stopped.optimizers.policy.num_steps == 2 * epochs
        assert stopped.optimizers.critic.num_steps == 8
        assert all(torch.equal(a, b) for a, b in zip(stopped.weights, planned.weights, strict=True))


def test_rollouts_of_another_policy_allow_one_epoch_and_no_more():
    world = World()
    stats = world.update(batch=world.off_policy(), epochs=4, num_minibatches=3, target_kl=1e-9)
    assert stats.policy_epochs == 1
    assert (world.optimizers.policy.num_steps, world.optimizers.critic.num_steps) == (3, 12)


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
        scores = (batch.responses.padded(fill=0) == 4).float().sum(dim=1)
        rewards = token_rewards(scores, torch.zeros(mask.shape), mask, kl_coef=0.0)
        with torch.no_grad():
            # Every prompt is one token long.
            values = critic(input_ids=padded.input_ids)[:, :-1]
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
