"""Heads compute in float32 whatever the body computes in: logits, log-probabilities and values, with their gradients."""

import pytest
import torch
from cases import Draws
from torch import nn, tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ppo_core import (
    HeadCritic,
    InPrecision,
    Ragged,
    RolloutBatch,
    SamplingConfig,
    TrunkCritic,
    entropy,
    exact_kl,
    gather_logprobs,
    linear_logprobs,
    response_values,
    sample,
    sampling,
    token_logits,
    token_logprobs,
)
from ppo_core.forward import token_logprobs_and_values
from ppo_core.heads import linear_head
from ppo_core.logprobs import linear_in_float32

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def tied():
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**gpt2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))


def softcapped():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=2.0, tie_word_embeddings=False))


class Doubling(nn.Module):
    """A head that is no linear layer."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, hidden):
        return 2 * self.linear(hidden)


def with_a_head_of_its_own():
    model = llama()
    model.set_output_embeddings(Doubling(model.lm_head))
    return model


MODELS = {f.__name__: f for f in (llama, tied, softcapped, with_a_head_of_its_own)}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Logits that are well apart, so that their rounding shows.
            parameter.mul_(3)
    return model


def a_batch():
    rows = [([3, 1, 4], [1, 5]), ([9, 2], [6, 5, 3, 5]), ([8], [9, 44, 2])]
    return RolloutBatch(
        prompts=Ragged.from_rows([prompt for prompt, _ in rows], torch.int64),
        responses=Ragged.from_rows([response for _, response in rows], torch.int64),
        stopped=torch.ones(len(rows), dtype=torch.bool),
    )


def by_definition(model, padded):
    """Logits of the response tokens: the body in bfloat16, all that comes after it in float64."""
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        hidden = model.base_model(input_ids=padded.input_ids, use_cache=False).last_hidden_state
    head, factor = model.get_output_embeddings(), 1.0
    if isinstance(head, Doubling):
        head, factor = head.linear, 2.0
    logits = factor * (hidden[padded.predicts_response].double() @ head.weight.double().T)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@every_model
def test_logits_logprobs_and_entropies_are_off_by_what_the_body_rounds_alone(name):
    model, padded = made(name), a_batch().padded()
    z = by_definition(model, padded)
    expected = z.log_softmax(-1).gather(-1, padded.response_ids[:, None])[:, 0]
    policy = InPrecision(model, torch.bfloat16)
    with torch.no_grad():
        logits = token_logits(policy, padded, temperature=1.0)
        logprobs, entropies = token_logprobs(policy, padded, temperature=1.0, with_entropy=True)
        rounded, _ = token_logprobs(
            InPrecision(model, torch.bfloat16, torch.bfloat16), padded, temperature=1.0, with_entropy=True
        )
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), z, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        entropies.double(), torch.distributions.Categorical(logits=z).entropy(), atol=1e-4, rtol=1e-4
    )
    # What it is for: rounded, they are off by a hundred times as much.
    assert (rounded - expected).abs().max() > 1e-3


@every_model
def test_the_layer_that_makes_logits_is_what_it_was_after_a_call(name):
    model = made(name)
    head = model.get_output_embeddings()
    InPrecision(model, torch.bfloat16)(input_ids=tensor([[1, 2]]))
    assert "forward" not in vars(head)
    with InPrecision(model, torch.bfloat16).opened():
        assert "forward" in vars(head)
    with pytest.raises(IndexError):
        InPrecision(model, torch.bfloat16)(input_ids=tensor([[VOCABULARY + 1]]))
    assert "forward" not in vars(head)
    # One that somebody has replaced gets its replacement back.
    head.forward = own = head.forward
    InPrecision(model, torch.bfloat16)(input_ids=tensor([[1, 2]]))
    assert vars(head)["forward"] is own


@every_model
def test_the_gradient_of_a_model_in_bfloat16_is_that_of_its_head_in_float32(name):
    model, padded = made(name), a_batch().padded()
    draws = Draws(3)
    weights = draws.normal(len(padded.response_ids)).float()
    head = model.get_output_embeddings()
    weight = head.linear.weight if isinstance(head, Doubling) else head.weight

    def gradient(logprobs):
        model.zero_grad()
        (logprobs * weights).sum().backward()
        return weight.grad.clone()

    policy = InPrecision(model, torch.bfloat16)
    got = gradient(token_logprobs(policy, padded, temperature=0.8))
    # Through the model's own forward pass, which computes the logits of all tokens.
    through_logits = gradient(gather_logprobs(token_logits(policy, padded, temperature=0.8), padded.response_ids))
    scale = got.abs().max()
    if name != "tied":
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            hidden = model.base_model(input_ids=padded.input_ids, use_cache=False).last_hidden_state
        w = weight.detach().double().requires_grad_()
        z = hidden[padded.predicts_response].double() @ w.T * (2 if isinstance(head, Doubling) else 1)
        if name == "softcapped":
            z = 2.0 * torch.tanh(z / 2.0)
        logprobs = (z / 0.8).log_softmax(-1).gather(-1, padded.response_ids[:, None])[:, 0]
        (logprobs * weights).sum().backward()
        torch.testing.assert_close(got.double(), w.grad, atol=1e-5 * float(scale), rtol=1e-4)
    # A tied weight's gradient has a part that came through the body, in bfloat16.
    torch.testing.assert_close(through_logits, got, atol=1e-2 * float(scale), rtol=1e-2)


def half_precision_case():
    draws = Draws(0)
    hidden = draws.normal(7, 64).bfloat16()
    weight = draws.normal(500, 64).bfloat16()
    return hidden, weight, draws.integers(500, 7)


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("is_within_autocast", [False, True])
@pytest.mark.parametrize("weights_are_float32", [False, True])
def test_logprobs_of_half_precision_states_and_their_gradients_are_those_of_exact_products(
    chunk, is_within_autocast, weights_are_float32
):
    hidden, weight, token_ids = half_precision_case()
    weight = weight.float() if weights_are_float32 else weight
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_within_autocast):
        logprobs, entropies = linear_logprobs(*leaves, token_ids, chunk=chunk, with_entropy=True)
        (logprobs.sum() + 0.5 * entropies.sum()).backward()
    z = exact[0] @ exact[1].T
    expected = gather_logprobs(z, token_ids), entropy(z)
    (expected[0].sum() + 0.5 * expected[1].sum()).backward()
    assert logprobs.dtype == entropies.dtype == torch.float32
    for got, want in zip((logprobs, entropies), expected, strict=True):
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-6)
    for leaf, want in zip(leaves, exact, strict=True):
        # The gradient of a half-precision tensor is rounded once, when it is written.
        own = 1e-5 if leaf.dtype == torch.float32 else 2**-8
        torch.testing.assert_close(leaf.grad.double(), want.grad, atol=1e-5, rtol=own)


def test_a_lower_precision_of_the_head_is_there_for_the_asking_and_only_where_the_body_has_it():
    hidden, weight, token_ids = half_precision_case()
    exact = gather_logprobs(hidden.double() @ weight.double().T, token_ids)
    rounded = linear_logprobs(hidden, weight, token_ids, dtype=torch.bfloat16)
    assert (rounded - exact).abs().max() > 1e-3
    model = made("llama")
    assert linear_head(InPrecision(model, torch.bfloat16)).dtype == torch.float32
    assert linear_head(InPrecision(model, torch.bfloat16, torch.bfloat16)).dtype == torch.bfloat16
    assert linear_head(InPrecision(model, torch.float32, torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("body_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_linear_layer_in_float32_keeps_apart_what_bfloat16_would_merge(body_dtype, with_bias):
    # 4096 values around 12 with standard deviation 1.
    draws = Draws(0)
    layer = nn.Linear(64, 1, bias=with_bias).to(body_dtype)
    hidden = draws.normal(4096, 64).to(body_dtype)
    with torch.no_grad():
        layer.weight.copy_(1 / 8 + draws.normal(1, 64) / 100)
        hidden += 1.5
        if with_bias:
            layer.bias.fill_(0.25)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = linear_in_float32(layer, hidden)[:, 0]
            merged = layer(hidden)[:, 0]
    exact = hidden.double() @ layer.weight.double()[0] + (0.25 if with_bias else 0.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, atol=1e-4, rtol=1e-6)
    assert len(merged.unique()) < 300
    assert len(got.unique()) > 3900


@pytest.mark.parametrize("kind", [HeadCritic, TrunkCritic])
def test_values_of_a_critic_in_bfloat16_are_those_of_its_head_in_float32(kind):
    model, padded = made("llama"), a_batch().padded()
    head = nn.Linear(32, 1, bias=False)
    critic = TrunkCritic(model, head) if kind is TrunkCritic else HeadCritic(model.base_model, head)
    with torch.no_grad():
        values = response_values(InPrecision(critic, torch.bfloat16), padded)[padded.response_mask]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.base_model(input_ids=padded.input_ids, use_cache=False).last_hidden_state
        beside = token_logprobs_and_values(
            InPrecision(model, torch.bfloat16), TrunkCritic(model, head), padded, temperature=1.0
        )
    exact = hidden[padded.predicts_response].double() @ head.weight.double()[0]
    torch.testing.assert_close(values.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(beside[2].double(), exact, atol=1e-5, rtol=1e-5)


@every_model
def test_the_sampler_draws_from_logits_of_the_same_numerics(name, monkeypatch):
    model, seen = made(name), []
    draw_tokens = sampling.draw_tokens

    def noting(logits, uniforms, **options):
        seen.append(logits.clone())
        return draw_tokens(logits, uniforms, **options)

    monkeypatch.setattr(sampling, "draw_tokens", noting)
    prompts = Ragged.from_rows([[3, 1, 4], [1, 5, 9]], torch.int64)
    policy = InPrecision(model, torch.bfloat16)
    batch = sample(policy, prompts, sampling=SamplingConfig(max_new_tokens=4), seeds=[1, 2])
    assert {logits.dtype for logits in seen} == {torch.float32}
    with torch.no_grad():
        forced = token_logprobs(policy, batch.padded(), temperature=1.0)
    # Both bodies round, in other orders; the heads do not.
    assert (batch.token_columns["logprobs"] - forced).abs().max() < 0.1


def test_an_exact_kl_compares_unrounded_logits():
    model, other, padded = made("llama"), made("llama"), a_batch().padded()
    with torch.no_grad():
        other.lm_head.weight.add_(1e-3 * Draws(1).normal(VOCABULARY, 32).float())
        logits, ref_logits = (
            token_logits(InPrecision(m, torch.bfloat16), padded, temperature=1.0) for m in (model, other)
        )
    expected = exact_kl(by_definition(model, padded), by_definition(other, padded))
    torch.testing.assert_close(exact_kl(logits, ref_logits).double(), expected, atol=1e-6, rtol=1e-2)
