import pytest
import reference
import torch
from cases import Draws, laid_out, law, left, right, rows_of, rubbish, seeds, spoiled, unit
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.autograd import gradcheck

from ppo_core import ConfigError, ShapeError, gae, group_advantages, length_adaptive_lam, rewards_to_go

horizons = st.one_of(st.none(), st.integers(1, 9))
estimators = st.sampled_from(["vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo"])
GROUPS = [3, 3, 7, 7, 7, 3, 1, 1]


@law
@given(seeds, unit, unit, horizons, st.booleans(), rubbish)
def test_gae_equals_its_definition_whatever_the_masked_places_hold(seed, gamma, lam, horizon, bootstraps, junk):
    draws = Draws(seed)
    mask, rewards, values = draws.mask_with_gaps(), draws.normal(4, 6), draws.normal(4, 6)
    bootstrap = draws.normal(4) if bootstraps else None
    advantages, returns = gae(
        spoiled(rewards, mask, junk),
        spoiled(values, mask, junk),
        mask,
        gamma=gamma,
        lam=lam,
        horizon=horizon,
        bootstrap_values=bootstrap,
    )
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()
    for i, (row_rewards, row_values) in enumerate(zip(rows_of(rewards, mask), rows_of(values, mask), strict=True)):
        after = bootstrap[i].item() if bootstraps else 0.0
        expected = reference.gae(row_rewards, row_values, gamma, lam, horizon, after)
        assert advantages[i][mask[i]].tolist() == pytest.approx(expected, abs=1e-9)
        targets = [a + v for a, v in zip(expected, row_values, strict=True)]
        assert returns[i][mask[i]].tolist() == pytest.approx(targets, abs=1e-9)


@law
@given(seeds, unit, unit, unit, horizons, rubbish)
def test_returns_are_made_with_the_critics_lambda_and_advantages_with_the_policys(
    seed, gamma, lam, critic_lam, horizon, junk
):
    draws = Draws(seed)
    mask, rewards, values, after = draws.mask_with_gaps(), draws.normal(4, 6), draws.normal(4, 6), draws.normal(4)
    settings = {"gamma": gamma, "horizon": horizon, "bootstrap_values": after}
    spoilt = (spoiled(rewards, mask, junk), spoiled(values, mask, junk), mask)
    advantages, returns = gae(*spoilt, lam=lam, critic_lam=critic_lam, **settings)
    for i, (row_rewards, row_values) in enumerate(zip(rows_of(rewards, mask), rows_of(values, mask), strict=True)):
        of_policy, of_critic = (
            reference.gae(row_rewards, row_values, gamma, x, horizon, after[i].item()) for x in (lam, critic_lam)
        )
        assert advantages[i][mask[i]].tolist() == pytest.approx(of_policy, abs=1e-9)
        targets = [a + v for a, v in zip(of_critic, row_values, strict=True)]
        assert returns[i][mask[i]].tolist() == pytest.approx(targets, abs=1e-9)


def test_with_a_critics_lambda_of_one_the_target_is_what_came_whatever_the_critic_said():
    mask = tensor([[True, True, True, False]])
    rewards, values = tensor([[0.5, 0.0, 2.0, 9.0]]), tensor([[7.0, -7.0, 70.0, 700.0]])
    _, returns = gae(rewards, values, mask, gamma=0.5, lam=0.3, critic_lam=1.0)
    assert returns.tolist() == [[1.0, 1.0, 2.0, 0.0]]


@law
@given(seeds, st.floats(0.05, 2), horizons)
def test_a_lambda_that_grows_with_the_response_is_that_of_each_row_alone(seed, alpha, horizon):
    draws = Draws(seed)
    mask, rewards, values = draws.mask_with_gaps(), draws.normal(4, 6), draws.normal(4, 6)
    lam = length_adaptive_lam(mask, alpha=alpha)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=lam.double(), horizon=horizon)
    for i, (row_rewards, row_values) in enumerate(zip(rows_of(rewards, mask), rows_of(values, mask), strict=True)):
        of_row = max(0.0, 1 - 1 / (alpha * max(1, len(row_rewards))))
        expected = reference.gae(row_rewards, row_values, 0.9, of_row, horizon, 0.0)
        assert advantages[i][mask[i]].tolist() == pytest.approx(expected, abs=1e-5)


