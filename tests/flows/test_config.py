"""The configuration: what loads, what is refused and in which words, and that it survives being written down."""

import json
import math
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.config.reading import PRESETS, checked, dump, load_config, read_document, with_overrides
from flows.config.run_config import RunConfig
from tasks.config.data import Source
from tasks.config.rewards import FunctionReward, ModelReward, TrainedReward
from tasks.errors import ConfigError, UserError

TINY = str(Path(__file__).parent / "tiny.yaml")


def load(*overrides):
    return load_config(TINY, overrides)


def refusal(*overrides, name=TINY):
    """The sentence, without the name of the file that it begins with."""
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{name}: ")


# What loads


@pytest.mark.parametrize("name", ["quickstart", "stories", "grpo", "rloo", "r1_zero"])
def test_a_preset_loads_though_its_data_need_not_be_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(str(PRESETS / f"{name}.yaml"))


def test_a_field_that_is_left_out_has_the_default_that_its_stage_declares():
    config = load()
    assert (config.advantages.lam, config.ppo.cliprange, config.rollouts.sampling.temperature) == (0.95, 0.2, 1.0)
    assert (config.data.held_out_preferences, config.execution.device, config.tracking.experiment) == (
        0.1,
        "auto",
        "rlhf-rounds",
    )


def test_a_source_may_be_its_path_alone():
    config = load("data.prompts=[a.jsonl, {path: b.jsonl, limit: 3}]")
    assert config.data.prompts == (Source(path="a.jsonl"), Source(path="b.jsonl", limit=3))


def test_a_reward_is_of_the_kind_whose_key_it_has():
    rewards = load("rewards={a: {model: trained}, b: {model: org/name, weight: 2}, c: {function: 'a:b'}}").rewards
    assert [type(reward) for reward in rewards.values()] == [TrainedReward, ModelReward, FunctionReward]
    assert [reward.external_model for reward in rewards.values()] == [None, "org/name", None]
    assert [reward.user_function for reward in rewards.values()] == [None, None, "a:b"]


def test_null_leaves_the_key_of_another_kind_out():
    rewards = load("rewards.other.model=trained", "rewards.quality={function: null, model: org/name}").rewards
    assert rewards["quality"] == ModelReward(model="org/name")


def test_the_configuration_cannot_be_changed():
    config = load()
    for part, field in ((config, "seed"), (config.advantages, "lam"), (config.ppo, "epochs")):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            setattr(part, field, 1)


