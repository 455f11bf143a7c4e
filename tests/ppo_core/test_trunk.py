"""A critic on the policy's body: one loss, whose gradient is the sum of both."""

import copy

import pytest
import torch
from cases import Draws
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ppo_core import (
    ConfigError,
    HeadCritic,
    InPrecision,
    Optimizers,
    PPOConfig,
    Ragged,
    RolloutBatch,
    TrunkCritic,
    ppo_update,
    response_logprobs,
    response_values,
)

ROWS = [([3, 1, 4], [1, 5]), ([9, 2], [6, 5, 3, 5]), ([8], [9]), ([7, 9, 3, 2], [3, 8, 4])]
VF_COEF = 0.3


def a_policy(**changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 12, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 32, **changes,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def a_head():
    head = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(Draws(1).normal(8).float())
    return head


def a_batch(policy):
    batch = RolloutBatch(
        prompts=Ragged.from_rows([prompt for prompt, _ in ROWS], torch.int64),
        responses=Ragged.from_rows([response for _, response in ROWS], torch.int64),
        stopped=torch.ones(len(ROWS), dtype=torch.bool),
    )
    padded, draws, n = batch.padded(), Draws(2), len(batch.responses.values)
    with torch.no_grad():
        logprobs = response_logprobs(policy, padded, temperature=1.0)[padded.response_mask]
    columns = {name: draws.normal(n).float() for name in ("advantages", "values", "returns")}
    return batch.with_columns(logprobs=logprobs, **columns)


def loss_by_definition(policy, head, batch):
    """Row by row, token by token: the surrogate at ratio 1 and the value loss without a clip, over all tokens."""
    total, position = torch.zeros(()), 0
    for prompt, response in ROWS:
        said = policy(input_ids=torch.tensor([prompt + response]), output_hidden_states=True, use_cache=False)
        for t, token in enumerate(response):
            at = len(prompt) + t - 1
            new_logprob = said.logits[0, at].log_softmax(-1)[token]
            value = said.hidden_states[-1][0, at] @ head.weight[0]
            columns = {name: column[position] for name, column in batch.token_columns.items()}
            ratio = (new_logprob - columns["logprobs"]).exp()
            total = total - ratio * columns["advantages"] + VF_COEF * 0.5 * (value - columns["returns"]) ** 2
            position += 1
    return total / position


def step(policy, head, batch, *, critic=None, micro_batch_tokens=1000, **changes):
    """One step of plain gradient descent at rate 1."""
    optimizer = torch.optim.SGD([*policy.parameters(), *head.parameters()], 1.0)
    settings = {"epochs": 1, "num_minibatches": 1, "max_grad_norm": 1e9, "cliprange_value": None, "vf_coef": VF_COEF}
    return ppo_update(
        InPrecision(policy, torch.float32),
        critic or InPrecision(TrunkCritic(policy, head), torch.float32),
        Optimizers(policy=optimizer),
        batch,
        PPOConfig(**{**settings, **changes}),
        seed=0,
        micro_batch_tokens=micro_batch_tokens,
    )


@pytest.mark.parametrize("micro_batch_tokens", [1000, 7])
def test_the_gradient_is_that_of_the_weighted_sum_of_both_losses(micro_batch_tokens):
    policy, head = a_policy(), a_head()
    batch = a_batch(policy)
    plain_policy, plain_head = copy.deepcopy(policy), copy.deepcopy(head)
    loss_by_definition(plain_policy, plain_head, batch).backward()
    stats = step(policy, head, batch, micro_batch_tokens=micro_batch_tokens)
    for ours, theirs in [
        *zip(policy.parameters(), plain_policy.parameters(), strict=True),
        (head.weight, plain_head.weight),
    ]:
        torch.testing.assert_close(ours.detach(), theirs.detach() - theirs.grad, atol=1e-6, rtol=1e-5)
    assert stats.num_optimizer_steps == 1
    assert stats.critic_grad_norm is None


def test_the_values_that_it_trains_are_those_that_it_says():
    policy, head = a_policy(), a_head()
    batch = a_batch(policy)
    padded = batch.padded()
    values = response_values(TrunkCritic(policy, head), padded)[padded.response_mask].detach()
    stats = step(policy, head, batch)
    errors = (values - batch.token_columns["returns"]).square()
    assert stats.value_loss == pytest.approx(0.5 * float(errors.mean()), rel=1e-5)
    assert stats.policy_loss == pytest.approx(-float(batch.token_columns["advantages"].mean()), rel=1e-4)


def test_its_parameters_are_those_of_the_head_alone():
    policy, head = a_policy(), a_head()
    assert [id(x) for x in TrunkCritic(policy, head).parameters()] == [id(head.weight)]
    assert [id(x) for x in HeadCritic(policy.base_model, head).parameters()] == [id(head.weight)]


def test_it_learns_with_the_policy_or_not_at_all():
    policy, head = a_policy(), a_head()
    batch = a_batch(policy)
    with pytest.raises(ConfigError, match="learns with the policy; give the policy too"):
        ppo_update(None, TrunkCritic(policy, head), Optimizers(policy=None), batch, PPOConfig(), seed=0)
    exact = {"kl_loss_coef": 0.1, "kl_loss_estimator": "exact"}
    with pytest.raises(ConfigError, match="kl_loss_estimator=exact needs all logits"):
        step(policy, head, batch, **exact)


def test_a_policy_that_does_more_to_its_logits_than_its_head_keeps_its_body_to_itself():
    class Capped(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            said = super().forward(*args, **kwargs)
            said.logits = said.logits.tanh()
            return said

    policy, head = Capped(a_policy().config).eval(), a_head()
    with pytest.raises(ConfigError, match="give the critic a body of its own"):
        step(policy, head, a_batch(policy))
