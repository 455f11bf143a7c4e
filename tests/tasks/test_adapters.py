"""Low-rank adapters over one frozen base, a critic on the policy's body, and layers that are computed again."""

import json

import pytest
import torch
from peft import PeftModel
from small_world import LENGTH, Workbench, a_model, an_update, generate, make_world, rows, score
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ppo_core import PPOConfig, Ragged, RolloutBatch, response_logprobs, response_values
from tasks.config.execution import ExecutionConfig, HealthConfig
from tasks.config.model_access import AdapterConfig, ModelAccess
from tasks.contract.stage import StageContext
from tasks.errors import ConfigError, ModelError
from tasks.models.access import Models
from tasks.models.adapters import write_whole
from tasks.models.loading import load_policy, require_layers
from tasks.models.parts import POLICY, part_directory
from tasks.models.training import checkpoint_gradients
from tasks.store.manifest import Place

LORA = AdapterConfig(rank=4, alpha=8)
TEXT = torch.tensor([[5, 9, 250, 17, 33, 8, 101]])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def models_of(bench, base, tmp_path, **settings):
    context = StageContext(
        output=tmp_path,
        place=Place(1, 1),
        run_seed=bench.seed,
        execution=bench.execution,
        health=HealthConfig(),
        resident=bench.models,
        report=lambda event: None,
        lora_base=base,
    )
    return Models(context, ModelAccess(**settings))


def a_bench(root, **execution):
    bench = Workbench(root)
    bench.execution = ExecutionConfig(**{**bench.execution.model_dump(), **execution})
    return bench


def logits(model):
    with torch.no_grad():
        return model(input_ids=TEXT, use_cache=False).logits


def weights(ref):
    return {
        str(path.relative_to(ref.directory)): path.read_bytes() for path in sorted(ref.directory.rglob("*.safetensors"))
    }


def test_before_any_training_policy_and_reference_are_the_base_and_the_critic_is_a_head_on_it(world, tmp_path):
    bench, base, _, _ = world
    models = models_of(bench, base, tmp_path, lora=LORA)
    plain = load_policy(base.directory)
    policy_in_training = models.take_policy(base)
    critic_in_training = models.take_critic(base, policy_in_training.model)
    assert torch.equal(logits(policy_in_training.model), logits(plain))
    assert torch.equal(logits(models.policy(base)), logits(plain))
    assert (
        critic_in_training.model(TEXT).tolist() == models.critic(base, base)(TEXT).tolist() == [[0.0] * TEXT.shape[1]]
    )
    # By hand: the head, which is 0 in the beginning, on the base's hidden states.
    torch.nn.init.normal_(critic_in_training.model.head.weight)
    hidden = plain.model(input_ids=TEXT, use_cache=False).last_hidden_state
    torch.testing.assert_close(
        critic_in_training.model(TEXT), (hidden @ critic_in_training.model.head.weight.T)[..., 0]
    )
    assert critic_in_training.model(TEXT).std() > 0.1


def test_the_base_is_in_memory_once_and_only_adapters_and_head_are_trained(world, tmp_path):
    bench, base, _, _ = world
    models = models_of(bench, base, tmp_path, lora=LORA)
    policy_in_training = models.take_policy(base)
    critic_in_training = models.take_critic(base, policy_in_training.model)
    reference = models.policy(base)
    embeddings = {
        model.model.get_input_embeddings().weight.data_ptr() for model in (policy_in_training.model, reference)
    }
    assert len(embeddings) == 1
    # rank · (in + out) of the seven layers of each of two blocks of width 16 and 32, and a head of width 16.
    adapter = 2 * (4 * 4 * (16 + 16) + 3 * 4 * (16 + 32))
    assert sum(x.numel() for x in policy_in_training.parameters) == adapter
    assert sum(x.numel() for x in critic_in_training.parameters) == adapter + 16
    assert not {id(x) for x in policy_in_training.parameters} & {id(x) for x in critic_in_training.parameters}


def test_an_update_changes_the_adapters_and_no_bit_of_the_base(world, tmp_path):
    _, base, data, _ = world
    bench = a_bench(tmp_path / "run")
    first = an_update(bench, base, data, lora=LORA)
    models = models_of(bench, base, tmp_path, lora=LORA)
    plain = logits(load_policy(base.directory))
    assert torch.equal(logits(models.policy(base)), plain)
    assert (logits(models.policy(first)) - plain).abs().max() > 1e-3
    assert torch.equal(logits(models.policy(base)), plain)
    assert bench.metrics(first)["update/first_minibatch_ratio_deviation"] < 1e-5
    assert bench.metrics(first)["update/num_optimizer_steps"] == 4


