"""What a model of somebody else's is refused for, before anything is made with it: tiny models with one fault each."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from small_world import TEXTS, Workbench, prepare_config, write_rows

from tasks.config.data import FromScratchConfig, Source
from tasks.config.execution import ExecutionConfig
from tasks.config.model_access import ModelAccess, ModelChecks
from tasks.data.shapes.records import Text
from tasks.errors import ModelError
from tasks.models.access import Models
from tasks.models.checks import model_mistakes, require_sound_models
from tasks.models.from_scratch import make_model
from tasks.models.scalar import load_reward_model
from tasks.scoring.reward_models import scores_in_batches
from tasks.store.manifest import Place, Ref

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
RESPONSE = 10


def a_policy(directory, *, template=None, **config):
    """A causal language model with a byte-level tokenizer; ``config`` is of its class, Llama's unless told otherwise."""
    shape = FromScratchConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
    texts = [Text(prompt=None, response=text, place="") for text in TEXTS]
    make_model(directory, shape, texts, seed=0)
    if config:
        write_config(directory, hf.AutoModelForCausalLM, **config)
    if template:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def a_reward_model(directory, **config):
    template = config.pop("template", None)
    a_policy(directory, template=template)
    write_config(directory, hf.AutoModelForSequenceClassification, **{"num_labels": 1, **config})
    return directory


def write_config(directory, auto_class, *, family="llama", **config):
    settings = {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    auto_class.from_config(hf.AutoConfig.for_model(family, **{**settings, **config})).save_pretrained(directory)


def edit_json(path, **changes):
    """Set entries; None takes one out."""
    content = json.loads(path.read_text())
    content = {name: value for name, value in {**content, **changes}.items() if value is not None}
    path.write_text(json.dumps(content))


def drop_weights(directory, *names):
    weights = load_file(directory / "model.safetensors")
    kept = {name: x for name, x in weights.items() if name not in names}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def checks(**asked):
    """What a run asks; directories may be given as paths."""
    directories = {name: str(x) if hasattr(x, "joinpath") else x for name, x in asked.items()}
    if "reward_models" in directories:
        directories["reward_models"] = {field: str(x) for field, x in directories["reward_models"].items()}
    return ModelChecks(**{"max_new_tokens": RESPONSE, **directories})


def the_mistake(**asked):
    (mistake,) = model_mistakes(checks(**asked))
    assert "\n" not in mistake
    return mistake


def of_a_reward_model(directory, **asked):
    mistake = the_mistake(reward_models={"rewards.r.model": directory}, **asked)
    assert mistake.startswith("rewards.r.model: ")
    return mistake.removeprefix("rewards.r.model: ")


def prepared(tmp_path, policy, prompts, pairs=None):
    """The data of a run as its first stage leaves it."""
    changes = {"prompts": (Source(path=write_rows(tmp_path / "given.jsonl", prompts)),), "num_held_out_prompts": 1}
    if pairs is not None:
        changes["preferences"] = (Source(path=write_rows(tmp_path / "given-pairs.jsonl", pairs)),)
    config = prepare_config(tmp_path, **changes)
    return Workbench(tmp_path / "run").run("prepare_data", config, place=Place(1), base=Ref(str(policy), "p")).directory


TEXT_PROMPTS = [
    {"prompt": "where is the red lamp?"},
    {"prompt": "go away now, thank you for the blue clock by the door"},
]
CONVERSATIONS = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in TEXT_PROMPTS]
WITH_SYSTEM = [
    {"prompt": [{"role": "system", "content": "be glad"}, *row["prompt"]]} if i else row
    for i, row in enumerate(CONVERSATIONS)
]
PAIRS = [{"prompt": f"question {i}:", "chosen": " thank you" * (i + 1), "rejected": " go away"} for i in range(8)]


