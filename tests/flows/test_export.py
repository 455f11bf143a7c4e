"""Models of a run as Hugging Face directories."""

import json
import shutil

import pytest
import torch
import transformers as hf
import yaml
from fake_runs import document, finished_run, recommit

from flows.config.reading import checked
from flows.outcomes.card import loading_lines
from flows.outcomes.export import export_model
from tasks.config.data import FromScratchConfig
from tasks.data.shapes.records import Text
from tasks.errors import ConfigError, DamagedError, RunError
from tasks.models.from_scratch import make_model
from tasks.models.scalar import load_scalar_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return finished_run(home, "fake", document(home, seed=7))


def front_matter(directory):
    return yaml.safe_load((directory / "README.md").read_text().split("---\n")[1])


def test_the_policy_is_that_of_the_last_iteration(run, tmp_path):
    found = export_model(run, tmp_path / "out", part="policy", round=None)
    assert found.as_dict() == {
        "run": "fake",
        "what": "policy",
        "directory": str(tmp_path / "out"),
        "round": 2,
        "iteration": 2,
        "digest": found.found.ref.digest,
    }
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert found.found.ref.directory.parts[-4:-1] == ("round-002", "iteration-002", "update_policy")


def test_the_policy_s_generation_config_names_all_that_ended_its_responses_and_keeps_the_rest(tmp_path):
    rollouts = {"sampling": {"max_new_tokens": 4, "stop_token_ids": [1]}}
    run = finished_run(tmp_path / "home", "fake", document(tmp_path, seed=7, rollouts=rollouts))
    source = export_model(run, tmp_path / "before", part="policy", round=None).found.ref.directory / "policy"
    saved = json.loads((tmp_path / "before" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [1]
    (source / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 0, "top_k": 7, "_from_model_config": True})
    )
    recommit(source.parent)
    export_model(run, tmp_path / "after", part="policy", round=None)
    saved = json.loads((tmp_path / "after" / "generation_config.json").read_text())
    assert saved == {"eos_token_id": [0, 1], "top_k": 7}
    export_model(run, tmp_path / "critic", part="critic", round=None)
    assert not (tmp_path / "critic" / "generation_config.json").exists()


def test_an_earlier_round_has_its_own_last_checkpoint(run, tmp_path):
    found = export_model(run, tmp_path / "out", part="critic", round=1)
    assert (found.found.place.round, found.found.place.iteration) == (1, 2)


def test_a_reward_model_that_a_round_kept_is_that_of_the_round_before(run, tmp_path):
    found = export_model(run, tmp_path / "out", part="reward_model", round=2)
    assert found.found.place.round == 1


def test_the_card_says_where_the_model_came_from(run, tmp_path):
    found = export_model(run, tmp_path / "out", part="policy", round=None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(tmp_path / "out") == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["ppo", "rlhf", "rlhf-rounds"],
    }
    for text in (
        "2 rounds of 2 iterations, algorithm ppo, seed 7",
        found.found.ref.digest,
        "AutoModelForCausalLM.from_pretrained",
        "| round 2 | 2.000 | 0.125 | 1.00 | 4.500 | 1.50 |",
        "- `preference`, weight 1: the reward model trained in the run",
    ):
        assert text in card


def critic_free(tmp_path, **changes):
    rollouts = {"samples_per_prompt": 2, "sampling": {"max_new_tokens": 4}}
    config = document(tmp_path, rounds=1, iterations=1, algorithm="dr_grpo", rollouts=rollouts, **changes)
    return finished_run(tmp_path, "alone", config)


