from functools import partial

import pytest
import reference
import torch
from cases import Draws, few, law, random_batch, seeds
from hypothesis import given
from hypothesis import strategies as st
from small_models import HistoryCritic, LlamaCritic, history_policy, tiny_gpt2, tiny_llama, tiny_softcapped
from test_decoding import SETTINGS, a_model
from torch import tensor
from update_world import history

from ppo_core import (
    InPrecision,
    Ragged,
    RolloutBatch,
    ShapeError,
    entropy,
    forward_groups,
    gather_logprobs,
    response_and_final_values,
    response_logprobs,
    response_values,
    token_logits,
    token_logprobs,
)
from ppo_core.forward import can_pack
from ppo_core.heads import HeadCritic, linear_head

# Of those that take no positions, that number them otherwise, or whose state goes on from one row to the next.
MIX_ROWS = {
    "opt", "bloom", "falcon", "mpt", "gpt_oss", "mamba", "mamba2", "jamba", "bamba", "lfm2", "falcon_h1", "minimax",
    "recurrent_gemma", "rwkv",
}  # fmt: skip
THREE_ROWS = RolloutBatch(
    prompts=Ragged.from_rows([[1, 2, 3, 4, 5], [6], [7, 8]], torch.int64),
    responses=Ragged.from_rows([[9], [10, 11, 12, 13], [14, 15]], torch.int64),
    stopped=tensor([True, True, False]),
)


@few
@given(seeds)
def test_every_token_is_predicted_by_all_real_tokens_before_it(seed):
    batch = random_batch(seed)
    policy, critic = history_policy(seed, vocabulary=51), HistoryCritic(97)
    with torch.no_grad():
        critic.policy.table.copy_(policy.table[:, :1])
    padded = batch.padded()
    logprobs = response_logprobs(policy, padded, temperature=0.7)
    flat_logits = iter(token_logits(policy, padded, temperature=0.7).tolist())
    flat_logprobs, entropies = token_logprobs(policy, padded, temperature=0.7, with_entropy=True)
    assert torch.equal(flat_logprobs, token_logprobs(policy, padded, temperature=0.7))
    each = iter(zip(flat_logprobs.tolist(), entropies.tolist(), strict=True))
    values = response_values(critic, padded)
    same_values, final_values = response_and_final_values(critic, padded)
    assert torch.equal(values, same_values)
    for i in range(len(batch)):
        prompt, response = batch.prompts.row(i).tolist(), batch.responses.row(i).tolist()
        for t, token in enumerate(response):
            z = policy.table[history(prompt + response[:t])].tolist()
            assert values[i, t].item() == z[0]
            assert logprobs[i, t].item() == pytest.approx(reference.logprob(z, token, 0.7), abs=1e-10)
            assert next(flat_logits) == pytest.approx([x / 0.7 for x in z])
            own = reference.logprob(z, token, 0.7), reference.entropy([x / 0.7 for x in z])
            assert next(each) == pytest.approx(own, abs=1e-10)
        assert final_values[i].item() == policy.table[history(prompt + response), 0].item()
    for x in (logprobs, values):
        assert (x[~padded.response_mask] == 0).all()


class Spoiler(torch.nn.Module):
    """Adds NaN to whatever a model says at padding."""

    def __init__(self, model, padded):
        super().__init__()
        self.model = model
        width = padded.input_ids.shape[1]
        self.is_padding = torch.arange(width) > padded.last[:, None] % width

    def forward(self, **inputs):
        result = self.model(**inputs)
        x = result if isinstance(result, torch.Tensor) else result.logits
        junk = torch.where(self.is_padding, torch.nan, 0.0)
        if isinstance(result, torch.Tensor):
            return x + junk
        result.logits = x + junk[..., None]
        return result


