import pytest
import reference
import torch
from cases import few, random_batch, seeds
from hypothesis import given
from small_models import HistoryCritic, LlamaCritic, history_policy, tiny_gpt2, tiny_llama
from torch import tensor
from update_world import history

from ppo_core import (
    Ragged,
    RolloutBatch,
    ShapeError,
    response_and_final_values,
    response_logits,
    response_logprobs,
    response_values,
)
from ppo_core.forward import token_logits

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
    logits = response_logits(policy, padded)
    logprobs = response_logprobs(policy, padded, temperature=0.7)
    flat_logits = iter(token_logits(policy, padded, temperature=0.7).tolist())
    values = response_values(critic, padded)
    same_values, final_values = response_and_final_values(critic, padded)
    assert torch.equal(values, same_values)
    for i in range(len(batch)):
        prompt, response = batch.prompts.row(i).tolist(), batch.responses.row(i).tolist()
        for t, token in enumerate(response):
            z = policy.table[history(prompt + response[:t])].tolist()
            assert logits[i, t].tolist() == z
            assert values[i, t].item() == z[0]
            assert logprobs[i, t].item() == pytest.approx(reference.logprob(z, token, 0.7), abs=1e-10)
            assert next(flat_logits) == pytest.approx([x / 0.7 for x in z])
        assert final_values[i].item() == policy.table[history(prompt + response), 0].item()
    for x in (logprobs, values):
        assert (x[~padded.response_mask] == 0).all()


class Spoiler(torch.nn.Module):
    """Adds NaN to whatever a model says at padding."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        result = self.model(**inputs)
        x = result if isinstance(result, torch.Tensor) else result.logits
        junk = torch.where(inputs["attention_mask"] == 1, 0.0, torch.nan)[:, -x.shape[1] :]
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

    clean, dirty = run(policy, critic), run(Spoiler(policy), Spoiler(critic))
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_padding_does_not_change_what_a_transformer_says(make):
    model, batch = make(), THREE_ROWS
    with torch.no_grad():
        together = response_logprobs(model, batch.padded(), temperature=1.3)
        for i in range(3):
            alone = batch.padded(tensor([i]))
            logprobs = response_logprobs(model, alone, temperature=1.3)
            torch.testing.assert_close(logprobs[0], together[i, : logprobs.shape[1]], atol=1e-5, rtol=1e-5)
            # The definition, through the plainest call there is.
            z = model(input_ids=alone.input_ids).logits[0]
            for t, token in enumerate(batch.responses.row(i).tolist()):
                before = z[alone.prompt_width + t - 1].tolist()
                assert logprobs[0, t].item() == pytest.approx(reference.logprob(before, token, 1.3), abs=1e-4)


def test_padding_does_not_change_what_a_transformer_critic_says():
    critic, batch = LlamaCritic(), THREE_ROWS
    with torch.no_grad():
        values, final_values = response_and_final_values(critic, batch.padded())
        for i in range(3):
            alone = [*batch.prompts.row(i).tolist(), *batch.responses.row(i).tolist()]
            # The definition: the row by itself, nothing padded.
            plain = critic(
                input_ids=tensor([alone]),
                attention_mask=torch.ones(1, len(alone), dtype=torch.int64),
                position_ids=torch.arange(len(alone))[None],
            )[0].tolist()
            num_tokens = len(batch.responses.row(i))
            assert values[i, :num_tokens].tolist() == pytest.approx(plain[-num_tokens - 1 : -1], abs=1e-5)
            assert (values[i, num_tokens:] == 0).all()
            assert final_values[i].item() == pytest.approx(plain[-1], abs=1e-5)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_it_does_not_matter_on_which_side_a_transformer_sees_the_padding(make):
    model, batch = make(), THREE_ROWS
    padded = batch.padded()
    rows = [[*batch.prompts.row(i).tolist(), *batch.responses.row(i).tolist()] for i in range(3)]
    width = max(map(len, rows))
    with torch.no_grad():
        ours = response_logits(model, padded)
        padded_on_the_right = model(
            input_ids=tensor([row + [0] * (width - len(row)) for row in rows]),
            attention_mask=tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            position_ids=tensor([[*range(len(row)), *[0] * (width - len(row))] for row in rows]),
        ).logits
    for i, row in enumerate(rows):
        num_tokens = len(batch.responses.row(i))
        expected = padded_on_the_right[i, len(row) - num_tokens - 1 : len(row) - 1]
        torch.testing.assert_close(ours[i, :num_tokens], expected, atol=1e-5, rtol=1e-5)


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
    assert response_logits(policy, padded).dtype == torch.bfloat16
    assert token_logits(policy, padded, temperature=0.7).dtype == torch.float32
    assert response_logprobs(policy, padded, temperature=1.0).dtype == torch.float32
    assert [x.dtype for x in response_and_final_values(critic, padded)] == [torch.float32] * 2


def test_a_critic_of_another_shape_is_refused():
    def critic(input_ids, **_):
        return torch.zeros(len(input_ids), 1)

    with pytest.raises(ShapeError, match="it must return one value per position"):
        response_values(critic, random_batch(0).padded())
