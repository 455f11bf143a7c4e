"""The presets as users run them; shortened where there is a shorter form, whole and slow where there is none."""

import json

import pytest
from shared_data import SHARED, needs_shared_data

from tasks.store import read_dataset

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


def overrides(settings):
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


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
    prompts = home.path / "runs" / f"quickstart-{seed}" / "stages" / "round-002" / "prepare_data"
    (data,) = prompts.iterdir()
    train, held_out = (
        read_dataset(data / name).column("prompt").to_pylist() for name in ("prompts", "held_out_prompts")
    )
    assert not set(train) & set(held_out)