# PEFT's own wrapper asks for what transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_is_what_peft_reads(world, tmp_path, family):
    _, _, data, _ = world
    base = a_model(tmp_path / "model", family=family)
    bench = a_bench(tmp_path / "run")
    done = an_update(bench, base, data, lora=LORA)
    models = models_of(bench, base, tmp_path, lora=LORA)
    ours, values = logits(models.policy(done)), models.critic(done, done)(TEXT)[:, -1]

    theirs = PeftModel.from_pretrained(load_policy(base.directory), str(done.directory / "policy"))
    torch.testing.assert_close(logits(theirs), ours)
    bare = AutoModelForSequenceClassification.from_pretrained(str(base.directory), num_labels=1)
    # Where the library looks for the last token of a row.
    bare.config.pad_token_id = 0
    critic = PeftModel.from_pretrained(bare, str(done.directory / "critic")).eval()
    torch.testing.assert_close(critic(input_ids=TEXT).logits[:, 0], values)


SHAPES = {
    "whole": {},
    "adapters": {"lora": LORA},
    "trunk": {"shared_trunk": True},
    "adapters, trunk": {"lora": LORA, "shared_trunk": True},
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_written_whole_a_model_needs_nothing_else(world, tmp_path, shape, family):
    _, _, data, _ = world
    base = a_model(tmp_path / "model", family=family)
    bench = a_bench(tmp_path / "run")
    done = an_update(bench, base, data, **shape)
    lora_base = base if "lora" in shape else None
    models = models_of(bench, lora_base, tmp_path, shared_trunk="shared_trunk" in shape)
    ours, values = logits(models.policy(done)), models.critic(done, done)(TEXT)[:, -1]
    for part in ("policy", "critic"):
        write_whole(
            part,
            done.directory,
            tmp_path / part,
            lora_base=lora_base and base.directory,
            access=ModelAccess(shared_trunk="shared_trunk" in shape),
        )
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path / "policy")).eval()
    torch.testing.assert_close(logits(theirs), ours, atol=1e-5, rtol=1e-5)
    critic = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "critic")).eval()
    critic.config.pad_token_id = 0
    torch.testing.assert_close(critic(input_ids=TEXT).logits[:, 0], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_models_read_again_or_layers_computed_again_give_the_same_bytes(world, tmp_path, shape):
    _, base, data, _ = world

    def two_updates(bench, between=lambda: None):
        first = an_update(bench, base, data, **shape)
        between()
        second = an_update(bench, base, data, start=first, iteration=2, **shape)
        assert weights(first).keys() == weights(second).keys()
        assert weights(first) != weights(second)
        return weights(second)

    resident = two_updates(a_bench(tmp_path / "resident"))
    bench = a_bench(tmp_path / "read")
    assert two_updates(bench, between=bench.models.clear) == resident
    assert two_updates(a_bench(tmp_path / "again", gradient_checkpointing=True)) == resident


def test_the_exact_kl_of_adapters_is_from_the_bare_base_also_with_layers_computed_again(world, tmp_path):
    _, base, data, _ = world
    config = PPOConfig(epochs=2, num_minibatches=2, kl_loss_coef=0.5, kl_loss_estimator="exact")
    again = an_update(a_bench(tmp_path / "again", gradient_checkpointing=True), base, data, lora=LORA, ppo=config)
    bench = a_bench(tmp_path / "run")
    done = an_update(bench, base, data, lora=LORA, ppo=config)
    assert weights(done) == weights(again)
    # The policy moves away from the base from the second step on.
    assert 1e-6 < bench.metrics(done)["update/kl_loss"] < 1
    unpenalised = an_update(a_bench(tmp_path / "free"), base, data, lora=LORA)
    assert weights(unpenalised)["policy/adapter_model.safetensors"] != weights(done)["policy/adapter_model.safetensors"]


def test_a_checkpoint_of_a_trunk_has_one_body_and_its_values_are_the_head_on_it(world, tmp_path):
    _, base, data, _ = world
    bench = a_bench(tmp_path / "run")
    done = an_update(bench, base, data, shared_trunk=True)
    assert sorted(path.name for path in (done.directory / "critic").glob("*.safetensors")) == ["head.safetensors"]
    assert not (done.directory / "critic_optimizer.safetensors").exists()
    models = models_of(bench, None, tmp_path, shared_trunk=True)
    policy, critic = models.policy(done), models.critic(done, done)
    hidden = policy.model(input_ids=TEXT, use_cache=False).last_hidden_state
    torch.testing.assert_close(critic(TEXT), (hidden @ critic.head.weight.T)[..., 0])
    metrics = bench.metrics(done)
    assert metrics["update/value_loss"] > 0
    assert "update/critic_grad_norm" not in metrics


def test_values_and_reference_stored_with_rollouts_are_those_of_the_parts(world, tmp_path):
    _, base, data, _ = world
    bench = a_bench(tmp_path / "run")
    first = an_update(bench, base, data, lora=LORA)
    (rollouts,) = generate(bench, first, data, base)
    scored = score(bench, first, rollouts, LENGTH, reference=base, critic=first, lora_base=base)
    models = models_of(bench, base, tmp_path, lora=LORA)
    for row in rows(scored):
        batch = RolloutBatch(
            prompts=Ragged.from_rows([row["prompt_token_ids"]], torch.int64),
            responses=Ragged.from_rows([row["response_token_ids"]], torch.int64),
            stopped=torch.tensor([True]),
        ).padded()
        with torch.no_grad():
            ref_logprobs = response_logprobs(load_policy(base.directory), batch, temperature=1.0)
            logprobs = response_logprobs(models.policy(first), batch, temperature=1.0)
            values = response_values(models.critic(first, first), batch)
        torch.testing.assert_close(torch.tensor([row["ref_logprobs"]]), ref_logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor([row["logprobs"]]), logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor([row["values"]]), values, atol=1e-5, rtol=1e-5)
        assert (ref_logprobs - logprobs).abs().max() > 1e-3


def test_only_the_layers_that_are_named_get_adapters_and_another_shape_takes_the_place_of_the_first(world, tmp_path):
    bench, base, data, _ = world
    bench = a_bench(tmp_path / "run")
    models = models_of(bench, base, tmp_path, lora=LORA)
    models.take_policy(base)
    shape = AdapterConfig(rank=2, alpha=2, target_modules=("q_proj",))
    narrow = models_of(bench, base, tmp_path, lora=shape).take_policy(base)
    assert [tuple(x.shape) for x in narrow.parameters] == [(2, 16), (16, 2)] * 2
    done = an_update(bench, base, data, lora=AdapterConfig(rank=2, alpha=2, target_modules=("q_proj",)))
    settings = json.loads((done.directory / "policy/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (2, 2, ["q_proj"])


@pytest.mark.parametrize("name", ["lm_head", "proj", "mlp", "wings"])
def test_what_is_no_linear_layer_before_the_head_gets_no_adapter(world, name):
    directory = part_directory(world[1], POLICY)
    require_layers(directory, ("q_proj", "self_attn.v_proj"))
    with pytest.raises(
        ConfigError, match=rf"target_modules: '{name}' is no linear layer of .*; it has down_proj, gate_"
    ):
        require_layers(directory, ("q_proj", name))


def test_the_linear_layers_of_gpt2_are_of_a_kind_of_their_own(tmp_path):
    directory = part_directory(a_model(tmp_path / "model", family="gpt2"), POLICY)
    require_layers(directory, ("c_attn", "mlp.c_proj"))
    with pytest.raises(ConfigError, match=r"'q_proj' is no linear layer of .*; it has c_attn, c_fc, c_proj$"):
        require_layers(directory, ("q_proj",))


def test_a_model_without_such_layers_is_told_that_they_cannot_be_computed_again():
    with pytest.raises(ModelError, match=r"gradient_checkpointing=true: Linear has no layers"):
        checkpoint_gradients(torch.nn.Linear(2, 2))


def test_with_layers_computed_again_their_insides_are_not_kept(world):
    _, base, _, _ = world

    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model(input_ids=TEXT, use_cache=False).logits.sum()
        return sum(sizes)

    model = load_policy(base.directory)
    before = kept(model)
    checkpoint_gradients(model)
    checkpoint_gradients(model)
    assert kept(model) < before / 2


def test_in_bfloat16_the_base_takes_half_the_memory_and_what_is_trained_stays_exact(world, tmp_path):
    _, base, data, _ = world
    bench = a_bench(tmp_path / "run", dtype="bfloat16")
    done = an_update(bench, base, data, lora=LORA)
    # The first ratio is 1 as it is for whole models: both passes are the trainer's.
    assert bench.metrics(done)["update/first_minibatch_ratio_deviation"] < 0.05
    models = models_of(bench, base, tmp_path, lora=LORA)
    policy_in_training = models.take_policy(done)
    assert {x.dtype for x in policy_in_training.parameters} == {torch.float32}
    head = policy_in_training.model.get_output_embeddings().weight
    frozen = [x for name, x in policy_in_training.model.named_parameters() if "lora" not in name and x is not head]
    assert {x.dtype for x in frozen} == {torch.bfloat16}
    # Every token's logits would otherwise widen it again.
    assert torch.equal(head, load_policy(part_directory(base, POLICY)).get_output_embeddings().weight)
