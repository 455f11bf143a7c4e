"""Models as stages hold them, against what the library itself makes of the same directory."""

import json
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from ppo_core import InPrecision
from ppo_core.forward import can_pack
from tasks.config.execution import ExecutionConfig
from tasks.contract.resident import MAX_RESIDENT, ResidentModels
from tasks.errors import ModelError
from tasks.models.devices import pick_device, pick_dtype
from tasks.models.loading import load_policy
from tasks.models.model_config import context_length, why_limited
from tasks.models.parts import CRITIC, POLICY, REWARD_MODEL, part_directory
from tasks.models.scalar import ScalarModel, load_critic, load_scalar_model
from tasks.store.manifest import Ref

VOCABULARY, PAD = 50, 49
SMALL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
GROUPED = {**SHAPE, "num_key_value_heads": 1}
DECODERS = {
    "llama": lambda **more: hf.LlamaConfig(**SMALL, **GROUPED, **more),
    "qwen2": lambda **more: hf.Qwen2Config(**SMALL, **GROUPED, **more),
    "mistral": lambda **more: hf.MistralConfig(**SMALL, **GROUPED, sliding_window=None, **more),
    "gemma2": lambda **more: hf.Gemma2Config(**SMALL, **GROUPED, head_dim=8, sliding_window=16, **more),
    "gpt_neox": lambda **more: hf.GPTNeoXConfig(**SMALL, **SHAPE, **more),
    "gpt2": lambda **more: hf.GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=32, **more),
}
families = pytest.mark.parametrize("family", DECODERS)
ROWS = [[1, 7, 8, 9, 10, 11], [1, 12, 13], [1, 14, 15, 16, 17], [18]]


def classifier(directory, family="llama", *, seed=0, **config):
    """A sequence classifier as the library saves it; larger weights than its own, so that attention is not uniform."""
    return saved(hf.AutoModelForSequenceClassification, directory, family, seed, **{"num_labels": 1, **config})


def causal(directory, family="llama", *, seed=0):
    return saved(hf.AutoModelForCausalLM, directory, family, seed)


def saved(auto_class, directory, family, seed, **config):
    torch.manual_seed(seed)
    model = auto_class.from_config(DECODERS[family](initializer_range=0.3, **config))
    model.save_pretrained(directory)
    return model.eval()


def padded(rows, pad=0):
    """Token ids of rows that are padded on the right, and where they are real."""
    width = max(map(len, rows))
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows]), torch.tensor(mask)


@torch.no_grad()
def at_each_token(model, rows, pad=0):
    """Our scalars at the tokens of each row."""
    ids, mask = padded(rows, pad)
    return [value[inside.bool()].tolist() for value, inside in zip(model(ids), mask, strict=True)]


def test_weights_lie_where_training_leaves_them(tmp_path):
    # Products over weights that lie elsewhere may round otherwise: a resumed run would not end as one never stopped.
    causal(tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in load_policy(tmp_path).parameters()} == {0}
    classifier(tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in load_scalar_model(tmp_path).parameters()} == {0}


# What a scalar model says


@families
def test_the_scalar_at_the_last_token_is_the_librarys_own_logit(tmp_path, family):
    theirs = classifier(tmp_path, family)
    ours = load_scalar_model(tmp_path)
    # The library finds the last token by the pad id: none stands inside a row here.
    ids, mask = padded(ROWS, PAD)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    assert [row[-1] for row in at_each_token(ours, ROWS)] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-2


@families
def test_the_scalars_of_a_row_do_not_depend_on_padding(tmp_path, family):
    classifier(tmp_path, family)
    model = load_scalar_model(tmp_path)
    together = at_each_token(model, ROWS, PAD)
    for own, row in zip(together, ROWS, strict=True):
        assert own == pytest.approx(at_each_token(model, [row])[0], abs=1e-5)


def test_a_pad_token_inside_a_row_is_a_token_like_any_other(tmp_path):
    theirs = classifier(tmp_path)
    row = [1, 7, PAD, 8, PAD]
    with torch.no_grad():
        hidden = theirs.model(input_ids=torch.tensor([row])).last_hidden_state
        expected = (hidden @ theirs.score.weight.T)[0, :, 0].tolist()
    assert at_each_token(load_scalar_model(tmp_path), [row])[0] == pytest.approx(expected, abs=1e-5)