def test_sound_models_have_no_mistake(tmp_path):
    policy = a_policy(tmp_path / "policy", template=CHATML)
    reward = a_reward_model(tmp_path / "reward", template=CHATML)
    data = prepared(tmp_path, policy, CONVERSATIONS, PAIRS)
    asked = {
        "policy": policy,
        "critic": reward,
        "reward_model_base": policy,
        "reward_models": {"rewards.a.model": reward, "evaluation.held_out_rewards.b.model": reward},
        "adapted_layers": ("q_proj",),
        "shared_trunk": True,
        "scalar_policy": True,
        "critic_is_reward_model": True,
        "execution": ExecutionConfig(gradient_checkpointing=True),
    }
    assert model_mistakes(checks(**asked)) == []
    assert model_mistakes(checks(**asked, data=data)) == []
    require_sound_models(checks(**asked, data=data))


def test_a_run_that_makes_its_model_itself_has_nothing_to_look_at():
    assert model_mistakes(checks()) == []


def test_all_mistakes_of_all_models_are_told_at_once(tmp_path):
    policy, critic = a_policy(tmp_path / "policy"), a_policy(tmp_path / "critic")
    reward = a_reward_model(tmp_path / "reward", num_labels=2)
    edit_json(policy / "tokenizer_config.json", pad_token=None)
    drop_weights(critic, "model.norm.weight")
    edit_json(reward / "tokenizer_config.json", eos_token=None)
    asked = checks(policy=policy, critic=critic, reward_models={"rewards.r.model": reward})
    mistakes = model_mistakes(asked)
    assert [mistake.split(":")[0] for mistake in mistakes] == [
        "model.policy",
        "model.critic",
        "rewards.r.model",
        "rewards.r.model",
    ]
    with pytest.raises(ModelError) as caught:
        require_sound_models(asked)
    message = str(caught.value)
    assert message.startswith("4 mistakes in the models: (1) model.policy: ")
    assert all(f"({i}) {mistake}" in message for i, mistake in enumerate(mistakes, start=1))
    assert "\n" not in message


def test_one_mistake_is_told_as_it_is(tmp_path):
    policy = a_policy(tmp_path / "policy")
    edit_json(policy / "tokenizer_config.json", pad_token=None)
    with pytest.raises(ModelError, match=r"^model\.policy: the tokenizer of \S+ has no pad token"):
        require_sound_models(checks(policy=policy))


def test_no_weight_is_read(tmp_path, monkeypatch):
    policy, reward = a_policy(tmp_path / "policy"), a_reward_model(tmp_path / "reward")
    asked = {"policy": policy, "critic": policy, "scalar_policy": True, "reward_models": {"rewards.r.model": reward}}
    seen = []

    def copied(self, *args, real=torch.Tensor.clone, **kwargs):
        seen.append(self.device.type)
        return real(self, *args, **kwargs)

    # What is loaded is copied once.
    monkeypatch.setattr(torch.Tensor, "clone", copied)
    assert model_mistakes(checks(**asked)) == []
    assert "meta" in seen
    assert set(seen) <= {"meta"}


# The policy


def test_a_policy_whose_weights_are_not_all_there_is_refused(tmp_path):
    policy = a_policy(tmp_path / "policy")
    drop_weights(policy, "model.layers.1.mlp.down_proj.weight")
    assert "lacks 1 of the weights of its LlamaForCausalLM" in the_mistake(policy=policy)


def test_a_reward_model_or_an_encoder_decoder_is_no_policy(tmp_path):
    reward = a_reward_model(tmp_path / "reward")
    assert "lacks 1 of the weights of its LlamaForCausalLM, among them lm_head.weight" in the_mistake(policy=reward)
    other = a_policy(tmp_path / "other")
    shape = {"vocab_size": 300, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    hf.T5ForConditionalGeneration(hf.T5Config(**shape)).save_pretrained(other)
    assert "is a t5 model, which transformers" in the_mistake(policy=other)
    assert "has no causal language model for; name a decoder language model" in the_mistake(policy=other)


def test_a_configuration_that_cannot_be_read_is_all_that_is_told_of_a_model(tmp_path):
    policy = a_policy(tmp_path / "policy")
    edit_json(policy / "config.json", model_type="of-tomorrow", architectures=None)
    edit_json(policy / "tokenizer_config.json", pad_token=None)
    assert "is a of-tomorrow model, which transformers" in the_mistake(policy=policy)


def test_code_that_comes_with_a_model_is_asked_for_and_not_run(tmp_path):
    policy = a_policy(tmp_path / "policy")
    edit_json(policy / "config.json", model_type="theirs", auto_map={"AutoConfig": "theirs.Theirs"})
    (policy / "theirs.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
    assert "needs the Python code that comes with it" in the_mistake(policy=policy)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}),
    ],
)
def test_a_shared_trunk_needs_logits_that_are_a_linear_head_alone(tmp_path, family, config):
    policy = a_policy(tmp_path / "policy", family=family, **config)
    assert the_mistake(policy=policy, shared_trunk=True).startswith(
        f"model.shared_trunk: {policy} does more to its logits than a linear head does"
    )
    # With a body of its own the critic asks for nothing.
    assert model_mistakes(checks(policy=policy, scalar_policy=True)) == []


