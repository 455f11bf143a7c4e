"""That training arrives where it should: at optima known in closed form, on problems small enough to enumerate.

The whole matrix is slow: ``pytest tests/ppo_core/test_learning.py -m slow -s`` prints how far each algorithm came.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import pytest
import reference
import torch
from cases import Draws, few, seeds
from enumerable import (
    EOS,
    RECIPES,
    Problem,
    Recipe,
    TableCritic,
    TablePolicy,
    random_problem,
    sampled,
    train,
    with_advantages,
)
from hypothesis import given
from torch import Tensor, tensor

from ppo_core import PPOConfig, response_logprobs

ENOUGH = 0.99
"""Of the way from the reference to the optimum, in the objective."""

BRIEF = {"iterations": 40, "num_responses": 1024, "lr": 0.2}


def random_logits(problem: Problem, seed: int) -> Tensor:
    return 1.5 * Draws(seed).normal(*problem.ref_logits.shape)


def walked(
    problem: Problem, logits: Tensor, so_far: tuple[int, ...] = (), node: int = 0
) -> dict[tuple[int, ...], float]:
    """The probability of each response, token by token."""
    if so_far and (so_far[-1] == EOS or len(so_far) == problem.length):
        return {so_far: 1.0}
    responses = {}
    for token, probability in enumerate(reference.softmax(logits[node].tolist())):
        after = walked(problem, logits, (*so_far, token), node * problem.vocabulary + 1 + token)
        responses |= {response: probability * rest for response, rest in after.items()}
    return responses


def solved_backwards(problem: Problem, value: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of ``ref * exp(value after the token / kl_coef)`` at each node, and the value of each node.

    ``value`` makes a node's value of its logits, not normalised, and the values after each token; a complete response
    is worth its score.
    """
    ref_logprobs = problem.ref_logits.log_softmax(dim=1)
    logits, values = torch.zeros_like(ref_logprobs), problem.node_scores.clone()
    for node in reversed(range(len(logits))):
        first = node * problem.vocabulary + 1
        after = values[first : first + problem.vocabulary].clone()
        after[EOS] = problem.node_scores[first + EOS]
        logits[node] = ref_logprobs[node] + after / problem.kl_coef
        values[node] = value(logits[node], after)
    return logits, values[: len(logits), None]


def solved(problem: Problem) -> tuple[Tensor, Tensor]:
    """Logits and values of the optimum: ``V = kl_coef * log sum_k ref(k) exp(V after k / kl_coef)``."""
    return solved_backwards(problem, lambda logits, after: problem.kl_coef * logits.logsumexp(dim=0))


def total_variation(a: Tensor, b: Tensor) -> float:
    return float((a.exp() - b.exp()).abs().sum() / 2)


# The exact answers.


@few
@given(seeds)
def test_enumeration_agrees_with_walking_through_the_tokens(seed):
    problem = random_problem(seed)
    logits = random_logits(problem, seed)
    probabilities = walked(problem, logits)
    assert sorted(probabilities) == sorted(map(tuple, problem.responses))
    expected = [probabilities[tuple(response)] for response in problem.responses]
    assert problem.logprobs(logits).exp().tolist() == pytest.approx(expected, rel=1e-10)
    assert math.fsum(expected) == pytest.approx(1, abs=1e-12)
    assert float(problem.optimum.exp().sum()) == pytest.approx(1, abs=1e-12)


@few
@given(seeds)
def test_the_optimum_is_worth_what_backward_induction_says(seed):
    problem = random_problem(seed)
    logits, values = solved(problem)
    assert problem.best_objective == pytest.approx(float(values[0]), abs=1e-10)
    assert problem.objective(problem.optimum) == pytest.approx(float(values[0]), abs=1e-10)
    assert problem.logprobs(logits).tolist() == pytest.approx(problem.optimum.tolist(), abs=1e-9)


@few
@given(seeds)
def test_no_policy_exceeds_the_optimum_and_what_it_lacks_is_its_divergence_from_it(seed):
    problem = random_problem(seed)
    for logprobs in (problem.ref_logprobs, problem.logprobs(random_logits(problem, seed))):
        divergence = float((logprobs.exp() * (logprobs - problem.optimum)).sum())
        assert divergence > 0
        # J* - J(pi) = kl_coef * KL(pi || pi*), from the definitions of the three.
        missing = problem.best_objective - problem.objective(logprobs)
        assert missing == pytest.approx(problem.kl_coef * divergence, abs=1e-10)
    assert problem.share(problem.ref_logprobs) == 0
    assert problem.share(problem.optimum) == pytest.approx(1, abs=1e-9)