def test_a_scalar_does_not_see_the_tokens_after_it(tmp_path):
    classifier(tmp_path)
    model = load_scalar_model(tmp_path)
    whole, start = at_each_token(model, [ROWS[0]])[0], at_each_token(model, [ROWS[0][:3]])[0]
    assert whole[:3] == pytest.approx(start, abs=1e-6)


# Calibration and the way through a directory


def test_calibrations_compose(tmp_path):
    classifier(tmp_path)
    model = load_scalar_model(tmp_path)
    raw = torch.tensor(at_each_token(model, ROWS[:1])[0])
    model.calibrate(3.0, 2.0)
    once = at_each_token(model, ROWS[:1])[0]
    assert once == pytest.approx(((raw - 3) / 2).tolist(), abs=1e-5)
    model.calibrate(-0.5, 0.25)
    # ((raw - 3) / 2 + 1/2) / (1/4) = (raw - 2) / (1/2)
    assert at_each_token(model, ROWS[:1])[0] == pytest.approx(((raw - 2) / 0.5).tolist(), abs=1e-4)
    assert (model.mean, model.std) == (2.0, 0.5)


def test_calibrating_twice_by_the_scores_own_mean_and_deviation_gives_0_and_1(tmp_path):
    classifier(tmp_path)
    model = load_scalar_model(tmp_path)
    model.calibrate(2.0, 3.0)
    scores = torch.tensor(at_each_token(model, ROWS[:1])[0])
    model.calibrate(float(scores.mean()), float(scores.std()))
    scores = torch.tensor(at_each_token(model, ROWS[:1])[0])
    assert (scores.mean().item(), scores.std().item()) == pytest.approx((0, 1), abs=1e-4)


@families
def test_what_is_saved_loads_to_the_last_bit(tmp_path, family):
    classifier(tmp_path / "start", family)
    model = load_scalar_model(tmp_path / "start")
    model.calibrate(1 / 3, 0.1 + 0.2)
    model.save(tmp_path / "saved")
    again = load_scalar_model(tmp_path / "saved")
    assert (again.mean, again.std) == (1 / 3, 0.1 + 0.2)
    assert at_each_token(again, ROWS) == at_each_token(model, ROWS)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_stored_in_half_precision_are_trained_in_float32(tmp_path):
    theirs = classifier(tmp_path).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    model = load_scalar_model(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.score.weight, theirs.score.weight.float())


def test_scores_in_bfloat16_stay_apart_far_from_zero(tmp_path):
    # Raw scores of 12 and more on average, whose head is not rounded: what the body rounds is small beside their spread.
    theirs = classifier(tmp_path)
    ids = torch.randint(1, VOCABULARY, (256, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # A hidden state that is the same everywhere, and along it a head that lifts all scores.
        theirs.model.norm.weight.mul_(0).add_(1.0)
        theirs.score.weight.copy_(torch.randn(1, 16, generator=torch.Generator().manual_seed(1)))
        hidden = theirs.model(ids).last_hidden_state
        theirs.score.weight.add_(12 * torch.linalg.lstsq(hidden.flatten(0, 1), torch.ones(256 * 16, 1)).solution.T)
    theirs.save_pretrained(tmp_path)
    model = load_scalar_model(tmp_path)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model.model(ids).last_hidden_state
        scores, rounded = model(ids), model.model.score(hidden)[..., 0]
    exact = hidden.double() @ model.model.score.weight.double()[0]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact, atol=1e-4, rtol=1e-5)
    assert len(scores.unique()) > 3 * len(rounded.unique())


def test_a_loaded_model_has_dropout_switched_off(tmp_path):
    torch.manual_seed(0)
    hf.GPT2LMHeadModel(DECODERS["gpt2"](resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)).save_pretrained(tmp_path)
    model = load_policy(tmp_path)
    ids = torch.tensor([ROWS[0]])
    assert torch.equal(model(ids).logits, model(ids).logits)


# A head for a language model


def head(model):
    return model.model.score.weight


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_new_head_says_the_same_of_everything_whatever_was_drawn_before(tmp_path, with_bias, monkeypatch):
    theirs = causal(tmp_path)
    if with_bias:
        # Some families give the head of their classifiers a bias.
        build = hf.LlamaForSequenceClassification.__init__

        def with_a_bias(self, config):
            build(self, config)
            self.score = torch.nn.Linear(config.hidden_size, 1)

        monkeypatch.setattr(hf.LlamaForSequenceClassification, "__init__", with_a_bias)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    model = load_scalar_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert model(torch.tensor([[3, 1, 4, 1, 5]])).tolist() == [[0.0] * 5]
    assert (model.model.score.bias is not None) == with_bias
    assert theirs.config.hidden_size == head(model).shape[1]


def test_a_new_head_learns_from_its_first_step_on_and_its_body_from_the_second(tmp_path):
    causal(tmp_path)
    model = load_scalar_model(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    gradients = []
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.tensor([[3, 1, 4, 1, 5]])) - 1).square().sum().backward()
        gradients.append([head(model).grad.abs().sum() > 0, model.model.model.layers[0].mlp.up_proj.weight.grad.any()])
        optimizer.step()
    assert gradients == [[True, False], [True, True]]


