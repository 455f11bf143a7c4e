"""Small runs that fall ill say so in time, and one that is well says nothing. Each is a real run, without Prefect."""

import json

import pytest
import yaml
from conftest import TINY
from direct_run import run_directly
from shared_data import SHARED, needs_shared_data

from flows.config.reading import checked, with_overrides
from flows.outcomes.outputs import latest_variants
from flows.outcomes.results import summary_of

pytestmark = pytest.mark.slow

# The quickstart's world once more, with a model that can answer at all, and a reward that pays for saying nothing.
SILENCE = {
    "algorithm": "rloo",
    "rounds": 1,
    "iterations": 8,
    "model.from_scratch.hidden_size": 32,
    "model.from_scratch.intermediate_size": 64,
    "data.preferences": [],
    "data.texts.0.arguments.count": 120,
    "data.prompts.0.arguments.count": 96,
    "data.num_held_out_prompts": 24,
    "warm_up": {"epochs": 12, "learning_rate": 0.01},
    "reward_model": None,
    "rewards": {"brevity": {"function": "ill_rewards:brevity"}},
    "rollouts": {"prompts_per_iteration": 16, "samples_per_prompt": 2, "sampling": {"max_new_tokens": 24}},
    "ppo": {"epochs": 4, "num_minibatches": 4},
}
# A real model that is paid for each kind word, by learning rates of a preset.
KIND_WORDS = {
    "iterations": 6,
    "model": {"policy": str(SHARED / "models" / "stories260K")},
    "data": {
        "prompts": [str(SHARED / "prompts" / "tinystories_openings.jsonl")],
        "num_held_out_prompts": 16,
        "on_bad_row": "drop",
    },
    "rewards": {"valence": {"function": "ill_rewards:valence"}},
    "rollouts": {"prompts_per_iteration": 64, "sampling": {"max_new_tokens": 48}},
    "advantages": {"kl_coef": 0.0},
    "optimizers": {"learning_rate": 5e-4, "critic_learning_rate": 1e-3},
    "evaluation": {
        "held_out_rewards": {
            "variety": {"function": "flows.presets.stories:variety"},
            "subject": {"function": "flows.presets.stories:names_its_subject"},
        }
    },
    "execution": {"micro_batch_tokens": 4096},
}


def run_to_the_end(home, settings):
    run = run_directly(home, "run", checked(settings, where="test"))
    (report,) = [found.ref for found in latest_variants(run, "report_round")]
    summary = summary_of(report)
    first = {warning["metric"]: warning["iteration"] for warning in summary["warnings"]}
    return summary, first, json.loads((report.directory / "metrics.json").read_text())


def silence(learning_rate):
    tiny = yaml.safe_load(TINY.read_text())
    overrides = {**SILENCE, "optimizers.learning_rate": learning_rate}
    return with_overrides(tiny, [f"{name}={json.dumps(value)}" for name, value in overrides.items()])


@pytest.mark.timeout(900)
def test_a_policy_that_collapses_to_empty_responses_is_not_just_reported_as_a_gain(tmp_path):
    summary, first, history = run_to_the_end(tmp_path, silence(0.004))
    assert summary["evaluation/score_gain"] > 1
    assert summary["evaluation/empty_share"] > 0.5
    # From the first update on, and then for what it leads to.
    assert first["update/approx_kl"] == 1
    assert first["rollouts/response_length"] <= 6
    assert first["rollouts/empty_share"] <= 6
    # None of them has an iteration, since they were seen at the end.
    assert first["evaluation/empty_share"] is first["evaluation/response_length"] is None
    assert summary["health/warnings"] == len(summary["warnings"])
    assert history[0]["health/warnings"] == 1.0
    assert history[-1]["health/warnings"] >= 2.0
    advice = {warning["metric"]: warning["advice"] for warning in summary["warnings"]}
    for name in ("rollouts/empty_share", "evaluation/empty_share"):
        assert "lower optimizers.learning_rate (now 0.004) first" in advice[name]


@pytest.mark.timeout(900)
def test_the_same_run_with_a_rate_that_suits_it_is_told_to_be_well(tmp_path):
    summary, first, history = run_to_the_end(tmp_path, silence(0.0002))
    assert summary["evaluation/score_gain"] > 0
    assert first == {}
    assert all(row["health/warnings"] == 0.0 for row in history)


@needs_shared_data
@pytest.mark.timeout(900)
def test_a_reward_that_is_gamed_is_told_by_the_sixth_iteration(tmp_path):
    summary, first, _ = run_to_the_end(tmp_path, KIND_WORDS)
    assert summary["evaluation/score_gain"] > 1
    gaps = [first[name] for name in ("audit/variety_gap", "audit/subject_gap") if name in first]
    assert min(gaps) <= 6