def test_two_tokens_worked_example():
    # From an even reference: EOS 1/2, (1, EOS) 1/4, (1, 1) 1/4, and at kl_coef = 1 the weights exp(score) = 2, 1, 4.
    # Nodes: 0 nothing, 1 EOS, 2 (1), 3 and 4 after EOS, 5 (1, EOS), 6 (1, 1).
    node_scores = tensor([9.0, math.log(2), 9, 9, 9, 0, math.log(4)], dtype=torch.float64)
    problem = Problem(torch.zeros(3, 2, dtype=torch.float64), node_scores, length=2, kl_coef=1.0)
    assert problem.responses == [[0], [1, 0], [1, 1]]
    assert problem.scores.tolist() == [math.log(2), 0, math.log(4)]
    assert problem.best_objective == pytest.approx(math.log(9 / 4))
    assert problem.optimum.exp().tolist() == pytest.approx([4 / 9, 1 / 9, 4 / 9])
    assert problem.objective(problem.ref_logprobs) == pytest.approx(math.log(2))
    # EOS 3/4, then EOS 1/3: responses 3/4, 1/12, 1/6.
    logprobs = problem.logprobs(tensor([[3.0, 1.0], [5.0, 5.0], [1.0, 2.0]]).log())
    kl = 3 / 4 * math.log(3 / 2) + 1 / 12 * math.log(1 / 3) + 1 / 6 * math.log(2 / 3)
    mean_score = 3 / 4 * math.log(2) + 1 / 6 * math.log(4)
    assert problem.kl(logprobs) == pytest.approx(kl)
    assert problem.mean_score(logprobs) == pytest.approx(mean_score)
    assert problem.objective(logprobs) == pytest.approx(mean_score - kl)


def test_sampled_frequencies_agree_with_enumeration():
    problem, n = random_problem(9), 20_000
    logits = random_logits(problem, 1)
    policy = TablePolicy(logits, problem.vocabulary)
    batch = sampled(policy, problem, n, seed=5)
    probabilities = walked(problem, logits)
    counts = defaultdict(int)
    for response in batch.responses.padded(fill=-1).tolist():
        counts[tuple(token for token in response if token >= 0)] += 1
    assert set(counts) <= set(probabilities)
    for response, p in probabilities.items():
        # Four standard errors of a share, and one response for those expected less than once.
        assert abs(counts[response] / n - p) < 4 * math.sqrt(p * (1 - p) / n) + 1 / n
    with torch.no_grad():
        of_response = response_logprobs(policy, batch.padded(), temperature=1.0).sum(dim=1)
    by_sampler = batch.column("logprobs").padded(fill=0.0).sum(dim=1)
    for i in range(50):
        expected = math.log(probabilities[tuple(batch.responses.row(i).tolist())])
        assert (float(of_response[i]), float(by_sampler[i])) == pytest.approx((expected, expected), abs=1e-5)


# At the optimum, and on the way to it.


@pytest.mark.parametrize("advantages", ["gae", "rloo", "reinforce", "dr_grpo", "vanilla_pg"])
def test_at_the_optimum_every_response_gets_the_same_and_no_token_has_an_advantage(advantages):
    # score - kl_coef * log(pi* / ref) = J* whatever the response, and the same holds from each node on.
    problem = random_problem(3)
    logits, values = solved(problem)
    policy, critic = TablePolicy(logits, problem.vocabulary), TableCritic(values, problem.vocabulary)
    reference_policy = TablePolicy(problem.ref_logits, problem.vocabulary)
    recipe = Recipe(advantages=advantages, config=PPOConfig())
    batch = sampled(policy, problem, 512, seed=0)
    batch = with_advantages(batch, problem, recipe, reference_policy, critic)
    expected = float(values[0]) if advantages == "vanilla_pg" else 0.0
    # The sampler stores logprobs in single precision.
    torch.testing.assert_close(
        batch.token_columns["advantages"],
        torch.full_like(batch.token_columns["advantages"], expected),
        atol=1e-5,
        rtol=0,
    )


def share_reached(problem: Problem, recipe: Recipe, seed: int = 0) -> float:
    return problem.share(problem.logprobs(train(problem, recipe, seed=seed).table))


@pytest.fixture(scope="module")
def shares() -> Iterator[dict[str, list[float]]]:
    """By algorithm; what they came to is printed when all have been trained."""
    reached = defaultdict(list)
    yield reached
    for algorithm, those in reached.items():
        print(f"\n{algorithm}: {len(those)} trainings, worst {min(those):.4f}, median {median(those):.4f}", end="")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("algorithm", RECIPES)
def test_training_reaches_the_optimum_of_every_problem(algorithm, number, seed, shares):
    share = share_reached(random_problem(number), RECIPES[algorithm], seed)
    shares[algorithm].append(share)
    assert share >= ENOUGH


@pytest.mark.parametrize("algorithm", RECIPES)
def test_training_reaches_the_optimum(algorithm):
    assert share_reached(random_problem(7), replace(RECIPES[algorithm], **BRIEF)) >= ENOUGH


@pytest.mark.parametrize("advantages", ["vanilla_pg", "reinforce", "dr_grpo"])
def test_other_baselines_change_the_noise_and_not_the_optimum(advantages):
    recipe = Recipe(advantages=advantages, config=PPOConfig(loss="pg", epochs=1, num_minibatches=2), **BRIEF)
    assert share_reached(random_problem(9), recipe) >= ENOUGH


def test_weighing_responses_instead_of_tokens_changes_the_way_and_not_the_optimum():
    config = PPOConfig(loss="pg", epochs=1, num_minibatches=2, aggregation="seq_mean")
    assert share_reached(random_problem(9), Recipe(advantages="rloo", config=config, **BRIEF)) >= ENOUGH