def test_a_reward_models_new_head_is_a_function_of_the_seed_with_variance_one_over_width_plus_one(tmp_path):
    # Stiennon et al. 2020, arXiv:2009.01325: a reward head's weights have standard deviation 1 / sqrt(d + 1).
    causal(tmp_path)
    torch.manual_seed(1)
    weights = torch.cat([head(load_scalar_model(tmp_path, seed=seed)) for seed in range(40)])
    torch.manual_seed(2)
    assert torch.equal(weights[5], head(load_scalar_model(tmp_path, seed=5))[0])
    assert weights.shape == (40, 16)
    assert weights.std().item() == pytest.approx(17**-0.5, rel=0.1)
    assert abs(weights.mean().item()) < 4 / (17 * 640) ** 0.5


def test_the_body_under_a_new_head_is_the_language_models(tmp_path):
    theirs = causal(tmp_path)
    body = load_scalar_model(tmp_path).model.base_model.state_dict()
    assert all(torch.equal(body[name], weight) for name, weight in theirs.model.state_dict().items())


def test_a_trained_head_is_kept(tmp_path):
    theirs = classifier(tmp_path)
    for seed in (None, 5):
        assert torch.equal(head(load_scalar_model(tmp_path, seed=seed)), theirs.score.weight)


def test_a_trained_head_over_text_and_images_is_kept(tmp_path):
    # Its configuration has a text part, which knows neither the head nor the number of its outputs.
    images = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.Gemma3Config(
        text_config={**SMALL, **GROUPED, "head_dim": 8},
        vision_config={**images, "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
        num_labels=1,
    )
    torch.manual_seed(0)
    theirs = hf.Gemma3ForSequenceClassification(config)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(head(load_scalar_model(tmp_path)), theirs.score.weight)
    config.num_labels = 2
    hf.Gemma3ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has 2 labels"):
        load_scalar_model(tmp_path)


def test_a_critic_starts_from_a_reward_model_with_its_scale_and_from_a_policy_at_zero(tmp_path):
    classifier(tmp_path / "trained" / REWARD_MODEL)
    model = load_scalar_model(tmp_path / "trained" / REWARD_MODEL)
    model.calibrate(0.5, 4.0)
    model.save(tmp_path / "trained" / REWARD_MODEL)
    critic = load_critic(Ref(str(tmp_path / "trained"), "digest"))
    assert (critic.mean, critic.std) == (0.5, 4.0)
    causal(tmp_path / "base")
    assert not head(load_critic(Ref(str(tmp_path / "base"), "digest"))).any()


# Architectures that the library has no sequence classifier for

WITHOUT_CLASSIFIER = {
    "granite": lambda: hf.GraniteConfig(**SMALL, **GROUPED, logits_scaling=8.0, embedding_multiplier=3.0),
    "cohere": lambda: hf.CohereConfig(**SMALL, **GROUPED, logit_scale=0.25),
    "olmoe": lambda: hf.OlmoeConfig(**SMALL, **GROUPED, num_experts=4, num_experts_per_tok=2),
    "mamba": lambda: hf.MambaConfig(**SMALL, hidden_size=16, num_hidden_layers=2, state_size=4),
    "lfm2": lambda: hf.Lfm2Config(**SMALL, **GROUPED, full_attn_idxs=[1], block_auto_adjust_ff_dim=False),
    "codegen": lambda: hf.CodeGenConfig(**SMALL, n_embd=16, n_layer=2, n_head=4, n_positions=32, rotary_dim=4),
}
own_classes = pytest.mark.parametrize("family", WITHOUT_CLASSIFIER)


def without_classifier(directory, family):
    config = WITHOUT_CLASSIFIER[family]()
    assert type(config) not in hf.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    config.initializer_range = 0.3
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    return model.eval()


def with_a_head(directory, family):
    """The language model, and our scalar model over it whose head has weights."""
    theirs = without_classifier(directory, family)
    ours = load_scalar_model(directory, seed=0)
    with torch.no_grad():
        head(ours).copy_(torch.linspace(-1, 1, 16)[None])
    return theirs, ours


@own_classes
def test_a_critic_that_knows_nothing_yet_is_given_rows_as_one_that_does(tmp_path, family):
    without_classifier(tmp_path, family)
    for seed in (None, 1):
        assert can_pack(load_scalar_model(tmp_path, seed=seed)) == (family not in ("mamba", "lfm2"))


@own_classes
def test_the_scalar_is_a_linear_head_over_the_language_models_hidden_states(tmp_path, family):
    theirs, ours = with_a_head(tmp_path, family)
    for row, own in zip(ROWS, at_each_token(ours, ROWS), strict=True):
        with torch.no_grad():
            # The last of the hidden states that a causal model gives has gone through all of its body.
            hidden = theirs(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0]
        expected = (hidden * torch.linspace(-1, 1, 16)).sum(1).tolist()
        assert own == pytest.approx(expected, abs=1e-4)
    assert max(map(max, at_each_token(ours, ROWS))) > 0.1


@own_classes
def test_it_is_saved_under_a_sequence_classifiers_names_and_loads_to_the_last_bit(tmp_path, family):
    _, ours = with_a_head(tmp_path / "start", family)
    ours.calibrate(1.0, 3.0)
    ours.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (name,) = config["architectures"]
    assert name.endswith("ForSequenceClassification")
    assert name.lower().startswith(family.split("_")[0])
    names = set(load_file(tmp_path / "saved" / "model.safetensors"))
    # The body's are those that the language model was saved under.
    body = {own for own in load_file(tmp_path / "start" / "model.safetensors") if not own.startswith("lm_head")}
    assert names == {"score.weight", *body}
    again = load_scalar_model(tmp_path / "saved", seed=99)
    assert at_each_token(again, ROWS) == at_each_token(ours, ROWS)
    assert (again.mean, again.std) == (1.0, 3.0)


def test_a_saved_one_without_its_head_is_refused_like_any_other(tmp_path):
    _, ours = with_a_head(tmp_path / "start", "granite")
    ours.save(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    weights = load_file(path)
    del weights["score.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of its Granite\w+, among them score\.weight"):
        load_scalar_model(tmp_path / "saved", seed=0)


def test_gradients_reach_body_and_head(tmp_path):
    _, ours = with_a_head(tmp_path, "granite")
    ours(torch.tensor(ROWS[:1])).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    assert head(ours).grad.abs().max() > 0


# How many tokens a model can attend to


def rotary(config, positions):
    """Cosines of a model's rotary angles at these positions, in one batch."""
    torch.manual_seed(0)
    body = hf.AutoModel.from_config(config).eval()
    (module,) = [module for name, module in body.named_modules() if name.endswith("rotary_emb")]
    return module(torch.zeros(1), torch.arange(positions)[None])[0]


LENGTHS = {"max_position_embeddings": 32, "num_attention_heads": 2, "hidden_size": 16}
OF_EACH_TYPE = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 12},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 12
    },
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 12},
    "proportional": {},
}  # fmt: skip