# What is refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # A key that is not known, at every kind of depth.
        ("iteration=3", "iteration: unknown key; did you mean iterations?"),
        ("data.prompts.0.pth=x", "data.prompts.0.pth: unknown key; did you mean data.prompts.0.path?"),
        ("rewards.quality.weigth=2", "rewards.quality.weigth: unknown key; did you mean rewards.quality.weight?"),
        (
            "rewards.model={model: trained, weigth: 2}",
            "rewards.model.weigth: unknown key; did you mean rewards.model.weight?",
        ),
        (
            "evaluation.held_out_rewards.true_quality.functio=a:b",
            "evaluation.held_out_rewards.true_quality.functio: unknown key; "
            "did you mean evaluation.held_out_rewards.true_quality.function?",
        ),
        (
            "rollouts.sampling.max_new_token=8",
            "rollouts.sampling.max_new_token: unknown key; did you mean rollouts.sampling.max_new_tokens?",
        ),
        (
            "model.from_scratch.vocab=300",
            "model.from_scratch.vocab: unknown key; did you mean model.from_scratch.vocab_size?",
        ),
        ("ppo.critic_epoch=2", "ppo.critic_epoch: unknown key; did you mean ppo.critic_epochs?"),
        ("tracking.url=x", "tracking.url: unknown key; known are experiment"),
        (
            "warm_up.trust_remote_code=true",
            "warm_up.trust_remote_code: unknown key; "
            "known are epochs, learning_rate, batch_tokens, warmup_share, max_grad_norm",
        ),
        (
            "rollouts.trust_remote_code=true",
            "rollouts.trust_remote_code: unknown key; "
            "known are prompts_per_iteration, samples_per_prompt, shards, engine, sampling, stop_strings, lag",
        ),
        # A misspelt key is why another is missing.
        (
            "rollouts.sampling={max_new_token: 8}",
            "rollouts.sampling.max_new_token: unknown key; did you mean rollouts.sampling.max_new_tokens?",
        ),
        ("rollouts.sampling={temperature: 1.0}", "rollouts.sampling.max_new_tokens: missing; add it"),
        ("data={texts: [a], preferences: [b]}", "data.prompts: missing; add it"),
        # A value out of range.
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("rounds=0", "rounds=0: input should be greater than 0"),
        ("advantages.gamma=1.5", "advantages.gamma=1.5: input should be less than or equal to 1"),
        ("advantages.lam=.nan", "advantages.lam=nan: input should be less than or equal to 1"),
        ("advantages.kl_coef=.inf", "advantages.kl_coef=inf: input should be a finite number"),
        ("rewards.quality.weight=.nan", "rewards.quality.weight=nan: input should be a finite number"),
        ("rewards.quality.weight=-.inf", "rewards.quality.weight=-inf: input should be a finite number"),
        ("optimizers.learning_rate=0", "optimizers.learning_rate=0: input should be greater than 0"),
        (
            "optimizers.critic_learning_rate=.inf",
            "optimizers.critic_learning_rate=inf: input should be a finite number",
        ),
        ("warm_up.learning_rate=.inf", "warm_up.learning_rate=inf: input should be a finite number"),
        ("reward_model.learning_rate=.inf", "reward_model.learning_rate=inf: input should be a finite number"),
        ("data.held_out_preferences=1", "data.held_out_preferences=1: input should be less than 1"),
        (
            "model.from_scratch.vocab_size=10",
            "model.from_scratch.vocab_size=10: input should be greater than or equal to 260",
        ),
        ("data.prompts.0.from_round=0", "data.prompts.0.from_round=0: input should be greater than or equal to 1"),
        (
            "rollouts.sampling.max_new_tokens=0",
            "rollouts.sampling: max_new_tokens=0 must be at least 1; a response has at least one token",
        ),
        ("ppo.epochs=0", "ppo: epochs=0 must be at least 1; an update passes over its rollouts"),
        ("ppo.max_grad_norm=.nan", "ppo: max_grad_norm=nan must be positive; inf never scales the gradient"),
        ("data.prompts=[]", "data.prompts=[]: tuple should have at least 1 item after validation, not 0"),
        ("rewards={}", "rewards={}: dictionary should have at least 1 item after validation, not 0"),
        # A value of another kind.
        ("seed=1.5", "seed=1.5: input should be a valid integer, got a number with a fractional part"),
        ("seed=", "seed=None: input should be a valid integer"),
        (
            "rewards.quality.weight=heavy",
            "rewards.quality.weight='heavy': input should be a valid number, unable to parse string as a number",
        ),
        ("ppo.cliprange=[0.1]", "ppo.cliprange=[0.1]: input should be a valid number"),
        ("ppo=3", "ppo=3: give a section, with a key and a value for each setting"),
        ("model=null", "model=None: give a section, with a key and a value for each setting"),
        ("rewards=[a]", "rewards=['a']: give a section, with a key and a value for each setting"),
        ("data.prompts=a.jsonl", "data.prompts='a.jsonl': give a list, with an entry for each"),
        ("rollouts.stop_strings=abc", "rollouts.stop_strings='abc': give a list, with an entry for each"),
        ("data.on_bad_row=mend", "data.on_bad_row='mend': input should be 'error' or 'drop'"),
        ("execution.dtype=float16", "execution.dtype='float16': input should be 'auto', 'float32' or 'bfloat16'"),
        ("optimizers.decay=step", "optimizers.decay='step': string should match pattern '^(constant|linear|cosine)$'"),
        # Parts that do not agree with themselves or each other.
        ("model={}", "model: give either policy or from_scratch"),
        ("model.policy=a", "model: give either policy or from_scratch"),
        (
            "data.prompts.0.path=a",
            "data.prompts.0: needs exactly one of path, dataset or function, not path and function",
        ),
        ("data.prompts.0={path: a, subset: b}", "data.prompts.0: subset goes with dataset, not with path; remove it"),
        ("rewards.quality={}", "rewards.quality: give a reward either a model or a function"),
        ("rewards.quality={model: null}", "rewards.quality: give a reward either a model or a function"),
        (
            "rewards.quality={functio: 'a:b'}",
            "rewards.quality.functio: unknown key; did you mean rewards.quality.function?",
        ),
        ("rewards.quality=3", "rewards.quality=3: give a section, with a key and a value for each setting"),
        (
            "rewards.quality={function: a}",
            r"rewards.quality.function='a': string should match pattern '^[\w.]+:\w+$'",
        ),
        ("rewards.quality.model=a", "rewards.quality: give a reward either a model or a function"),
        (
            "reward_model=null",
            "rewards: one says model: trained, but there is no reward_model section; add one",
        ),
        (
            "rewards={quality: {function: 'a:b'}}",
            "reward_model: no reward says model: trained, so nothing would use it; add one or leave it out",
        ),
        ("rollouts.lag=-1", "rollouts.lag=-1: input should be greater than or equal to 0"),
        (
            "rollouts.lag=2",
            "rollouts.lag=2: with iterations=2 no iteration follows more than 1 of its round's updates, and none can be "
            "further behind; lower it",
        ),
        ("data.preferences=[]", "data.preferences: a reward model needs preferences to train on; name a source"),
        ("data.texts=[]", "data.texts: a warm-up needs texts to train on; name a source"),
        (
            "evaluation.held_out_rewards={quality: {function: 'a:b'}}",
            "evaluation.held_out_rewards: quality is a training reward too; name it differently",
        ),
        (
            "evaluation.held_out_rewards={other: {model: trained}}",
            "evaluation.held_out_rewards: the trained reward model is not held out; name another model",
        ),
        (
            "rewards.how-good={function: 'a:b'}",
            "rewards: the name 'how-good' becomes part of a column's name; use letters, digits and _",
        ),
        (
            "evaluation.held_out_rewards.how good={function: 'a:b'}",
            "evaluation.held_out_rewards: the name 'how good' becomes part of a column's name; use letters, digits and _",
        ),
        (
            "data.prompts=[{path: a, from_round: 2}]",
            "data.prompts: no source counts from round 1 on; give one from_round: 1",
        ),
        (
            "data.preferences=[{path: a, from_round: 2}]",
            "data.preferences: no source counts from round 1 on; give one from_round: 1",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_field_value_and_what_is_wanted(override, message):
    assert refusal(override) == message


GROUPED = "rollouts.samples_per_prompt=4"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm=gpro"], "algorithm='gpro': input should be 'ppo', 'vanilla_pg', 'reinforce', 'rloo', 'grpo' or"),
        *(
            (
                [f"algorithm={name}"],
                f"rollouts.samples_per_prompt=1: algorithm: {name} compares the samples of a prompt",
            )
            for name in ("rloo", "grpo", "dr_grpo")
        ),
        *(
            (
                [f"algorithm={name}", GROUPED, "ppo={}", setting],
                f"{setting}: algorithm: {name} has no critic; leave it out",
            )
            for name in ("vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo")
            for setting in ("ppo.critic_epochs=2", "advantages.lam=0.9")
        ),
        *(
            (["algorithm=reinforce", setting], f"{setting}: algorithm: reinforce has no critic; leave it out")
            for setting in (
                "model.critic=policy",
                "advantages.lam_alpha=0.05",
                "advantages.critic_lam=0.5",
                "advantages.horizon=4",
                "advantages.bootstrap=True",
                "ppo.cliprange_value=0.5",
                "ppo.critic_max_grad_norm=0.5",
                "optimizers.critic_learning_rate=0.001",
                "optimizers.critic_warmup=1",
                "model.shared_trunk=True",
                "ppo.vf_coef=0.5",
            )
        ),
        *(
            (
                ["model.shared_trunk=true", setting],
                f"{setting}: with model.shared_trunk the critic learns with the policy; leave it out",
            )
            for setting in ("ppo.critic_epochs=2", "ppo.critic_max_grad_norm=0.5", "optimizers.critic_warmup=1")
        ),
        (
            ["model.shared_trunk=true", "ppo.kl_loss_coef=0.1", "ppo.kl_loss_estimator=exact"],
            "ppo.kl_loss_estimator=exact: with model.shared_trunk the update makes no logits to compare; take k3",
        ),
        *(
            (
                [f"algorithm={name}", GROUPED, "ppo={}", "advantages.gamma=0.9"],
                "advantages.gamma=0.9: without a critic it discounts the rewards of advantages.reward_to_go alone; leave it",
            )
            for name in ("vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo")
        ),
        *(
            (
                [f"algorithm={name}", GROUPED, "advantages.reward_to_go=true"],
                "advantages.reward_to_go=True: only reinforce and vanilla_pg give each token its own; leave it out",
            )
            for name in ("ppo", "rloo", "grpo", "dr_grpo")
        ),
        *(
            (
                [f"algorithm={name}", GROUPED, "ppo={}", "critic_pretraining.epochs=2"],
                f"critic_pretraining: algorithm: {name} has no critic; leave the section out",
            )
            for name in ("vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo")
        ),
        (
            ["critic_pretraining.samples=9"],
            "critic_pretraining.samples=9: the responses are those of reward_model.calibration_samples; leave it out",
        ),
        (["critic_pretraining.batch_size=0"], "critic_pretraining.batch_size=0: input should be greater than 0"),
        (
            ["execution.dtype=float32", "execution.head_dtype=bfloat16"],
            "execution: head_dtype=bfloat16 says nothing with",
        ),
        (
            ["advantages.lam_alpha=0.05", "advantages.lam=0.9"],
            "advantages: lam_alpha stands in the place of lam; leave",
        ),
        (["advantages.lam_alpha=0"], "advantages.lam_alpha=0: input should be greater than 0"),
        (["advantages.critic_lam=1.1"], "advantages.critic_lam=1.1: input should be less than or equal to 1"),
        *(
            (
                ["algorithm=reinforce", "ppo.loss=pg", *settings],
                f"ppo.loss=pg: with ppo.{told} it is off-policy from its second step on, without a ratio; set ppo.epochs",
            )
            for settings, told in (
                ([], "epochs=2"),
                (["ppo.epochs=1"], "num_minibatches=2"),
                (["ppo.num_minibatches=1"], "epochs=2"),
            )
        ),
        *(
            (
                ["algorithm=vanilla_pg", "ppo={}", f"ppo.{setting}"],
                f"ppo.{setting}: algorithm: vanilla_pg is one step without a ratio; leave it out, or say reinforce",
            )
            for setting in ("loss=ppo", "epochs=2", "num_minibatches=4")
        ),
        (["ppo.vf_coef=0.5"], "ppo.vf_coef=0.5: only a critic with model.shared_trunk shares a loss; leave it out"),
        (["ppo.vf_coef=-1"], "ppo: vf_coef=-1.0 must be at least 0"),
        (["model.lora={rank: 0}"], "model.lora.rank=0: input should be greater than 0"),
        (["model.lora={alpha: 0}"], "model.lora.alpha=0: input should be greater than 0"),
        (["model.lora={dropout: 0.1}"], "model.lora.dropout: unknown key; known are rank, alpha, target_modules"),
        *(
            (
                [setting, f"model.critic={critic}"],
                f"model: critic={critic}: with model.{name} the critic is made on the policy; leave critic out",
            )
            for setting, name in (("model.lora={}", "lora"), ("model.shared_trunk=true", "shared_trunk"))
            for critic in ("reward_model", "some/where")
        ),
        (["advantages.kl_estimator=k4"], "advantages.kl_estimator='k4': input should be 'k1', 'k2', 'k3' or 'exact'"),
        (["advantages.kl_target=-1"], "advantages.kl_target=-1: input should be greater than 0"),
        (["advantages.kl_target=6", "advantages.kl_coef=0"], "advantages: kl_target steers kl_coef, which stays 0"),
        (["advantages.kl_horizon=100"], "advantages: kl_horizon says nothing without kl_target"),
        (["advantages.kl_target=6", "advantages.kl_horizon=1.6"], "advantages.kl_horizon=1.6: with 8 responses an it"),
        (["advantages.score_clip=0"], "advantages.score_clip=0: input should be greater than 0"),
        (["advantages.length_cut.penalty=-1"], "advantages.length_cut.penalty=-1: input should be greater than or"),
        (["advantages.length_cut.score=half"], "advantages.length_cut.score='half': input should be 'keep' or 'zero'"),
        *(
            (
                ["advantages.length_cut.exclude=true", f"advantages.length_cut.{setting}"],
                "advantages.length_cut: exclude leaves nothing that score or penalty could count for",
            )
            for setting in ("score=zero", "penalty=1")
        ),
        (["advantages.length_cut.ramp_penalty=2"], "advantages.length_cut: ramp_penalty says nothing without ramp_tok"),
        (["advantages.length_cut.ramp_tokens=99"], "advantages.length_cut.ramp_tokens=99: responses have at most roll"),
        *(
            (
                ["advantages.bootstrap=true", f"advantages.length_cut.{name}={value}"],
                f"advantages: length_cut.{name}={shown}: with bootstrap the critic's value stands for what a response",
            )
            for name, value, shown in (
                ("score", "keep", "keep"),
                ("penalty", "1", "1.0"),
                ("ramp_tokens", "2", "2"),
                ("exclude", "true", "True"),
            )
        ),
        (["advantages.horizon=0"], "advantages.horizon=0: input should be greater than 0"),
        (["ppo.loss=a2c"], "ppo.loss='a2c': input should be 'ppo' or 'pg'"),
        (["ppo.loss=pg", "ppo.cliprange=0.1"], "ppo: loss=pg has no ratio to clip; leave cliprange and dual_clip out"),
        (["ppo.loss=pg", "ppo.dual_clip=3"], "ppo: loss=pg has no ratio to clip; leave cliprange and dual_clip out"),
        (["ppo.aggregation=mean"], "ppo.aggregation='mean': input should be 'token_mean' or 'seq_mean'"),
        (["ppo.kl_loss_coef=-1"], "ppo: kl_loss_coef=-1.0 must be at least 0"),
        (
            ["ppo.kl_loss_coef=0", "ppo.kl_loss_estimator=exact"],
            "ppo: kl_loss_estimator and kl_loss_direction say nothing while kl_loss_coef",
        ),
        (
            ["ppo.kl_loss_coef=0", "ppo.kl_loss_direction=forward"],
            "ppo: kl_loss_estimator and kl_loss_direction say nothing while kl_loss_coef",
        ),
        (["ppo.entropy_coef=-1"], "ppo: entropy_coef=-1.0 must be at least 0"),
        (["ppo.target_kl=0"], "ppo: target_kl=0.0 must be positive"),
        (["optimizers.critic_warmup=2"], "optimizers.critic_warmup=2: the first round has 2 iterations, so it would"),
        (["reward_model.centering=-1"], "reward_model.centering=-1: input should be greater than or equal to 0"),
        (["rollouts.engine=sglang"], "rollouts.engine='sglang': input should be 'builtin' or 'vllm'"),
        *(
            ([setting], f"{setting}: rollouts.engine: builtin does not use it; leave it out, or say vllm")
            for setting in (
                "execution.engine_servers=['http://host:8000']",
                "ppo.importance_cap=5.0",
                "health.max_engine_difference=0.1",
            )
        ),
        (
            ["rollouts.lag=1", "checkpoint_every=2"],
            "checkpoint_every=2: with rollouts.lag=1 each policy samples once more after the update that follows it, so "
            "that its weights are kept; leave it out, or set keep_checkpoints=2 to save room",
        ),
        (
            ["rollouts.lag=1", "keep_checkpoints=1"],
            "keep_checkpoints=1: with rollouts.lag=1 rollouts are sampled from the last 2 checkpoints; raise it to 2",
        ),
        (["rollouts.engine=vllm", "ppo.importance_cap=0.5"], "ppo: importance_cap=0.5 must be at least 1, 2 is usual"),
        (
            ["rollouts.engine=vllm", "execution.engine_servers=[host:8000]"],
            "execution.engine_servers: 'host:8000' is no address like http://host:8000, without user, password and query",
        ),
        *(
            (
                ["rollouts.engine=vllm", "rollouts.sampling.temperature=0.7", setting],
                "rollouts.sampling.temperature=0.7: rollouts.engine: vllm gives log-probabilities before temperature, ",
            )
            for setting in ("rollouts.sampling.top_p=0.9", "rollouts.sampling.top_k=5")
        ),
        (["health.action=ignore"], "health.action='ignore': input should be 'stop' or 'warn'"),
        (["health.max_kl=0"], "health.max_kl=0: input should be greater than 0"),
        (
            ["model.critic=reward_model", "reward_model=null", "rewards={a: {function: 'x:y'}}"],
            "model.critic=reward_model: the run trains none; add a reward_model section, or say policy",
        ),
    ],
)
def test_an_algorithm_takes_what_it_can_use_and_refuses_the_rest(overrides, message):
    assert refusal(*overrides).startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=grpo", GROUPED, "ppo.kl_loss_coef=0.1", "ppo.kl_loss_estimator=exact", "ppo.aggregation=seq_mean"],
        ["algorithm=dr_grpo", GROUPED, "ppo.loss=pg", "ppo.epochs=1", "ppo.num_minibatches=1"],
        ["algorithm=reinforce", "advantages.gamma=0.9", "advantages.reward_to_go=true"],
        ["algorithm=rloo", "rollouts.samples_per_prompt=2", "advantages.whiten=true"],
        ["algorithm=reinforce"],
        ["algorithm=vanilla_pg", "ppo={}"],
        ["algorithm=reinforce", "critic_pretraining=null"],
        ["critic_pretraining={epochs: 1, learning_rate: 0.1}", "model.shared_trunk=true"],
        ["reward_model=null", "rewards={a: {function: 'x:y'}}", "critic_pretraining.samples=9"],
        ["execution.head_dtype=bfloat16"],
        ["algorithm=vanilla_pg", "ppo={loss: pg, epochs: 1, entropy_coef: 0.1}", "advantages.reward_to_go=true"],
        ["advantages.kl_target=6", "advantages.kl_horizon=2", "advantages.kl_estimator=exact"],
        ["optimizers.critic_warmup=1", "model.critic=policy", "advantages.bootstrap=true", "advantages.horizon=3"],
        ["health.action=warn", "health.max_kl=.inf", "health.min_entropy=0"],
        ["model.lora={rank: 8}", "model.critic=policy", "optimizers.critic_warmup=1"],
        ["model.shared_trunk=true", "ppo.vf_coef=0.5", "ppo.kl_loss_coef=0.1"],
        ["model.lora={}", "algorithm=grpo", GROUPED],
        ["rollouts.engine=vllm", "rollouts.sampling.temperature=0.7", "health.max_engine_difference=.inf"],
        ["rollouts.engine=vllm", "rollouts.sampling.top_p=0.9", "rollouts.sampling.top_k=5", "ppo.importance_cap=.inf"],
        ["rollouts.engine=vllm", "execution.engine_servers=[https://host:8000/v1]"],
        ["rollouts.lag=1", "ppo.importance_cap=5", "keep_checkpoints=2", "algorithm=vanilla_pg", "ppo={}"],
        ["rollouts.lag=1", "rollouts.engine=vllm", "ppo.importance_cap=5"],
    ],
)
def test_what_belongs_together_is_taken(overrides):
    load(*overrides)


