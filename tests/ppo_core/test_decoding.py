"""Each family of causal language models, sampled on the fastest way that gives its own numbers."""

import logging
from types import SimpleNamespace

import pytest
import torch
from small_models import history_policy, tiny_llama
from torch import nn, tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ppo_core import ConfigError, InPrecision, Ragged, SamplingConfig, derive_seed, row_uniforms, sample
from ppo_core.decoding import by_generate, way_of, whole, with_cache
from ppo_core.sampling import draw_tokens

V = 29
SHAPE = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
HEADS = {"head_dim": 4}
WINDOW = {"sliding_window": 5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
    "num_key_value_heads": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
MAMBA_2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}

FAMILIES = {
    with_cache: {
        "llama": {}, "qwen2": {}, "qwen3": HEADS, "mistral": WINDOW, "mixtral": {"num_local_experts": 4},
        "qwen3_moe": {**HEADS, **EXPERTS, "moe_intermediate_size": 8}, "gemma": HEADS,
        "gemma2": {**HEADS, **WINDOW, "query_pre_attn_scalar": 4}, "gemma3_text": {**HEADS, **WINDOW}, "phi": {},
        "phi3": {}, "gpt2": GPT, "gpt_neox": {}, "gptj": {**GPT, "rotary_dim": 4}, "codegen": {**GPT, "rotary_dim": 4},
        "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
        "bloom": {"vocab_size": V, "hidden_size": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
        "falcon": {"alibi": False},
        "mpt": {"vocab_size": V, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "initializer_range": 0.3},
        "stablelm": {}, "starcoder2": WINDOW, "olmo2": {}, "olmoe": EXPERTS, "granite": {"logits_scaling": 8.0},
        "cohere2": {**WINDOW, "logit_scale": 0.25}, "glm4": HEADS, "smollm3": {}, "ernie4_5": {}, "arcee": {},
        "gpt_oss": {**HEADS, **WINDOW, "num_local_experts": 4},
        "deepseek_v3": {**LATENT, "n_routed_experts": 8, "n_group": 2, "topk_group": 1},
    },
    by_generate: {
        "mamba": {"state_size": 4},
        "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 4, "n_groups": 1, "chunk_size": 4},
        "jamba": {**EXPERTS, "num_experts": 2, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
                  "use_mamba_kernels": False},
        "bamba": {**MAMBA_2, "attn_layer_indices": [1], "mamba_chunk_size": 4},
        "lfm2": {"full_attn_idxs": [1], "block_auto_adjust_ff_dim": False},
        "falcon_h1": {**MAMBA_2, **HEADS, "mamba_d_ssm": 32, "mamba_chunk_size": 4},
        "minimax": {**HEADS, "layer_types": ["linear_attention", "full_attention"], "block_size": 4},
    },
    whole: {
        "recurrent_gemma": {**HEADS, "lru_width": 16, "attention_window_size": 5, "num_key_value_heads": 1},
        "rwkv": {"attention_hidden_size": 16},
    },
}  # fmt: skip
CASES = [(family, way) for way, families in FAMILIES.items() for family in families]
SETTINGS = {family: settings for families in FAMILIES.values() for family, settings in families.items()}
# A prompt's tokens may have the id of the pad token; one is longer than a window.
PROMPTS = [[1], [0, 3, 4], [5, 6], [7, 1, 2, 0, 4, 5, 9]]
SEEDS = [derive_seed("row", i) for i in range(8)]
SAMPLING = SamplingConfig(max_new_tokens=10, stop_token_ids=(0, 5, 7, 11, 13))


def a_model(family):
    settings = SETTINGS[family]
    shape = {} if "n_layer" in settings or "n_layers" in settings else SHAPE
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**shape, **settings})).eval()


def drawn_from(model):
    return sample(model, Ragged.from_rows(PROMPTS, torch.int64), sampling=SAMPLING, seeds=SEEDS, samples_per_prompt=2)