@pytest.mark.parametrize(
    ("family", "config"), [("mistral", {}), ("gpt_neox", {}), ("granite", {"logits_scaling": 1.0})]
)
def test_a_linear_head_is_seen_to_be_one(tmp_path, family, config):
    policy = a_policy(tmp_path / "policy", family=family, **config)
    assert model_mistakes(checks(policy=policy, shared_trunk=True)) == []


def test_layers_that_cannot_be_computed_again_are_told_before(tmp_path):
    policy = a_policy(tmp_path / "policy", family="codegen", n_embd=16, n_layer=1, n_head=4, rotary_dim=4)
    mistakes = model_mistakes(checks(policy=policy, execution=ExecutionConfig(gradient_checkpointing=True)))
    has_layers = any(
        isinstance(module, hf.modeling_layers.GradientCheckpointingLayer)
        for module in hf.AutoModelForCausalLM.from_pretrained(policy).modules()
    )
    assert bool(mistakes) != has_layers


def test_names_of_layers_keep_their_own_field(tmp_path):
    policy = a_policy(tmp_path / "policy")
    assert the_mistake(policy=policy, adapted_layers=("wings",)).startswith("model.lora.target_modules: 'wings' is no")


LONGROPE = {
    "family": "phi3",
    "original_max_position_embeddings": 24,
    "rope_parameters": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 24,
    },
}


@pytest.mark.parametrize(("tokens", "fits"), [(23, True), (24, False), (40, False)])
def test_responses_that_would_cross_the_boundary_of_longrope_are_refused(tmp_path, tokens, fits):
    policy = a_policy(tmp_path / "policy", **LONGROPE)
    if fits:
        assert model_mistakes(checks(policy=policy, max_new_tokens=tokens)) == []
    else:
        said = the_mistake(policy=policy, max_new_tokens=tokens)
        assert f"takes {tokens + 1} tokens and the context of {policy} is 24 (beyond it, longrope gives a row" in said
        # A prompt has a token at least.
        assert f"; {tokens + 1 - 24} fewer fit: lower rollouts.sampling.max_new_tokens" in said


# Reward models of others


def test_a_reward_model_needs_one_output_and_a_head(tmp_path):
    assert "has 3 labels; a reward model has exactly one output" in of_a_reward_model(
        a_reward_model(tmp_path / "three", num_labels=3)
    )
    headless = a_reward_model(tmp_path / "headless")
    drop_weights(headless, "score.weight")
    assert "lacks 1 of the weights of its LlamaForSequenceClassification, among them score.weight" in of_a_reward_model(
        headless
    )
    assert "is a LlamaForCausalLM, not a sequence classifier" in of_a_reward_model(a_policy(tmp_path / "language"))


def test_a_reward_model_needs_its_own_end_of_text(tmp_path):
    reward = a_reward_model(tmp_path / "reward")
    edit_json(reward / "tokenizer_config.json", eos_token=None)
    assert 'has no EOS token, which a finished response ends with; add "eos_token" to' in of_a_reward_model(reward)