def test_vanilla_pg_alone_is_one_step_without_a_ratio():
    document = {name: value for name, value in read_document(TINY).items() if name != "ppo"}
    config = checked({**document, "algorithm": "vanilla_pg"}, where="here")
    assert (config.ppo.loss, config.ppo.epochs, config.ppo.num_minibatches) == ("pg", 1, 1)
    assert checked(dump(config), where="there") == config
    ppo = checked({**document, "algorithm": "reinforce"}, where="here").ppo
    assert (ppo.loss, ppo.epochs, ppo.num_minibatches) == ("ppo", 4, 4)


def test_a_model_from_scratch_needs_texts_without_a_warm_up_too():
    message = "data.texts: a model from scratch needs texts for its tokenizer; name a source"
    assert refusal("warm_up=null", "data.texts=[]") == message
    load("warm_up=null", "data.texts=[]", "model={policy: somewhere}")


def test_preferences_may_lie_there_unused():
    load("reward_model=null", "rewards={quality: {function: 'a:b'}}")


def test_a_long_value_is_cut_in_its_message():
    message = refusal(f"seed={'x' * 500}")
    assert message.startswith("seed='xxx")
    assert len(message) < 200


def test_a_mistake_names_the_file_it_is_in(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: -1\n")
    with pytest.raises(ConfigError, match=rf"^{path}: 5 mistakes: \(1\) seed=-1: .* \(2\) model: missing; add it"):
        load_config(str(path))


# Files


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not readable as YAML (while parsing a flow node"),
        ("a: 1\n\tb: 2", "not readable as YAML (while scanning"),
        (b"\xff\xfe\x00", "not readable as YAML ("),
        ("seed: !!python/name:os.system", "not readable as YAML (could not determine a constructor"),
        ("- 1", "holds list, not a mapping of settings; see rounds init"),
        ("", "holds NoneType, not a mapping of settings; see rounds init"),
        ("a: &a [*a]", "not readable as YAML (a list or mapping holds itself); mend that place"),
        (
            "seed: 1\nppo: {epochs: 2}\nseed: 2",
            "not readable as YAML (the key 'seed' stands here for the second time, first in",
        ),
        ("2024-01-01: 1", "2024-01-01: unknown key"),
        ("1: 2", "1: unknown key; known are algorithm, seed, rounds, iterations, "),
    ],
)
def test_a_file_that_is_no_configuration_is_told_in_one_sentence(tmp_path, text, message):
    assert refusal("seed=1", name=write(tmp_path, text)).startswith(message)