def assert_is_what_rows_alone_get(batch, model):
    """Each token is the one that a forward pass over its row alone, without a cache, gives to its uniform number."""
    for i, seed in enumerate(SEEDS):
        prompt, response = PROMPTS[i // 2], batch.responses.row(i).tolist()
        with torch.no_grad():
            z = model(input_ids=tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1].double()
        drawn, logprobs = draw_tokens(z, row_uniforms([seed], 10)[0, : len(response)], sampling=SAMPLING)
        assert drawn.tolist() == response
        torch.testing.assert_close(batch.column("logprobs").row(i).double(), logprobs, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("family", "way"), CASES, ids=[family for family, _ in CASES])
def test_each_family_is_sampled_as_its_own_forward_pass_says(family, way):
    """Prompts of different length, several samples of each, rows that leave."""
    model = a_model(family)
    batch = drawn_from(model)
    assert [batch.prompts.row(i).tolist() for i in range(8)] == [PROMPTS[i // 2] for i in range(8)]
    assert len(set(batch.responses.lengths.tolist())) > 2
    assert_is_what_rows_alone_get(batch, model)
    assert way_of(model) is way


@pytest.mark.parametrize("family", ["mamba", "llama", "rwkv"])
def test_no_generation_setting_of_a_checkpoint_acts(family):
    model = a_model(family)
    plain = drawn_from(model)
    settings = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "suppress_tokens": [3], "bad_words_ids": [[4]],
                "min_new_tokens": 9, "forced_eos_token_id": 2, "top_k": 1, "temperature": 0.1, "use_cache": False,
                "max_length": 3, "eos_token_id": [4, 6]}  # fmt: skip
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    again = drawn_from(model)
    assert torch.equal(again.responses.values, plain.responses.values)
    assert model.generation_config.repetition_penalty == 1.8


def test_which_way_was_taken_is_said_once(caplog):
    model = a_model("mamba")
    with caplog.at_level(logging.WARNING):
        drawn_from(model)
        drawn_from(InPrecision(model, torch.float32))
    said = [record.message for record in caplog.records if record.name == "ppo_core.decoding"]
    assert said == [
        "MambaForCausalLM cannot keep a batch in a cache; the model's own generate() is used, which is slower"
    ]


class Fails(nn.Module):
    """A Llama with one thing wrong that a batch in a cache may have wrong."""

    def __init__(self, fault):
        super().__init__()
        self.model, self.fault = tiny_llama(), fault
        self.config = self.model.config

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, **more):
        goes_on = any(more.get(name) is not None for name in ("past_key_values", "cache"))
        if self.fault == "positions" and goes_on:
            position_ids = position_ids + 1
        if self.fault == "padding":
            attention_mask = None
        said = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache, **more
        )
        if self.fault == "copies" and use_cache and not goes_on:
            for layer in (said["cache"] if "cache" in said else said["past_key_values"]).layers:
                layer.keys = layer.keys.roll(1, dims=0)
        if self.fault == "rows of a batch":
            said.logits = said.logits + said.logits.sum(0, keepdim=True) - said.logits
        return said

    def generate(self, **_):
        raise NotImplementedError


@pytest.mark.parametrize("fault", ["positions", "padding", "copies"])
def test_a_fault_in_what_a_cache_can_do_is_found_and_gone_around(fault):
    model = Fails(fault)
    batch = drawn_from(model)
    assert way_of(model) is whole
    assert_is_what_rows_alone_get(batch, model)


def test_a_generate_that_ends_too_soon_is_not_used():
    model = a_model("mamba")
    assert way_of(model) is by_generate
    model = a_model("mamba")
    model.generate = lambda *_, **__: None
    assert way_of(model) is whole


def test_a_model_without_a_fault_keeps_its_cache():
    assert way_of(Fails(None)) is with_cache


def test_a_model_whose_rows_depend_on_each_other_is_refused():
    with pytest.raises(ConfigError, match="Fails gives a row other logits in a batch than alone"):
        drawn_from(Fails("rows of a batch"))


def test_memory_that_runs_out_is_not_taken_for_a_fault():
    policy = history_policy(0)

    def forward(**_):
        raise torch.OutOfMemoryError("no memory")

    policy.forward = forward
    with pytest.raises(torch.OutOfMemoryError):
        way_of(policy)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_goes_by_the_name_that_the_forward_pass_has(name):
    inner = history_policy(0)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

    def forward(self, input_ids, use_cache, attention_mask=None, position_ids=None, logits_to_keep=0, NAME=None):
        said = self.inner(
            input_ids=input_ids, use_cache=use_cache, attention_mask=attention_mask, position_ids=position_ids,
            logits_to_keep=logits_to_keep, past_key_values=NAME,
        )  # fmt: skip
        return SimpleNamespace(logits=said.logits, **{name: said.past_key_values})

    scope = {"SimpleNamespace": SimpleNamespace, "name": name}
    import inspect
    import textwrap

    exec(textwrap.dedent(inspect.getsource(forward)).replace("NAME", name), scope)
    Named.forward = scope["forward"]
    model = Named()
    assert way_of(model) is with_cache

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

    class TakesAll(Wrapper):
        """What chooses between adapters."""

        def forward(self, *args, **kwargs):
            return self.model(*args, **kwargs)

    class NamesSome(Wrapper):
        """What libraries of adapters put around a model."""

        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    assert way_of(TakesAll()) is with_cache
    assert way_of(NamesSome()) is with_cache

    class KeepsOldName(Wrapper):
        """One that is older than the library that it is put around."""

        def forward(self, past_key_values=None, **kwargs):
            if past_key_values is not None:
                kwargs[name] = past_key_values
            said = self.model(**kwargs)
            return SimpleNamespace(logits=said.logits, past_key_values=getattr(said, name))

    assert way_of(KeepsOldName()) is with_cache