def test_lambdas_of_responses_worked_example():
    # alpha = 1/2: 1 - 2/T, never below 0
    mask = torch.arange(8) < tensor([[1], [2], [4], [8]])
    assert length_adaptive_lam(mask, alpha=0.5).tolist() == [0.0, 0.0, 0.5, 0.75]
    with pytest.raises(ConfigError, match=r"alpha=0\.0 must be positive"):
        length_adaptive_lam(mask, alpha=0.0)


@law
@given(seeds, unit, rubbish)
def test_rewards_to_go_are_the_discounted_sums_of_what_follows(seed, gamma, junk):
    draws = Draws(seed)
    mask, rewards = draws.mask_with_gaps(), draws.normal(4, 6)
    got = rewards_to_go(spoiled(rewards, mask, junk), mask, gamma=gamma)
    assert (got[~mask] == 0).all()
    for i, row in enumerate(rows_of(rewards, mask)):
        expected = [sum(gamma**k * r for k, r in enumerate(row[t:])) for t in range(len(row))]
        assert got[i][mask[i]].tolist() == pytest.approx(expected, abs=1e-9)


@law
@given(seeds, unit, st.integers(1, 4))
def test_gae_does_not_depend_on_row_order_or_padding_width(seed, lam, extra):
    draws = Draws(seed)
    mask, rewards, values = draws.mask(), draws.normal(4, 6), draws.normal(4, 6)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=lam)
    order = draws.permutation(4)
    wide = [torch.nn.functional.pad(x[order], (0, extra)) for x in (rewards, values, mask)]
    again, _ = gae(*wide, gamma=0.9, lam=lam)
    assert torch.equal(again[:, :6], advantages[order])


@law
@given(seeds, unit, st.booleans())
def test_lambda_one_is_monte_carlo_and_lambda_zero_is_one_step_td(seed, gamma, bootstraps):
    draws = Draws(seed)
    rewards, values, mask = draws.normal(1, 4), draws.normal(1, 4), torch.ones(1, 4, dtype=torch.bool)
    bootstrap = draws.normal(1) if bootstraps else None
    r, v, after = rewards[0].tolist(), values[0].tolist(), bootstrap.item() if bootstraps else 0.0
    _, returns = gae(rewards, values, mask, gamma=gamma, lam=1.0, bootstrap_values=bootstrap)
    discounted = [sum(gamma**k * r[t + k] for k in range(4 - t)) + gamma ** (4 - t) * after for t in range(4)]
    assert returns[0].tolist() == pytest.approx(discounted, abs=1e-9)
    _, returns = gae(rewards, values, mask, gamma=gamma, lam=0.0, bootstrap_values=bootstrap)
    one_step = [r[t] + gamma * [*v[1:], after][t] for t in range(4)]
    assert returns[0].tolist() == pytest.approx(one_step, abs=1e-9)


@law
@given(seeds, unit)
def test_gamma_zero_looks_no_further_than_the_token_itself(seed, lam):
    draws = Draws(seed)
    rewards, values, mask = draws.normal(4, 6), draws.normal(4, 6), draws.mask_with_gaps()
    advantages, returns = gae(rewards, values, mask, gamma=0.0, lam=lam, bootstrap_values=draws.normal(4))
    torch.testing.assert_close(advantages, torch.where(mask, rewards - values, 0.0))
    torch.testing.assert_close(returns, torch.where(mask, rewards, 0.0))


@law
@given(seeds, unit, unit)
def test_a_horizon_of_one_is_lambda_zero_and_a_long_one_is_none(seed, gamma, lam):
    draws = Draws(seed)
    rewards, values, mask = draws.normal(4, 6), draws.normal(4, 6), draws.mask_with_gaps()
    nearest, _ = gae(rewards, values, mask, gamma=gamma, lam=lam, horizon=1)
    torch.testing.assert_close(nearest, gae(rewards, values, mask, gamma=gamma, lam=0.0)[0])
    longest, _ = gae(rewards, values, mask, gamma=gamma, lam=lam, horizon=6)
    torch.testing.assert_close(longest, gae(rewards, values, mask, gamma=gamma, lam=lam)[0])


