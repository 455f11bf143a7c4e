"""Rollouts of an earlier policy: scored by the one that will be updated, and weighed in its update."""

import math

import pytest
import torch
from small_world import LENGTH, advantages, an_update, generate, make_world, rows, score
from transformers import AutoModelForCausalLM

from ppo_core import PPOConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bench, the policy that samples, the data, and the policy that an update has made of it."""
    bench, base, data, _ = make_world(tmp_path_factory.mktemp("world"))
    return bench, base, data, an_update(bench, base, data)


@pytest.fixture(scope="module")
def behind(world):
    """Rollouts of the earlier policy, and what the later one says of them."""
    bench, base, data, later = world
    (rollouts,) = generate(bench, base, data, iteration=2, samples_per_prompt=2)
    return rollouts, score(bench, later, rollouts, LENGTH, reference=base)


def by_definition(policy, row):
    """Log-probabilities of a row's response, in one pass without padding."""
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    prompt, response = row["prompt_token_ids"], row["response_token_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].tolist()


def test_logprobs_are_the_later_policys_and_the_samplers_stay_beside_them(world, behind):
    _, base, _, later = world
    rollouts, scored = behind
    for sampled, row in zip(rows(rollouts), rows(scored), strict=True):
        assert row["policy_version"] == sampled["policy_version"] == base.digest
        assert row["sampling_logprobs"] == sampled["logprobs"]
        assert row["logprobs"] == pytest.approx(by_definition(later.directory / "policy", row), abs=1e-5)
        assert row["sampling_logprobs"] == pytest.approx(by_definition(base.path, row), abs=1e-5)
        assert row["ref_logprobs"] == pytest.approx(row["sampling_logprobs"], abs=1e-5)


def test_rollouts_of_the_policy_itself_are_scored_as_ever(world):
    bench, _, data, later = world
    (rollouts,) = generate(bench, later, data, iteration=2)
    for sampled, row in zip(rows(rollouts), rows(score(bench, later, rollouts, LENGTH)), strict=True):
        assert row["logprobs"] == sampled["logprobs"]
        assert "sampling_logprobs" not in row


def test_the_update_starts_at_ratio_1_and_weighs_each_token_up_to_the_cap(world, behind):
    bench, base, data, later = world
    experience = advantages(bench, [behind[1]], later)
    for row in rows(experience):
        # The penalty is that of the policy that learns.
        assert row["kl"] == pytest.approx(
            [a - b for a, b in zip(row["logprobs"], row["ref_logprobs"], strict=True)], abs=1e-6
        )
    ppo = PPOConfig(epochs=1, num_minibatches=1, importance_cap=1.1)
    metrics = bench.metrics(an_update(bench, base, data, start=later, iteration=2, experience=experience, ppo=ppo))
    logratios = [
        a - b for row in rows(experience) for a, b in zip(row["logprobs"], row["sampling_logprobs"], strict=True)
    ]
    mean = 1 / len(logratios)
    assert metrics["update/first_minibatch_ratio_deviation"] < 1e-5
    assert metrics["update/importance_mean"] == pytest.approx(mean * sum(min(math.exp(x), 1.1) for x in logratios))
    assert metrics["update/importance_capped"] == pytest.approx(mean * sum(math.exp(x) > 1.1 for x in logratios))
    assert 0.05 < metrics["update/importance_capped"] < 0.95
    # k3, at the sampler's tokens.
    k3 = mean * sum(math.exp(x) - 1 - x for x in logratios)
    assert metrics["update/sampling_approx_kl"] == pytest.approx(k3, rel=1e-4)
    assert k3 > 1e-3