# Terms of the loss. With one token, the KL of a token is that of a response.


def with_loss_term(**settings) -> Recipe:
    config = PPOConfig(loss="pg", epochs=1, num_minibatches=2, **settings)
    return Recipe(advantages="rloo", config=config, kl_in_reward=False, **BRIEF)


@pytest.mark.parametrize("estimator", ["k3", "exact"])
def test_with_one_token_a_kl_in_the_loss_has_the_same_optimum_as_one_in_the_reward(estimator):
    problem = random_problem(0, length=1)
    recipe = with_loss_term(kl_loss_coef=problem.kl_coef, kl_loss_estimator=estimator)
    assert share_reached(problem, recipe) >= ENOUGH


def share_of(objective: Callable[[Tensor], Tensor], reached: Tensor, start: Tensor, best: Tensor) -> float:
    return float((objective(reached) - objective(start)) / (objective(best) - objective(start)))


@pytest.mark.parametrize("estimator", ["k3", "exact"])
def test_a_forward_kl_in_the_loss_reaches_its_own_optimum(estimator):
    # E_pi[score] - c KL(ref || pi) is largest where score + c ref / pi is the same for all: pi = c ref / (top - score).
    problem = random_problem(0, length=1)
    ref, scores, c = problem.ref_logprobs.exp(), problem.scores, problem.kl_coef

    def probabilities(top: float) -> Tensor:
        return c * ref / (top - scores)

    # The mass falls as ``top`` rises; at the largest score it is infinite, and c above it no more than 1.
    low, high = float(scores.max()), float(scores.max()) + c
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if probabilities(middle).sum() > 1 else (low, middle)
    best = probabilities(high).log()
    assert float(best.exp().sum()) == pytest.approx(1)

    def objective(logprobs: Tensor) -> Tensor:
        return (logprobs.exp() * scores).sum() - c * (ref * (ref.log() - logprobs)).sum()

    recipe = with_loss_term(kl_loss_coef=c, kl_loss_estimator=estimator, kl_loss_direction="forward")
    reached = problem.logprobs(train(problem, recipe, seed=0).table)
    assert share_of(objective, reached, problem.ref_logprobs, best) >= ENOUGH
    # Not that of the other direction.
    assert total_variation(reached, best) < 0.3 * total_variation(problem.optimum, best)


def test_an_entropy_bonus_reaches_the_softmax_of_the_scores():
    # E_pi[score] + c H(pi) is largest for softmax(score / c), and there c logsumexp(score / c).
    problem = random_problem(0, length=1)
    c = problem.kl_coef

    def objective(logprobs: Tensor) -> Tensor:
        return (logprobs.exp() * (problem.scores - c * logprobs)).sum()

    reached = problem.logprobs(train(problem, with_loss_term(entropy_coef=c), seed=0).table)
    best = (problem.scores / c).log_softmax(dim=0)
    assert share_of(objective, reached, problem.ref_logprobs, best) >= ENOUGH


def test_with_several_tokens_a_kl_in_the_loss_does_not_foresee_what_later_tokens_will_cost():
    # It moves a token's own distribution, and nothing tells an earlier token what divergence it leads to. So a node is
    # worth its expected score alone, where in the optimum it is worth that less the price of what follows.
    problem = random_problem(9)
    logits, _ = solved_backwards(problem, lambda logits, after: (logits.softmax(dim=0) * after).sum())
    short_sighted = problem.logprobs(logits)
    recipe = with_loss_term(kl_loss_coef=problem.kl_coef, kl_loss_estimator="exact")
    reached = problem.logprobs(train(problem, recipe, seed=0).table)
    assert total_variation(problem.optimum, short_sighted) > 0.08
    assert total_variation(reached, short_sighted) < 0.25 * total_variation(problem.optimum, short_sighted)


def test_grpo_weighs_a_kl_in_the_loss_against_scores_in_units_of_their_spread():
    # Scores are divided by the standard deviation of their group, the KL is not: pi = ref * exp(score / (c std)) / Z,
    # where std is that of the scores under this very pi. (At a lower price there is no such spread but 0: as the policy
    # narrows, the KL weighs less and less, and it ends at a single response.)
    problem = replace(random_problem(1, length=1), kl_coef=1.0)

    def std_of(logprobs: Tensor) -> Tensor:
        p = logprobs.exp()
        return ((p * problem.scores**2).sum() - (p * problem.scores).sum() ** 2).sqrt()

    fixed_point = problem.ref_logprobs
    for _ in range(200):
        fixed_point = (problem.ref_logprobs + problem.scores / std_of(fixed_point)).log_softmax(dim=0)
    assert std_of(fixed_point) > 0.5
    recipe = replace(with_loss_term(kl_loss_coef=1.0), advantages="grpo", group_size=256)
    reached = problem.logprobs(train(problem, recipe, seed=0).table)
    assert total_variation(problem.optimum, fixed_point) > 0.1
    assert total_variation(reached, fixed_point) < 0.15 * total_variation(problem.optimum, fixed_point)