def test_a_run_without_a_critic_exports_its_policy_and_says_how_it_was_trained(tmp_path):
    export_model(critic_free(tmp_path), tmp_path / "out", part="policy", round=None)
    assert front_matter(tmp_path / "out")["tags"] == ["dr-grpo", "rlhf", "rlhf-rounds"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "algorithm dr_grpo" in card
    assert "PPO" not in card


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, "a policy and a reward model"),
        ({"reward_model": None, "rewards": {"quality": {"function": "flows.presets.quickstart:quality"}}}, "a policy"),
    ],
)
def test_a_critic_that_no_algorithm_learned_is_refused_with_what_there_is(tmp_path, changes, others):
    run = critic_free(tmp_path, **changes)
    told = f"--what critic: run alone has none, as algorithm: dr_grpo learns none; it has {others}$"
    with pytest.raises(ConfigError, match=told):
        export_model(run, tmp_path / "out", part="critic", round=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("critic", ["policy", "reward_model"])
def test_a_critic_from_a_model_of_the_run_links_no_model_of_that_name(tmp_path, critic):
    config = document(tmp_path, rounds=1, iterations=1, model={"from_scratch": {}, "critic": critic})
    export_model(finished_run(tmp_path, "fake", config), tmp_path / "out", part="critic", round=None)
    assert "base_model" not in front_matter(tmp_path / "out")


@pytest.mark.parametrize("part", ["critic", "reward_model"])
def test_the_card_of_a_scalar_model_says_how_a_score_follows_from_it(run, tmp_path, part):
    export_model(run, tmp_path / "out", part=part, round=None)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`(logit - score_mean) / score_std`" in card
    assert "`score_mean = 0.5`, `score_std = 2`" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["score_std"] == 2.0


def test_the_card_of_one_without_a_class_in_the_library_loads_it_by_what_it_says(tmp_path):
    model = hf.GraniteForCausalLM(
        hf.GraniteConfig(
            vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    texts = [Text(prompt=None, response="a prompt and its response", place="")]
    make_model(tmp_path, FromScratchConfig(vocab_size=300, hidden_size=16, num_layers=1, num_heads=2), texts, seed=0)
    model.save_pretrained(tmp_path)
    scalar = load_scalar_model(tmp_path, seed=0)
    with torch.no_grad():
        scalar.model.score.weight.copy_(torch.linspace(-1, 1, 16)[None])
    scalar.save(tmp_path)
    lines = loading_lines("reward_model", tmp_path)
    assert "has no `GraniteForSequenceClassification`" in lines[0]
    code = lines[lines.index("```python") + 1 : lines.index("```")]
    names = {}
    exec("\n".join(code).replace('directory = "."', f"directory = {str(tmp_path)!r}"), names)
    with torch.no_grad():
        expected = scalar(names["tokens"]["input_ids"])[0, -1]
    assert names["logit"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected.item()) > 1e-3


@pytest.mark.parametrize(("policy", "linked"), [("org/base", True), (".", False)])
def test_a_base_model_of_a_hub_is_linked_and_a_directory_is_not(tmp_path, policy, linked):
    run = finished_run(tmp_path, "fake", document(tmp_path, rounds=1, iterations=1))
    run.set_config(checked(document(tmp_path, model={"policy": policy}), where="test"))
    export_model(run, tmp_path / "out", part="policy", round=1)
    assert front_matter(tmp_path / "out").get("base_model") == (policy if linked else None)


def test_an_empty_directory_may_be_given(run, tmp_path):
    (tmp_path / "out").mkdir()
    export_model(run, tmp_path / "out", part="policy", round=None)
    assert (tmp_path / "out" / "config.json").exists()


def test_a_directory_with_something_in_it_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not an empty directory; name another one"):
        export_model(run, tmp_path, part="policy", round=None)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_what_lies_beside_a_models_files_stays_behind(tmp_path):
    run = finished_run(tmp_path / "home", "fake", document(tmp_path))
    source = export_model(run, tmp_path / "before", part="policy", round=None).found.ref.directory / "policy"
    (source / "stranger.py").write_text("print('hello')")
    (source / "deep").symlink_to("/etc")
    export_model(run, tmp_path / "after", part="policy", round=None)
    before, after = (sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("before", "after"))
    assert before == after


def test_a_model_that_has_changed_since_is_not_exported(tmp_path):
    run = finished_run(tmp_path / "home", "fake", document(tmp_path))
    source = export_model(run, tmp_path / "before", part="policy", round=None).found.ref.directory / "policy"
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        DamagedError, match=r"model\.safetensors has another content .*rounds rerun --from update_policy"
    ):
        export_model(run, tmp_path / "after", part="policy", round=None)
    assert not (tmp_path / "after").exists()


def test_a_copy_that_breaks_off_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        export_model(run, tmp_path / "out", part="policy", round=None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_told(run, tmp_path):
    with pytest.raises(ConfigError, match="--round 3: run fake has no such round; it has 1, 2"):
        export_model(run, tmp_path / "out", part="policy", round=3)
    early = finished_run(tmp_path, "early", document(tmp_path), stop_before=("generate_rollouts", 1, 1))
    with pytest.raises(RunError, match="run early has no policy yet; rounds status early shows how far it is"):
        export_model(early, tmp_path / "out", part="policy", round=None)
    without = document(tmp_path)
    del without["reward_model"]
    without["rewards"] = {"quality": {"function": "flows.presets.quickstart:true_quality"}}
    plain = finished_run(tmp_path, "plain", without, stop_before=("generate_rollouts", 1, 1))
    with pytest.raises(ConfigError, match="run plain trains none; it has a policy and a critic"):
        export_model(plain, tmp_path / "out", part="reward_model", round=None)