@pytest.mark.parametrize("name", ["quickstrat", "nowhere.yaml", "."])
def test_a_name_of_nothing_is_answered_with_the_presets(name):
    assert (
        refusal(name=name)
        == "no such file, and no preset of that name; presets are grpo, quickstart, r1_zero, rloo, stories"
    )


def test_a_date_without_quotes_is_the_text_that_it_looks_like(tmp_path):
    document = yaml.safe_load(Path(TINY).read_text())
    document["model"] = {"policy": "a", "revision": "REVISION"}
    config = load_config(write(tmp_path, yaml.safe_dump(document).replace("REVISION", "2024-01-31")))
    assert config.model.revision == "2024-01-31"
    assert load("model={policy: a}", "model.revision=2024-01-31").model.revision == "2024-01-31"


# Overrides

DOCUMENT = {"seed": 0, "data": {"prompts": [{"path": "a", "limit": 5}, "b"], "texts": None}, "warm_up": None}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("seed=4", {"seed": 4}),
        ("rounds=2", {"rounds": 2}),
        ("warm_up={epochs: 2}", {"warm_up": {"epochs": 2}}),
        ("reward_model.epochs=2", {"reward_model": {"epochs": 2}}),
        ("a.b.c=x", {"a": {"b": {"c": "x"}}}),
        ("seed=null", {"seed": None}),
        ("seed=", {"seed": None}),
        ("seed='7'", {"seed": "7"}),
        ("seed=true", {"seed": True}),
        ("seed=[1, two]", {"seed": [1, "two"]}),
        ("seed=.inf", {"seed": math.inf}),
        # Only the first sign of equality is ours.
        ("seed=a=b", {"seed": "a=b"}),
        ("data.prompts.0.path=c", {"data": {"prompts": [{"path": "c", "limit": 5}, "b"], "texts": None}}),
        ("data.prompts.1=c", {"data": {"prompts": [{"path": "a", "limit": 5}, "c"], "texts": None}}),
        ("data.prompts=[c]", {"data": {"prompts": ["c"], "texts": None}}),
        ("data.texts=[c]", {"data": {"prompts": [{"path": "a", "limit": 5}, "b"], "texts": ["c"]}}),
    ],
)
def test_an_override_changes_one_place(override, changed):
    before = json.dumps(DOCUMENT)
    assert with_overrides(DOCUMENT, [override]) == {**DOCUMENT, **changed}
    assert json.dumps(DOCUMENT) == before