@law
@given(seeds, unit, unit, horizons, rubbish)
def test_a_row_with_gaps_gets_what_the_row_without_them_gets(seed, gamma, lam, horizon, junk):
    draws = Draws(seed)
    mask, rewards, values, after = draws.mask_with_gaps(), draws.normal(4, 6), draws.normal(4, 6), draws.normal(4)
    lengths = mask.sum(dim=1).tolist()
    settings = {"gamma": gamma, "lam": lam, "horizon": horizon, "bootstrap_values": after}

    def run(places):
        inputs = (laid_out(rows_of(x, mask), places, junk) for x in (rewards, values))
        return [rows_of(x, places) for x in gae(*inputs, places, **settings)]

    assert run(mask) == run(right(lengths, max(lengths))) == run(left(lengths, 7))


@law
@given(seeds, rubbish)
def test_gae_passes_no_gradient_to_masked_places(seed, junk):
    draws = Draws(seed)
    mask = draws.mask_with_gaps()
    rewards = spoiled(draws.normal(4, 6), mask, junk).requires_grad_()
    values = spoiled(draws.normal(4, 6), mask, junk).requires_grad_()
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    (advantages.sum() + returns.sum()).backward()
    for x in (rewards, values):
        assert x.grad.isfinite().all()
        assert (x.grad[~mask] == 0).all()


def test_gae_gradient_equals_finite_differences():
    draws = Draws(5)
    mask = draws.mask_with_gaps(2, 4)
    inputs = draws.normal(2, 4).requires_grad_(), draws.normal(2, 4).requires_grad_()
    for horizon in (None, 2):
        assert gradcheck(lambda r, v, k=horizon: gae(r, v, mask, gamma=0.9, lam=0.8, horizon=k), inputs)


