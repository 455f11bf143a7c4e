"""Whole runs with what saves memory: adapters over one frozen base, a critic on the policy's body, layers computed again."""

import pytest
from conftest import TINY, overrides
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

SETTINGS = {
    "model.lora": "{rank: 2}",
    "execution.gradient_checkpointing": "true",
    "optimizers.learning_rate": 0.01,
    "optimizers.critic_learning_rate": 0.01,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="session")
def adapted(home):
    home.rounds("run", TINY, "--name", "adapted", *overrides(SETTINGS))
    return "adapted"


def test_a_run_of_adapters_goes_through_and_its_checkpoints_hold_adapters_alone(home, adapted):
    checkpoints = {name: manifest for name, manifest in home.stages(adapted).items() if "update_policy" in name}
    assert len(checkpoints) == 4
    for manifest in checkpoints.values():
        weights = {name for name in manifest["files"] if name.endswith(".safetensors")}
        assert weights == {
            "policy/adapter_model.safetensors",
            "critic/adapter_model.safetensors",
            "policy_optimizer.safetensors",
            "critic_optimizer.safetensors",
        }
        assert manifest["metrics"]["update/first_minibatch_ratio_deviation"] < 1e-5
    rollouts = [m for name, m in home.stages(adapted).items() if "generate_rollouts" in name]
    assert len(rollouts) == 8
    assert home.rounds("verify", adapted).stdout.endswith(", 0 damaged\n")


def test_an_update_over_a_checkpoint_that_was_not_kept_is_made_again_to_the_last_bit(home, adapted):
    assert "identical" in home.rounds("replay", adapted, "--round", 2, "--iteration", 2).stdout


@pytest.mark.parametrize(
    ("part", "auto"), [("policy", AutoModelForCausalLM), ("critic", AutoModelForSequenceClassification)]
)
def test_what_is_exported_is_a_whole_model(home, adapted, tmp_path, part, auto):
    home.rounds("export", adapted, "--what", part, "--to", tmp_path / part)
    _, loading = auto.from_pretrained(str(tmp_path / part), output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert "adapter" not in str(sorted(path.name for path in (tmp_path / part).iterdir()))


@pytest.mark.slow
def test_with_a_critic_on_the_policys_body_a_run_goes_through(home):
    home.rounds("run", TINY, "--name", "trunk", *overrides({"model.shared_trunk": "true", "rounds": 1}))
    (last,) = [m for name, m in home.stages("trunk").items() if "iteration-002/update_policy" in name]
    assert "critic/head.safetensors" in last["files"]
    assert "critic_optimizer.safetensors" not in last["files"]
    assert last["metrics"]["update/value_loss"] > 0