def test_later_overrides_see_earlier_ones():
    overrides = ["warm_up={epochs: 2}", "warm_up.epochs=3", "seed=1", "seed=2"]
    assert with_overrides(DOCUMENT, overrides) == {**DOCUMENT, "warm_up": {"epochs": 3}, "seed": 2}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "not of the form a.b=value"),
        ("=3", "not of the form a.b=value"),
        ("", "not of the form a.b=value"),
        ("seed=[1", "the value is not readable as YAML (expected ',' or ']', but got '<stream end>'); quote it"),
        ("seed=a: b: c", "the value is not readable as YAML (mapping values are not allowed here); quote it"),
        (
            "ppo={a: 1, a: 2}",
            "the value is not readable as YAML (the key 'a' stands here for the second time, first in line 1); quote it",
        ),
        ("seed.x=1", "seed is no section; set it whole"),
        ("warm_up.epochs=1", "warm_up is no section; set it whole"),
        ("data.texts.0=a", "texts is no section; set it whole"),
        ("data.prompts.1.path=a", "1 is no section; set it whole"),
        ("data.prompts.2=a", "2 is no position in a list of 2; count from 0"),
        ("data.prompts.2.path=a", "2 is no position in a list of 2; count from 0"),
        ("data.prompts.-1=a", "-1 is no position in a list of 2; count from 0"),
        ("data.prompts.first=a", "first is no position in a list of 2; count from 0"),
        ("data.prompts.²=a", "² is no position in a list of 2; count from 0"),
    ],
)
def test_an_override_that_changes_nothing_that_is_there_is_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        with_overrides(DOCUMENT, [override])
    assert str(caught.value) == f"--set {override}: {message}"