def test_gae_worked_example():
    # gamma = 1, lam = 1/2: delta = (0, 0, 1/2), so A = (1/8, 1/4, 1/2)
    rewards, values = tensor([[0.0, 0.0, 1.0]]), tensor([[0.5, 0.5, 0.5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.5)
    assert advantages.tolist() == [[0.125, 0.25, 0.5]]
    assert returns.tolist() == [[0.625, 0.75, 1.0]]
    # two terms only, and 1 more after the end: delta = (0, 0, 3/2), so A = (0, 3/4, 3/2)
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=0.5, horizon=2, bootstrap_values=tensor([1.0]))
    assert advantages.tolist() == [[0.0, 0.75, 1.5]]


def test_without_discount_and_penalty_the_critic_regresses_on_the_final_score():
    mask = tensor([[True, True, True, False], [True, False, False, False]])
    rewards = tensor([[0.0, 0.0, 3.0, 0.0], [-2.0, 0.0, 0.0, 0.0]])
    _, returns = gae(rewards, torch.randn(2, 4), mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, tensor([[3.0, 3.0, 3.0, 0.0], [-2.0, 0.0, 0.0, 0.0]]))


def test_gae_refuses_a_horizon_of_nothing_and_columns_that_do_not_fit():
    zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    unchecked = getattr(gae, "__wrapped__", gae)
    with pytest.raises(ConfigError, match="horizon=0 must be at least 1; None sums to the end"):
        gae(zeros, zeros, mask, gamma=1.0, lam=1.0, horizon=0)
    with pytest.raises(ShapeError, match=r"bootstrap_values is \(3,\) for 1 responses"):
        unchecked(zeros, zeros, mask, gamma=1.0, lam=1.0, bootstrap_values=torch.zeros(3))
    for columns in ((torch.zeros(1, 1), zeros), (zeros, torch.zeros(1, 1))):
        with pytest.raises(ShapeError, match=r"is \(1, 1\) but response_mask is \(1, 2\)"):
            unchecked(*columns, mask, gamma=1.0, lam=1.0)


def test_gae_of_no_column_and_of_an_empty_row_is_nothing():
    nothing = torch.zeros(2, 0)
    advantages, returns = gae(nothing, nothing, nothing.bool(), gamma=1.0, lam=1.0)
    assert advantages.shape == returns.shape == (2, 0)
    row, mask = torch.full((1, 2), torch.nan), torch.zeros(1, 2, dtype=torch.bool)
    for x in gae(row, row, mask, gamma=1.0, lam=1.0, bootstrap_values=torch.ones(1)):
        assert x.tolist() == [[0.0, 0.0]]


@law
@given(seeds, estimators)
def test_group_advantages_equal_their_definition_in_any_row_order(seed, estimator):
    draws = Draws(seed)
    order = draws.permutation(len(GROUPS))
    scores, groups = draws.normal(len(GROUPS)), tensor(GROUPS)[order]
    got = group_advantages(scores, groups, estimator=estimator)
    assert got.tolist() == pytest.approx(
        reference.group_advantages(scores.tolist(), groups.tolist(), estimator), abs=1e-9
    )


@law
@given(seeds, st.sampled_from(["rloo", "grpo", "dr_grpo"]), st.floats(-100, 100))
def test_a_bonus_for_all_samples_of_a_prompt_changes_nothing(seed, estimator, bonus):
    scores, groups = Draws(seed).normal(len(GROUPS)), tensor(GROUPS)
    shifted = scores + bonus * (groups == 7)
    torch.testing.assert_close(
        group_advantages(shifted, groups, estimator=estimator),
        group_advantages(scores, groups, estimator=estimator),
        atol=1e-8,
        rtol=1e-8,
    )


def test_group_advantages_worked_example():
    # group means 2 and 5; the others of (1, 3) are (3, 1); their deviation is sqrt(2)
    scores, groups = tensor([1.0, 3.0, 5.0, 5.0]), tensor([0, 0, 4, 4])
    assert group_advantages(scores, groups, estimator="vanilla_pg").tolist() == [1.0, 3.0, 5.0, 5.0]
    assert group_advantages(scores, groups, estimator="reinforce").tolist() == [-2.5, -0.5, 1.5, 1.5]
    assert group_advantages(scores, groups, estimator="rloo").tolist() == [-2.0, 2.0, 0.0, 0.0]
    assert group_advantages(scores, groups, estimator="dr_grpo").tolist() == [-1.0, 1.0, 0.0, 0.0]
    grpo = group_advantages(scores, groups, estimator="grpo").tolist()
    assert grpo == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0, 0.0], abs=1e-5)


def test_equal_scores_of_a_prompt_are_no_signal_even_after_rounding():
    # In single precision the mean of these misses them by a rounding, and 1e-6 is all that grpo divides by.
    advantages = group_advantages(torch.full((3,), 1234.567), torch.zeros(3, dtype=torch.int64), estimator="grpo")
    assert advantages.abs().max() < 1e-3


def test_a_lone_sample_has_no_others_to_compare_with():
    for estimator in ("rloo", "grpo"):
        with pytest.raises(ShapeError, match=f"group 9 has one response; {estimator} needs two samples"):
            group_advantages(torch.zeros(3), tensor([2, 2, 9]), estimator=estimator)
    assert group_advantages(tensor([1.0, 3.0, 5.0]), tensor([2, 2, 9]), estimator="dr_grpo").tolist() == [-1, 1, 0]


def test_an_unknown_estimator_is_refused():
    unchecked = getattr(group_advantages, "__wrapped__", group_advantages)
    with pytest.raises(ConfigError, match="estimator='ppo' is none of vanilla_pg, reinforce, rloo, grpo, dr_grpo"):
        unchecked(torch.zeros(2), tensor([0, 0]), estimator="ppo")
    with pytest.raises(ShapeError, match=r"group_ids is \(1,\) but scores is \(2,\)"):
        unchecked(torch.zeros(2), tensor([0]), estimator="rloo")