def test_nan_at_padding_reaches_neither_value_nor_gradient():
    padded = random_batch(1).padded()
    assert not padded.response_mask.all()
    policy, critic = history_policy(1, vocabulary=51), HistoryCritic(97)

    def run(policy_like, critic_like):
        policy.zero_grad()
        critic.zero_grad()
        logprobs = response_logprobs(policy_like, padded, temperature=1.0)
        values, final_values = response_and_final_values(critic_like, padded)
        (logprobs.square().sum() + (values + 1).square().sum() + (final_values + 2).square().sum()).backward()
        results = [logprobs, values, final_values, policy.table.grad, critic.policy.table.grad]
        return [x.detach().clone() for x in results]

    clean, dirty = run(policy, critic), run(Spoiler(policy, padded), Spoiler(critic, padded))
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_softcapped])
def test_padding_does_not_change_what_a_transformer_says(make):
    model, batch = make(), THREE_ROWS
    with torch.no_grad():
        together = response_logprobs(model, batch.padded(), temperature=1.3)
        for i in range(3):
            logprobs = response_logprobs(model, batch.padded([tensor([i])]), temperature=1.3)
            torch.testing.assert_close(logprobs[0], together[i, : logprobs.shape[1]], atol=1e-5, rtol=1e-5)
            # The definition, through the plainest call there is.
            prompt, response = batch.prompts.row(i).tolist(), batch.responses.row(i).tolist()
            z = model(input_ids=tensor([prompt + response])).logits[0]
            for t, token in enumerate(response):
                before = z[len(prompt) + t - 1].tolist()
                assert logprobs[0, t].item() == pytest.approx(reference.logprob(before, token, 1.3), abs=1e-4)


def test_padding_does_not_change_what_a_transformer_critic_says():
    critic, batch = LlamaCritic(), THREE_ROWS
    with torch.no_grad():
        values, final_values = response_and_final_values(critic, batch.padded())
        for i in range(3):
            # The definition: the row by itself, nothing padded.
            alone = [*batch.prompts.row(i).tolist(), *batch.responses.row(i).tolist()]
            plain = critic(input_ids=tensor([alone]))[0].tolist()
            num_tokens = len(batch.responses.row(i))
            assert values[i, :num_tokens].tolist() == pytest.approx(plain[-num_tokens - 1 : -1], abs=1e-5)
            assert (values[i, num_tokens:] == 0).all()
            assert final_values[i].item() == pytest.approx(plain[-1], abs=1e-5)


@pytest.mark.parametrize("make", [tiny_softcapped, *(partial(a_model, family) for family in SETTINGS)])
def test_rows_on_one_line_are_told_apart_or_kept_apart(make):
    model = make()
    (lines,) = forward_groups([model], THREE_ROWS.lengths, 1000)
    assert can_pack(model) == (model.config.model_type not in MIX_ROWS)
    assert [len(line) for line in lines] == ([3] if can_pack(model) else [1, 1, 1])
    order = torch.cat(lines)
    with torch.no_grad():
        together = response_logprobs(model, THREE_ROWS.padded(lines), temperature=1.3)
        for i, own in zip(order.tolist(), together, strict=True):
            alone = response_logprobs(model, THREE_ROWS.padded([tensor([i])]), temperature=1.3)[0]
            torch.testing.assert_close(own[: len(alone)], alone, atol=1e-5, rtol=1e-5)
            assert (own[len(alone) :] == 0).all()


def test_a_critic_tells_rows_on_one_line_apart():
    critic = LlamaCritic()
    assert can_pack(critic)
    with torch.no_grad():
        apart = response_and_final_values(critic, THREE_ROWS.padded())
        together = response_and_final_values(critic, THREE_ROWS.padded([tensor([0, 1, 2])]))
    for got, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mixtral", "bloom", "falcon_h1"])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_whether_rows_are_told_apart_depends_on_no_weight_and_no_head(family, scale):
    def changed():
        model = a_model(family)
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                parameter.mul_(1 + scale * Draws(number).normal(*parameter.shape).float())
        return model

    new_head = torch.nn.Linear(changed().config.hidden_size, 1, bias=False)
    torch.nn.init.zeros_(new_head.weight)
    models = [
        changed(),
        InPrecision(changed(), torch.bfloat16),
        changed().to(torch.bfloat16),
        HeadCritic(changed().base_model, new_head),
        InPrecision(HeadCritic(changed().base_model, new_head), torch.bfloat16),
    ]
    assert [can_pack(model) for model in models] == [family not in MIX_ROWS] * 5


@law
@given(st.lists(st.integers(1, 90), min_size=1, max_size=30), st.integers(1, 300), st.booleans())
def test_a_pass_stays_within_its_budget_and_every_row_is_in_one(lengths, budget, packs):
    model = LlamaCritic() if packs else NoPositions()
    groups = forward_groups([model], tensor(lengths), budget)
    assert sorted(row for lines in groups for line in lines for row in line.tolist()) == list(range(len(lengths)))
    for lines in groups:
        width = max(sum(lengths[row] for row in line.tolist()) for line in lines)
        assert len(lines) * width <= max(budget, max(lengths))
        assert packs or all(len(line) == 1 for line in lines)