def test_numbers_as_people_write_them_are_numbers():
    # YAML 1.1 takes 1e-5 for a text, since it has no point, and 010 for 8.
    config = load("optimizers.learning_rate=1e-5", "advantages.kl_coef=.05", "ppo.epochs=3", "seed=010", "rounds=1")
    assert (config.optimizers.learning_rate, config.advantages.kl_coef, config.ppo.epochs) == (1e-5, 0.05, 3)
    assert (config.seed, config.rounds) == (10, 1)


def test_a_file_and_an_override_read_a_value_alike(tmp_path):
    document = Path(TINY).read_text()
    for name in ("on", "yes", "010", "2024-01-31", "1:30"):
        text = f"{document}\ntracking: {{experiment: '{name}'}}\n"
        assert load_config(write(tmp_path, text)).tracking.experiment == name
        assert load(f"tracking.experiment='{name}'").tracking.experiment == name
    for word in ("on", "yes", "2024-01-31", "1:30"):
        assert (
            load_config(write(tmp_path, f"{document}\ntracking: {{experiment: {word}}}\n")).tracking.experiment == word
        )
        assert load(f"tracking.experiment={word}").tracking.experiment == word
    assert "on" in load("rewards.on={function: 'a:b'}").rewards
    message = "model.revision=1234567: a text is needed; put it in quotes"
    assert refusal("model={policy: a, revision: 1234567}") == message
    assert refusal("model={policy: a}", "model.revision=12e4567").startswith(
        "--set model.revision=12e4567: the value is not"
    )