def test_a_reward_model_needs_a_tokenizer_that_fits_it(tmp_path):
    small = a_reward_model(tmp_path / "small", vocab_size=270)
    assert "has 270 rows, and its tokenizer has a token" in of_a_reward_model(small)
    bare = a_reward_model(tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    assert "has no tokenizer that loads" in of_a_reward_model(bare)


def test_without_a_template_a_reward_model_cannot_read_conversations(tmp_path):
    policy, reward = a_policy(tmp_path / "policy", template=CHATML), a_reward_model(tmp_path / "reward")
    # Nobody knows yet that prompts are conversations.
    assert model_mistakes(checks(reward_models={"rewards.r.model": reward})) == []
    data = prepared(tmp_path, policy, CONVERSATIONS)
    said = of_a_reward_model(reward, data=data)
    assert "is a list of messages, but the tokenizer of" in said
    assert "has no chat template" in said


def test_without_a_template_a_reward_model_reads_texts(tmp_path):
    policy, reward = a_policy(tmp_path / "policy"), a_reward_model(tmp_path / "reward")
    data = prepared(tmp_path, policy, TEXT_PROMPTS)
    assert model_mistakes(checks(reward_models={"rewards.r.model": reward}, data=data)) == []


def test_a_template_that_refuses_one_of_the_prompts_is_told(tmp_path):
    policy = a_policy(tmp_path / "policy", template=CHATML)
    reward = a_reward_model(tmp_path / "reward", template=NO_SYSTEM)
    data = prepared(tmp_path, policy, WITH_SYSTEM)
    said = of_a_reward_model(reward, data=data)
    assert "refuses the messages" in said
    assert "no system role" in said


def test_a_reward_models_context_is_its_own(tmp_path):
    policy = a_policy(tmp_path / "policy")
    # A token of a prompt, ten of a response, and its terminator.
    assert "takes 12 tokens and the context of" in of_a_reward_model(
        a_reward_model(tmp_path / "shortest", max_position_embeddings=11)
    )
    data = prepared(tmp_path, policy, TEXT_PROMPTS)
    prompts = hf.AutoTokenizer.from_pretrained(policy)
    needed = max(len(prompts(row["prompt"])["input_ids"]) for row in TEXT_PROMPTS) + RESPONSE + 1
    short = a_reward_model(tmp_path / "short", max_position_embeddings=needed - 1)
    assert model_mistakes(checks(reward_models={"rewards.r.model": short})) == []
    assert f"takes {needed} tokens and the context of {short} is {needed - 1}; 1 fewer fit" in of_a_reward_model(
        short, data=data
    )
    enough = a_reward_model(tmp_path / "enough", max_position_embeddings=needed)
    assert model_mistakes(checks(reward_models={"rewards.r.model": enough}, data=data)) == []


def test_held_out_reward_models_are_looked_at_by_their_own_field(tmp_path):
    headless = a_reward_model(tmp_path / "headless")
    drop_weights(headless, "score.weight")
    said = the_mistake(reward_models={"evaluation.held_out_rewards.other.model": headless})
    assert said.startswith("evaluation.held_out_rewards.other.model: ")


# What the critic and the run's own reward model start from


def with_other_words(directory):
    """Another tokenizer of the same size."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def test_a_critic_reads_the_policys_tokens(tmp_path):
    policy = a_policy(tmp_path / "policy")
    other = with_other_words(a_policy(tmp_path / "other"))
    said = the_mistake(policy=policy, critic=other)
    assert "reads the policy's token ids, but the tokenizer there is another than that of" in said
    assert said.endswith("name a model with the policy's tokenizer, or leave model.critic out")
    # The same vocabulary in a file with other bytes is the same.
    same = a_policy(tmp_path / "same")
    edit_json(same / "tokenizer.json", padding=None, truncation=None)
    (same / "tokenizer.json").write_text(json.dumps(json.loads((same / "tokenizer.json").read_text()), indent=4))
    assert model_mistakes(checks(policy=policy, critic=same)) == []


def test_a_critic_without_a_tokenizer_needs_rows_for_the_policys(tmp_path):
    policy = a_policy(tmp_path / "policy")
    for size, fits in ((300, True), (280, False)):
        critic = a_reward_model(tmp_path / f"critic-{size}", vocab_size=size)
        for path in critic.glob("tokenizer*"):
            path.unlink()
        mistakes = model_mistakes(checks(policy=policy, critic=critic))
        assert (mistakes == []) == fits
        assert fits or "has 280 rows, and the policy's tokenizer has a token" in mistakes[0]


def test_a_critic_that_starts_from_a_reward_model_of_other_tokens_is_refused(tmp_path):
    policy = a_policy(tmp_path / "policy")
    other = with_other_words(a_policy(tmp_path / "other"))
    said = the_mistake(policy=policy, reward_model_base=other, critic_is_reward_model=True)
    assert said.startswith("reward_model.base: the critic starts from")
    assert said.endswith("set model.critic: policy")
    assert model_mistakes(checks(policy=policy, reward_model_base=other)) == []


def test_a_policy_that_the_run_makes_is_compared_once_it_is_there(tmp_path):
    other = with_other_words(a_policy(tmp_path / "other"))
    assert model_mistakes(checks(critic=other)) == []
    data = prepared(tmp_path, a_policy(tmp_path / "policy"), TEXT_PROMPTS)
    shutil.copytree(tmp_path / "policy", data / "policy")
    assert "but the tokenizer there is another than that of" in the_mistake(critic=other, data=data)


def test_a_critics_context_holds_the_longest_prompt_with_its_response(tmp_path):
    policy = a_policy(tmp_path / "policy")
    data = prepared(tmp_path, policy, TEXT_PROMPTS)
    tokenizer = hf.AutoTokenizer.from_pretrained(policy)
    needed = max(len(tokenizer(row["prompt"])["input_ids"]) for row in TEXT_PROMPTS) + RESPONSE
    for context, fits in ((needed, True), (needed - 1, False)):
        critic = a_reward_model(tmp_path / f"critic-{context}", max_position_embeddings=context)
        assert (model_mistakes(checks(policy=policy, critic=critic, data=data)) == []) == fits


def test_the_base_of_a_reward_model_has_room_for_the_longest_dialogue(tmp_path):
    policy = a_policy(tmp_path / "policy")
    data = prepared(tmp_path, policy, TEXT_PROMPTS, PAIRS)
    tokenizer = hf.AutoTokenizer.from_pretrained(policy)
    dialogue = len(tokenizer(PAIRS[-1]["prompt"] + PAIRS[-1]["chosen"])["input_ids"]) + 1
    prompt = max(len(tokenizer(row["prompt"])["input_ids"]) for row in TEXT_PROMPTS) + RESPONSE + 1
    needed = max(dialogue, prompt)
    for context, fits in ((needed, True), (needed - 1, False)):
        base = a_policy(tmp_path / f"base-{context}", max_position_embeddings=context)
        assert (model_mistakes(checks(policy=policy, reward_model_base=base, data=data)) == []) == fits


def test_an_architecture_without_a_classifier_can_be_critic_and_reward_model(tmp_path):
    granite = a_policy(tmp_path / "granite", family="granite", logits_scaling=8.0)
    assert model_mistakes(checks(policy=granite, scalar_policy=True, reward_model_base=granite)) == []


def test_an_encoder_cannot_be_a_critic(tmp_path):
    directory = a_policy(tmp_path / "bert")
    config = hf.BertConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    hf.BertForMaskedLM(config).save_pretrained(directory)
    assert "has no linear 'score' head over each position" in the_mistake(critic=directory)


def test_rows_that_turn_out_longer_than_a_reward_models_context_are_not_scored(tmp_path):
    # What a response takes in the tokens of another model is only known once it is there.
    model = load_reward_model(a_reward_model(tmp_path / "reward", max_position_embeddings=8))
    execution = ExecutionConfig(device="cpu", micro_batch_tokens=100)
    models = Models(SimpleNamespace(execution=execution), ModelAccess())
    assert len(scores_in_batches(models, model, [[1] * 8, [1]])) == 2
    with pytest.raises(
        ModelError, match=r"takes 9 tokens as the reward model reads it, and that has a context of 8; lower"
    ):
        scores_in_batches(models, model, [[1] * 9, [1]])
