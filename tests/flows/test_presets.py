"""The presets as users run them; shortened where there is a shorter form, whole and slow where there is none."""

import json

import pytest
from conftest import overrides
from shared_data import SHARED, needs_shared_data

from tasks.store.data_sets import read_dataset

SHORT_STORIES = {
    "model.policy": SHARED / "models/stories260K",
    "data.prompts": f"[{SHARED / 'prompts/tinystories_openings.jsonl'}]",
    "data.preferences.0.arguments.path": SHARED / "sentiment/movie_snippets.jsonl",
    "data.preferences.0.limit": 200,
    "data.num_held_out_prompts": 8,
    "reward_model.epochs": 1,
    "reward_model.calibration_samples": 16,
    "iterations": 2,
    "rollouts.prompts_per_iteration": 8,
    "rollouts.sampling.max_new_tokens": 12,
    "ppo.epochs": 1,
    "ppo.num_minibatches": 2,
}
SHORT_WORLD = {
    "model.from_scratch": "{vocab_size: 300, hidden_size: 16, intermediate_size: 32, num_layers: 1, num_heads: 2, "
    "context_length: 160}",
    "data.texts.0.arguments.count": 40,
    "data.preferences.0.arguments": "{pairs: 24, rankings: 4}",
    "data.prompts.0.arguments.count": 24,
    "data.num_held_out_prompts": 4,
    "warm_up.epochs": 1,
    "reward_model.epochs": 1,
    "reward_model.calibration_samples": 8,
    "iterations": 2,
    "rollouts.prompts_per_iteration": 4,
    "rollouts.sampling.max_new_tokens": 8,
    "ppo.epochs": 1,
    "ppo.num_minibatches": 2,
}
SHORT_RULES = {
    "model.policy": SHARED / "models/stories260K",
    "data.prompts": f"[{SHARED / 'prompts/tinystories_openings.jsonl'}]",
    "data.num_held_out_prompts": 8,
    "iterations": 2,
    "rollouts.prompts_per_iteration": 4,
    "rollouts.sampling.max_new_tokens": 12,
    "ppo.epochs": 1,
    "ppo.num_minibatches": 2,
}


@needs_shared_data
def test_a_real_model_goes_through_a_shortened_round_on_real_data(home):
    result = home.json("run", "stories", "--name", "stories-short", *overrides(SHORT_STORIES))
    (summary,) = result["rounds"]
    assert summary["reward_model/accuracy"] > 0.5
    assert summary["update/first_minibatch_ratio_deviation"] < 1e-4
    assert "evaluation/kl" in summary
    stages = home.path / "runs" / "stories-short" / "stages"
    (directory,) = stages.glob("round-001/iteration-002/update_policy/*")
    assert json.loads((directory / "policy/config.json").read_text())["vocab_size"] == 512
    (experience,) = stages.glob("round-001/iteration-001/compute_advantages/*/rollouts")
    for row in read_dataset(experience).to_pylist():
        # BOS and EOS are one token in this model: it begins every prompt, once, and only a stop ends with it.
        assert row["prompt_token_ids"].count(1) == 1
        assert row["prompt_token_ids"][0] == 1
        assert (row["response_token_ids"][-1] == 1) == (row["finish_reason"] == "stop")
        assert (row["prompt"] + row["response"]).count("  ") == 0


# Where the KL is held: as a term of the loss, or as a penalty in the reward.
@pytest.mark.parametrize(("preset", "kl_loss"), [("grpo", True), pytest.param("rloo", False, marks=pytest.mark.slow)])
def test_a_preset_without_a_critic_goes_through_a_shortened_round(home, preset, kl_loss):
    (summary,) = home.json("run", preset, "--name", f"{preset}-short", *overrides(SHORT_WORLD))["rounds"]
    assert summary["update/first_minibatch_ratio_deviation"] < 1e-4
    assert ("update/kl_loss" in summary) == kl_loss
    assert (summary["kl/coef"] == 0) == kl_loss
    assert "update/value_loss" not in summary
    assert "reward_model/accuracy" in summary
    assert -2 <= summary["evaluation/true_quality"] <= 2.5
    assert 0 <= summary["evaluation/right_answer"] <= 1
    assert "audit/true_quality_gap" in summary


@pytest.mark.slow
@needs_shared_data
def test_a_base_model_goes_through_a_shortened_round_with_rules_alone(home):
    (summary,) = home.json("run", "r1_zero", "--name", "r1_zero-short", *overrides(SHORT_RULES))["rounds"]
    assert summary["update/first_minibatch_ratio_deviation"] < 1e-4
    assert "reward_model/accuracy" not in summary
    assert 0 < summary["evaluation/variety"] <= 1
    assert "audit/variety_correlation" in summary
    (experience,) = (home.path / "runs" / "r1_zero-short").glob("**/iteration-002/compute_advantages/*/rollouts")
    rows = read_dataset(experience).to_pylist()
    assert len(rows) == 32
    for row in rows:
        assert row["score"] == row["score_subject"] + 0.5 * row["score_dialogue"]
        assert {row["score_subject"], row["score_dialogue"]} <= {0.0, 1.0}
    # An advantage is held against the other samples of the same prompt.
    for prompt_id in {row["prompt_id"] for row in rows}:
        assert sum(row["advantages"][0] for row in rows if row["prompt_id"] == prompt_id) == pytest.approx(0, abs=1e-4)


@needs_shared_data
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rules_alone_are_learned_by_a_standard_deviation(home):
    (summary,) = home.json("run", "r1_zero")["rounds"]
    assert summary["evaluation/score_gain"] >= 1.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("preset", ["grpo", "rloo"])
def test_without_a_critic_the_quality_that_is_never_seen_rises_too(home, preset):
    (summary,) = home.json("run", preset)["rounds"]
    assert summary["evaluation/true_quality_gain"] >= 0.7
    assert summary["evaluation/right_answer"] > summary["evaluation/reference_right_answer"]


@needs_shared_data
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stories_become_kinder_by_a_standard_deviation(home):
    (summary,) = home.json("run", "stories")["rounds"]
    assert summary["reward_model/accuracy"] >= 0.70
    assert summary["evaluation/score_gain"] >= 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(5))
def test_the_quickstart_raises_the_quality_that_it_never_sees_by_a_standard_deviation(home, seed):
    rounds = home.json("run", "quickstart", "--name", f"quickstart-{seed}", "--set", f"seed={seed}")["rounds"]
    assert len(rounds) == 2
    assert rounds[-1]["evaluation/true_quality_gain"] >= 1.0
    # A policy that pleases by its tone alone, and tells of something else, is not a better one.
    for summary in rounds:
        assert summary["evaluation/right_answer"] > summary["evaluation/reference_right_answer"]
    prompts = home.path / "runs" / f"quickstart-{seed}" / "stages" / "round-002" / "prepare_data"
    (data,) = prompts.iterdir()
    train, held_out = (
        read_dataset(data / name).column("prompt").to_pylist() for name in ("prompts", "held_out_prompts")
    )
    assert not set(train) & set(held_out)