NUMBERS = (
    *("optimizers.learning_rate", "advantages.lam", "ppo.cliprange", "rewards.quality.weight", "health.max_kl"),
    *("rollouts.sampling.temperature", "data.held_out_preferences", "execution.stage_timeout_s"),
)
COUNTS = (
    *("rounds", "ppo.epochs", "rollouts.sampling.max_new_tokens", "data.prompts.0.limit", "warm_up.epochs"),
    *("model.from_scratch.num_layers", "execution.retries", "rollouts.sampling.top_k", "checkpoint_every"),
)
SWITCHES = (
    "model.trust_remote_code",
    "execution.gradient_checkpointing",
    "advantages.whiten",
    "reward_model.use_margins",
)


@pytest.mark.parametrize("name", [*NUMBERS, *COUNTS])
@pytest.mark.parametrize(
    "value", ["true", "false", "yes", "'0.5'", "'1'", "1:30", "[1]", "{a: 1}", "0x", "1,5", ".nan"]
)
def test_a_number_is_a_number(name, value):
    message = refusal(f"{name}={value}")
    # A class of the mathematics names its field alone, behind its section.
    assert name in (message[: len(name)], message.replace(": ", ".", 1)[: len(name)])


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", ["2.0", "1e1", "2.5", ".inf", "1" + "0" * 30])
def test_a_count_is_a_whole_number(name, value):
    assert refusal(f"{name}={value}").startswith(name)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["yes", "no", "on", "1", "0", "1.0", "'true'", "t"])
def test_a_switch_is_true_or_false(name, value):
    assert refusal(f"{name}={value}").startswith(name)


@pytest.mark.parametrize(
    "name",
    [
        *("optimizers.learning_rate", "advantages.score_clip", "execution.stage_timeout_s", "ppo.target_kl"),
        *("rewards.quality.weight", "rollouts.sampling.temperature", "ppo.dual_clip", "ppo.cliprange_value"),
        *("advantages.kl_target", "advantages.length_cut.penalty", "optimizers.weight_decay"),
    ],
)
def test_a_number_is_finite_where_infinity_is_not_said_to_mean_anything(name):
    assert "inf" in refusal(f"{name}=.inf")


@pytest.mark.parametrize(
    "name", ["health.max_kl", "ppo.max_grad_norm", "ppo.critic_max_grad_norm", "warm_up.max_grad_norm"]
)
def test_infinity_is_no_limit_where_the_settings_say_so(name):
    load(f"{name}=.inf")
    assert "a number is needed" in refusal(f"{name}='1'")


def test_a_whole_number_is_a_number_too():
    assert load("advantages.lam=1").advantages.lam == 1.0


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rounds=1000000"], "rounds=1000000: with iterations=2 and rollouts.shards=2 the run has 4,000,000 shards"),
        (["iterations=100000"], "rounds=2: with iterations=100000"),
        (["rounds=250", "iterations=100", "rollouts.shards=3"], "75,000 shards"),
        (["rollouts.prompts_per_iteration=1000000", "rollouts.samples_per_prompt=2"], "=2000000: more than 1,000,000"),
        (["evaluation.samples_per_prompt=1000001"], "evaluation.samples_per_prompt=1000001"),
        (["reward_model.calibration_samples=1000001"], "reward_model.calibration_samples=1000001"),
        (["report.num_samples=1000001"], "report.num_samples=1000001"),
    ],
)
def test_a_run_that_could_not_be_planned_or_held_is_refused(overrides, told):
    assert told in refusal(*overrides)


@pytest.mark.parametrize("section", ["rewards", "evaluation.held_out_rewards"])
@pytest.mark.parametrize("name", ["length", "kl", "mean", "std", "score"])
def test_a_reward_with_the_name_of_one_of_our_metrics_is_refused(section, name):
    assert f"{section}: the name {name!r} would make a metric" in refusal(f"{section}.{name}={{function: 'a:b'}}")


def test_a_reward_and_a_held_out_reward_whose_metrics_would_have_one_name_are_refused():
    message = refusal("evaluation.held_out_rewards.quality_gain={function: 'a:b'}")
    assert "evaluation.held_out_rewards: the name 'quality_gain' would make a metric audit/quality_gain, " in message
    assert "which the reward 'quality' makes too" in message


def test_a_run_of_many_thousand_iterations_is_none_of_them():
    assert load("rounds=5", "iterations=5000").iterations == 5000


# Written down and read again