def rotary_config(kind):
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **OF_EACH_TYPE[kind]}
    return hf.LlamaConfig(**{**SMALL, **SHAPE, **LENGTHS}, rope_parameters=parameters)


def test_there_is_a_case_for_each_type_of_rotary_positions_that_the_library_has():
    assert set(OF_EACH_TYPE) >= set(hf.modeling_rope_utils.ROPE_INIT_FUNCTIONS)


@pytest.mark.parametrize("kind", OF_EACH_TYPE)
def test_within_the_context_a_rows_positions_do_not_depend_on_the_longest_row(kind):
    config = rotary_config(kind)
    limit = context_length(config)
    short, long = rotary(config, 4), rotary(config, limit)
    assert torch.equal(short[:, :4], long[:, :4])
    if limit < config.max_position_embeddings:
        # No more is given away than has to be.
        assert not torch.equal(short[:, :4], rotary(config, limit + 1)[:, :4])


def test_the_context_of_longrope_ends_where_its_positions_change():
    assert context_length(rotary_config("longrope")) == 12
    assert "longrope gives a row other positions by the longest row" in why_limited(rotary_config("longrope"))
    assert context_length(rotary_config("yarn")) == 32
    assert why_limited(rotary_config("yarn")) == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {"type": "su", "original_max_position_embeddings": 12}},
        {"rope_scaling": {"rope_type": "longrope"}, "original_max_position_embeddings": 12},
        {"rope_parameters": {"full": {"rope_type": "longrope", "original_max_position_embeddings": 12}, "window": {}}},
    ],
)
def test_longrope_is_known_by_its_old_names_and_in_layers_of_one_type(settings):
    assert context_length(SimpleNamespace(max_position_embeddings=32, **settings)) == 12