def partitions(rows):
    """All ways to put rows on lines."""
    if not rows:
        yield []
        return
    for rest in partitions(rows[1:]):
        yield [[rows[0]], *rest]
        for i, line in enumerate(rest):
            yield [*rest[:i], [rows[0], *line], *rest[i + 1 :]]


@law
@given(st.lists(st.integers(10, 200), min_size=1, max_size=6))
def test_lines_cost_next_to_no_more_than_the_best_there_are(lengths):
    def price(lines):
        # Every position is one token's work, and one pair with each position of its line in attention.
        width = max(map(sum, lines))
        return len(lines) * width * (1 + width / 1500)

    (chosen,) = forward_groups([LlamaCritic()], tensor(lengths), 10_000)
    chosen = [[lengths[row] for row in line.tolist()] for line in chosen]
    assert price(chosen) <= 1.1 * min(map(price, partitions(lengths)))


class NoPositions(torch.nn.Module):
    """A critic that knows no positions."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, *, input_ids):
        return self.weight * input_ids


@pytest.mark.parametrize("family", ["llama", "gemma2", "recurrent_gemma", "granite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whether_logits_are_a_linear_function_of_hidden_states_depends_on_no_weight(family, dtype):
    for factor in (1.0, 0.02):
        model = a_model(family)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(factor)
        assert (linear_head(InPrecision(model, dtype)) is not None) == (family == "llama")


@pytest.mark.parametrize(("make", "parts"), [(tiny_llama, True), (tiny_gpt2, True), (tiny_softcapped, False)])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_from_hidden_states_or_from_logits_a_model_says_the_same_with_the_same_gradient(make, parts, dtype):
    model, padded = make(), THREE_ROWS.padded()
    wrapped = model if dtype is None else InPrecision(model, dtype)
    assert (linear_head(wrapped) is not None) == parts
    # One whose logits are its head's times two has no such parts.
    assert linear_head(Doubled(model)) is None

    def run(logprobs, entropies):
        model.zero_grad()
        (logprobs * torch.arange(7)).sum().add(entropies.square().sum()).backward()
        return [logprobs.detach(), entropies.detach(), *(p.grad.clone() for p in model.parameters())]

    logits = token_logits(wrapped, padded, temperature=0.7)
    plain = run(gather_logprobs(logits, padded.response_ids), entropy(logits))
    ours = run(*token_logprobs(wrapped, padded, temperature=0.7, with_entropy=True))
    tolerance = 1e-5 if dtype != torch.bfloat16 else 0.1
    for got, expected in zip(ours, plain, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


class Doubled(torch.nn.Module):
    """A model that does more to its logits than its head."""

    def __init__(self, model):
        super().__init__()
        self.base_model, self.model = model.base_model, model
        self.get_output_embeddings = model.get_output_embeddings

    def forward(self, **inputs):
        result = self.model(**inputs)
        result.logits = 2 * result.logits
        return result


def test_each_value_takes_its_gradient_from_its_own_position():
    critic = HistoryCritic(97)
    response_values(critic, THREE_ROWS.padded()).sum().backward()
    rows = [([1, 2, 3, 4, 5], [9]), ([6], [10, 11, 12, 13]), ([7, 8], [14, 15])]
    before_tokens = [history(prompt + response[:t]) for prompt, response in rows for t in range(len(response))]
    assert critic.policy.table.grad.nonzero()[:, 0].tolist() == sorted(before_tokens)
    critic.zero_grad()
    _, final_values = response_and_final_values(critic, THREE_ROWS.padded())
    final_values.sum().backward()
    ends = [history(prompt + response) for prompt, response in rows]
    assert critic.policy.table.grad.nonzero()[:, 0].tolist() == sorted(ends)


def test_models_in_half_precision_give_single_precision_numbers():
    padded = random_batch(1).padded()
    policy, critic = history_policy(1, vocabulary=51).bfloat16(), HistoryCritic(97, torch.bfloat16)
    assert token_logits(policy, padded, temperature=0.7).dtype == torch.float32
    assert response_logprobs(policy, padded, temperature=1.0).dtype == torch.float32
    assert [x.dtype for x in response_and_final_values(critic, padded)] == [torch.float32] * 2


def test_a_critic_of_another_shape_is_refused():
    def critic(input_ids, **_):
        return torch.zeros(len(input_ids), 1)

    with pytest.raises(ShapeError, match="it must return one value per position"):
        response_values(critic, random_batch(0).padded())