positive = st.floats(min_value=1e-300, allow_infinity=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
SETTINGS = {
    "seed": st.integers(0, 2**63 - 1),
    "rounds": st.integers(1, 9),
    "advantages.lam": st.floats(0, 1),
    "advantages.whiten": st.booleans(),
    "rewards.quality.weight": finite,
    "rollouts.sampling.temperature": positive,
    "rollouts.sampling.stop_token_ids": st.lists(st.integers(0, 10**6), max_size=3),
    "rollouts.sampling.suppress_token_ids": st.lists(st.integers(10**6 + 1, 10**7), max_size=3),
    "rollouts.stop_strings": st.lists(st.text(), max_size=3),
    "ppo.max_grad_norm": positive | st.just(math.inf),
    "ppo.critic_max_grad_norm": positive | st.just(math.inf),
    "warm_up.max_grad_norm": positive | st.just(math.inf),
    "ppo.cliprange": st.floats(0.01, 0.99) | st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2),
    "ppo.cliprange_value": st.none() | positive,
    "ppo.dual_clip": st.none() | st.floats(1.5, 9),
    "optimizers.learning_rate": positive,
    "execution.stage_timeout_s": st.none() | positive,
    "execution.device": st.sampled_from(["auto", "cpu", "cuda:1"]),
    "tracking.experiment": st.text(),
    "data.prompts.0.arguments": st.dictionaries(st.text().filter("seed".__ne__), finite | st.text() | st.none()),
    "warm_up": st.none(),
}


@st.composite
def documents(draw):
    document = read_document(TINY)
    for name in draw(st.sets(st.sampled_from(list(SETTINGS)))):
        *parents, last = name.split(".")
        node = document
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
            if node is None:
                break
        else:
            node[last] = draw(SETTINGS[name])
    return document


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(documents())
def test_a_configuration_survives_being_written_as_json(document):
    config = checked(document, where="here")
    written = json.loads(json.dumps(dump(config), allow_nan=False))
    again = checked(written, where="there")
    assert again == config
    assert dump(again) == dump(config) == written


def test_what_is_written_is_what_was_set():
    written = dump(load("ppo.max_grad_norm=.inf", "ppo.cliprange=[0.1, 0.3]", "rewards.quality.weight=-2.5", "seed=9"))
    assert written["seed"] == 9
    assert written["rewards"]["quality"]["weight"] == -2.5
    assert written["ppo"]["cliprange"] == [0.1, 0.3]
    assert written["ppo"]["max_grad_norm"] == "Infinity"
    assert checked(written, where="").ppo.max_grad_norm == math.inf


@pytest.mark.parametrize("name", ["quickstart", "stories", "grpo", "rloo", "r1_zero"])
def test_a_preset_survives_being_written_as_yaml(name):
    config = load_config(name)
    assert checked(yaml.safe_load(yaml.safe_dump(dump(config))), where="") == config
    assert RunConfig.model_validate(config.model_dump()) == config


# Whether the hub is needed


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], False),
        (["model={policy: org/name}"], True),
        (["model={policy: here}"], False),
        (["model={policy: ~/here}"], False),
        (["model={policy: here, critic: gone}"], True),
        (["reward_model.base=org/name"], True),
        (["reward_model.base=here"], False),
        (["rewards.other={model: org/name}"], True),
        (["rewards.other={model: here}"], False),
        (["evaluation.held_out_rewards.other={model: org/name}"], True),
        (["data.prompts=[{dataset: org/data}]"], True),
        (["data.held_out_prompts=[{dataset: org/data}]"], True),
        (["data.preferences=[{dataset: org/data}]"], True),
        (["data.texts=[{dataset: org/data}]"], True),
        (["data.prompts=[org/data]"], False),
    ],
)
def test_the_hub_is_needed_where_something_is_named_that_is_not_here(tmp_path, monkeypatch, overrides, expected):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(*overrides).needs_hub() is expected


@pytest.mark.parametrize(("prompts", "samples", "shards", "minibatches"), [(3, 1, 1, 4), (2, 4, 2, 9), (1, 2, 1, 3)])
def test_more_minibatches_than_an_iteration_has_rollouts_are_refused(prompts, samples, shards, minibatches):
    rollouts = [f"rollouts.prompts_per_iteration={prompts}", f"rollouts.samples_per_prompt={samples}"]
    rollouts.append(f"rollouts.shards={shards}")
    assert f"ppo.num_minibatches={minibatches}: an iteration has {prompts * samples} rollouts" in refusal(
        *rollouts, f"ppo.num_minibatches={minibatches}"
    )
    load(*rollouts, f"ppo.num_minibatches={prompts * samples}")


def test_a_configuration_that_has_no_end_or_is_too_long_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name, kind in (("pipe.yaml", "a pipe"), ("zero.yaml", "a device")):
        with pytest.raises(UserError, match=f"is {kind}; give a regular file"):
            load_config(str(tmp_path / name))
    assert "longer than 256 KiB" in refusal(name=write(tmp_path, Path(TINY).read_text() + "# " + "x" * 300_000))


def test_a_name_that_can_be_no_path_is_refused():
    assert "there is no such user's home directory" in refusal(name="~nosuchuser/a.yaml")
    assert "(3,000 characters): no such file" in refusal(name="x" * 3000)


def test_a_few_lines_that_stand_for_millions_of_values_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
    began = time.monotonic()
    assert "more than 200,000 values" in refusal(name=write(tmp_path, "\n".join(lines)))
    assert time.monotonic() - began < 5