def test_a_boundary_beyond_the_context_changes_nothing():
    config = SimpleNamespace(
        max_position_embeddings=32, rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 64}
    )
    assert context_length(config) == 32
    assert why_limited(config) == ""


# Without weights


def test_a_model_without_weights_reads_none_and_misses_those_that_are_not_there(tmp_path):
    causal(tmp_path / "policy")
    classifier(tmp_path / "reward")
    for model in (
        load_policy(tmp_path / "policy", weightless=True),
        load_scalar_model(tmp_path / "policy", seed=0, weightless=True),
        load_scalar_model(tmp_path / "reward", seed=0, weightless=True),
    ):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of its LlamaForCausalLM, among them lm_head\.weight"):
        load_policy(tmp_path / "reward", weightless=True)


# What is refused


def test_a_classifier_of_several_labels_is_no_reward_model(tmp_path):
    classifier(tmp_path, num_labels=3)
    with pytest.raises(ModelError, match=r"has 3 labels; a reward model has exactly one output"):
        load_scalar_model(tmp_path)


@pytest.mark.parametrize("auto_class", [hf.AutoModelForSequenceClassification, hf.AutoModelForMaskedLM])
def test_an_encoder_is_refused_with_what_to_take_instead(tmp_path, auto_class):
    config = hf.BertConfig(**SMALL, **SHAPE, num_labels=1)
    auto_class.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError,
        match=r"is a BertForSequenceClassification, which has no linear 'score' head .*; take a decoder model",
    ):
        load_scalar_model(tmp_path)


def test_weights_in_pickle_files_are_not_loaded(tmp_path):
    model = causal(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for load in (load_policy, lambda directory: load_scalar_model(directory)):
        with pytest.raises(ModelError, match=r"cannot be loaded as AutoModelFor\w+ with safetensors weights"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no readable config.json"),
        ("{", "has no readable config.json"),
        ("[]", "has no readable config.json"),
        (
            '{"model_type": "unheard-of"}',
            rf"is a unheard-of model, which transformers {re.escape(hf.__version__)} does not know; install a version that",
        ),
        (
            '{"model_type": "unheard-of", "auto_map": {"AutoConfig": "theirs.Theirs"}}',
            r"is a unheard-of model, which needs the Python code that comes with it; .*set model\.trust_remote_code: true",
        ),
        ("{}", "has no readable config.json"),
    ],
)
def test_a_directory_that_holds_no_model_is_one_sentence(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    for load in (load_policy, lambda directory: load_scalar_model(directory, seed=0)):
        with pytest.raises(ModelError, match=message) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_truncated_weights_are_one_sentence(tmp_path):
    causal(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded as AutoModelForCausalLM") as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_reward_model_is_no_policy_for_its_output_layer_would_be_random(tmp_path):
    classifier(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of its LlamaForCausalLM, among them lm_head\.weight"):
        load_policy(tmp_path)


def test_a_classifier_whose_head_was_not_saved_is_refused(tmp_path):
    causal(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks 1 of the weights of its \w+, among them score\.weight"):
        load_scalar_model(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 3), ("vocab_size", 60)])
def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path, key, value):
    causal(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    for load in (load_policy, lambda directory: load_scalar_model(directory)):
        with pytest.raises(ModelError, match=r"lacks \d+ of the weights .*; name a directory whose weights fit"):
            load(tmp_path)


@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("model_type", ["llama", "of_its_own"])
def test_code_that_comes_with_a_model_does_not_run_unless_it_is_trusted(tmp_path, auto, model_type):
    causal(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"auto_map": {auto: "theirs.Theirs"}, "model_type": model_type}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "theirs.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Theirs: pass\n")
    for load in (load_policy, lambda directory: load_scalar_model(directory)):
        # A type that the library knows loads without the code; another one cannot.
        with nullcontext() if model_type == "llama" else pytest.raises(ModelError):
            load(tmp_path / "model")
    assert not (tmp_path / "executed").exists()


def test_trusted_code_runs(tmp_path, monkeypatch):
    # The counterpart of the test above: with trust, the same file is executed.
    monkeypatch.setattr(hf.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    causal(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "trusted_theirs.Theirs"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "trusted_theirs.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w').close()\n"
        "from transformers import LlamaForCausalLM\nclass Theirs(LlamaForCausalLM): pass\n"
    )
    load_policy(tmp_path / "model", trust_remote_code=True)
    assert (tmp_path / "executed").exists()


def test_an_outputs_part_is_the_first_that_it_has(tmp_path):
    (tmp_path / "out" / POLICY).mkdir(parents=True)
    out = Ref(str(tmp_path / "out"), "digest")
    assert part_directory(out, CRITIC, POLICY) == tmp_path / "out" / POLICY
    (tmp_path / "out" / CRITIC).mkdir()
    assert part_directory(out, CRITIC, POLICY) == tmp_path / "out" / CRITIC
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert part_directory(Ref(str(tmp_path / "model"), "digest"), CRITIC) == tmp_path / "model"
    with pytest.raises(ModelError, match=r"out has neither reward_model, nor a config\.json; name a model's directory"):
        part_directory(out, REWARD_MODEL)


# Devices and precision


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_device_that_is_not_there_is_refused(device):
    with pytest.raises(
        ModelError, match=rf"execution\.device={device}: this PyTorch sees no CUDA device; set it to auto"
    ):
        pick_device(ExecutionConfig(device=device))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a Metal device")
def test_a_metal_device_that_is_not_there_is_refused():
    with pytest.raises(
        ModelError, match=r"execution\.device=mps: this machine has no Metal device; set it to auto or cpu"
    ):
        pick_device(ExecutionConfig(device="mps"))


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_cuda_before_metal_before_the_processor(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device(ExecutionConfig()).type == expected
    assert pick_device(ExecutionConfig(device="cpu")).type == "cpu"


@pytest.mark.parametrize(
    ("asked", "device", "supported", "expected"),
    [
        ("auto", "cpu", False, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_auto_precision_is_bfloat16_on_cuda_that_has_it_and_float32_elsewhere(
    monkeypatch, asked, device, supported, expected
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert pick_dtype(ExecutionConfig(dtype=asked), torch.device(device)) == expected


@pytest.mark.parametrize("grad", [True, False])
def test_bfloat16_sees_weights_that_changed_since_the_last_call(tmp_path, grad):
    # Autocast keeps a bfloat16 copy of each weight that wants a gradient until its context ends.
    model = InPrecision(causal(tmp_path), torch.bfloat16)
    ids = torch.tensor(ROWS[:1])
    with torch.set_grad_enabled(grad):
        before = model(ids).logits
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        after = model(ids).logits
        model.model.save_pretrained(tmp_path / "changed")
        fresh = InPrecision(load_policy(tmp_path / "changed"), torch.bfloat16)(ids).logits
    assert torch.equal(after, fresh)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_products_run_in_the_precision_that_is_asked_for(dtype):
    model = InPrecision(torch.nn.Linear(3, 3), dtype)
    assert model(torch.ones(1, 3)).dtype == dtype
    assert torch.ones(1).dtype == torch.float32
    assert model.model.weight.dtype == torch.float32


def test_precision_ends_with_the_call():
    InPrecision(torch.nn.Linear(3, 3), torch.bfloat16)(torch.ones(1, 3))
    assert not torch.is_autocast_enabled("cpu")


# Models in memory


def a_ref(name):
    return Ref(f"/nowhere/{name}", name)


class Loader:
    """Makes a new object each time and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return SimpleNamespace()


def test_a_model_is_loaded_once_for_one_content_and_part():
    models, load = ResidentModels(), Loader()
    model = models.get(a_ref("a"), POLICY, load)
    # The same content elsewhere is the same model.
    assert models.get(Ref("/elsewhere", "a"), POLICY, load) is model
    assert load.calls == 1
    assert models.get(a_ref("a"), CRITIC, load) is not model
    assert models.get(a_ref("b"), POLICY, load) is not model
    assert load.calls == 3


def test_a_model_that_was_taken_is_nobody_elses():
    models, load = ResidentModels(), Loader()
    model = models.get(a_ref("a"), POLICY, load)
    assert models.take(a_ref("a"), POLICY, load) is model
    assert models.take(a_ref("a"), POLICY, load) is not model
    assert models.get(a_ref("a"), POLICY, load) is not model
    assert load.calls == 3


def test_a_model_that_is_kept_is_found_under_its_new_content():
    models, load = ResidentModels(), Loader()
    trained = SimpleNamespace()
    models.keep(a_ref("b"), POLICY, trained)
    assert models.get(a_ref("b"), POLICY, load) is trained
    assert load.calls == 0


def test_the_models_unused_for_longest_make_room():
    models, load = ResidentModels(), Loader()
    for number in range(MAX_RESIDENT):
        models.get(a_ref(f"{number}"), POLICY, load)
    models.get(a_ref("0"), POLICY, load)
    models.get(a_ref("new"), POLICY, load)
    loaded = load.calls
    for kept in ("0", "new", *(f"{number}" for number in range(2, MAX_RESIDENT))):
        models.get(a_ref(kept), POLICY, load)
    assert load.calls == loaded
    models.get(a_ref("1"), POLICY, load)
    assert load.calls == loaded + 1


def test_after_an_error_all_models_are_loaded_anew():
    models, load = ResidentModels(), Loader()
    model = models.get(a_ref("a"), POLICY, load)
    models.clear()
    assert models.get(a_ref("a"), POLICY, load) is not model


def test_a_load_that_fails_keeps_nothing():
    models, load = ResidentModels(), Loader()

    def fails():
        raise ModelError("no such model")

    with pytest.raises(ModelError):
        models.get(a_ref("a"), POLICY, fails)
    models.get(a_ref("a"), POLICY, load)
    assert load.calls == 1


def test_a_scalar_model_needs_no_calibration():
    config = DECODERS["llama"](num_labels=1)
    model = ScalarModel(hf.LlamaForSequenceClassification(config))
    assert (model.mean, model.std) == (0.0, 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_finite_numbers_are_refused_where_they_are_read(tmp_path, value):
    causal(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[1]
    weights[name].view(-1)[3] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"has weights that are no finite numbers, among them {name}; its training went"
    ):
        load_policy(tmp_path / "model")
    # Nothing of them is read where only their names are looked at.
    load_policy(tmp_path / "model", weightless=True)
