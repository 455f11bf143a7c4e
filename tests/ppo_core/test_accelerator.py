"""Sampler and update where tensors are not on the processor: nothing is on the wrong side, and little is waited for."""

import copy
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from small_models import LlamaCritic, tiny, tiny_gpt2, tiny_llama

from ppo_core import Optimizers, PPOConfig, Ragged, SamplingConfig, ppo_update, sample

sys.path.append(str(Path(__file__).resolve().parents[1]))
from accelerator_stand_in import DEVICE, stand_in

PROMPTS = [[3, 4, 5], [6, 7], [3, 2, 5, 6]]
MODELS = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    **{name: lambda name=name: tiny(name) for name in ("qwen3", "mistral", "gpt_neox", "gemma3_text")},
}


def sampled(model, prompts=PROMPTS, max_new_tokens=24):
    return sample(
        model,
        Ragged.from_rows(prompts, torch.int64),
        sampling=SamplingConfig(max_new_tokens=max_new_tokens, stop_token_ids=(1, 2)),
        seeds=list(range(2 * len(prompts))),
        samples_per_prompt=2,
    )


def on_device(module):
    return copy.deepcopy(module).to(DEVICE)


def test_the_stand_in_tells_its_tensors_from_the_processors():
    with stand_in() as questions:
        x = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="here and elsewhere"):
            x + torch.ones(3)
        assert questions == []
        assert x.sum().item() == 3
        assert x[x > 0].tolist() == [1, 1, 1]
        assert len(questions) == 3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompts", [PROMPTS, [[3, 4], [5, 6]]], ids=["padded", "unpadded"])
def test_rows_are_those_of_the_processor_and_no_token_is_waited_for(name, prompts):
    model = MODELS[name]()
    there = sampled(model, prompts)
    with stand_in() as questions:
        far = on_device(model)
        here = sampled(far, prompts)
        asked = []
        for length in (3, 15):
            questions.clear()
            sampled(far, prompts, max_new_tokens=length)
            asked.append(Counter(questions))
    assert torch.equal(here.responses.values, there.responses.values)
    torch.testing.assert_close(here.token_columns["logprobs"], there.token_columns["logprobs"])
    assert asked[0] == asked[1]


def test_an_update_is_that_of_the_processor_and_asks_for_little():
    policy, critic = tiny_llama(), LlamaCritic()
    batch = sampled(policy)
    n = len(batch.responses.values)
    draws = torch.Generator().manual_seed(0)
    batch = batch.with_columns(
        ref_logprobs=batch.token_columns["logprobs"] - 0.1,
        values=torch.zeros(n),
        advantages=torch.randn(n, generator=draws),
        returns=torch.randn(n, generator=draws),
    )
    config = PPOConfig(epochs=2, num_minibatches=2, kl_loss_coef=0.1, kl_loss_estimator="k3", entropy_coef=0.01)

    def update(policy, critic):
        optimizers = (torch.optim.AdamW(x.parameters(), lr=1e-3, fused=True) for x in (policy, critic))
        ppo_update(policy, critic, Optimizers(*optimizers), batch, config, seed=0, micro_batch_tokens=64)
        return [parameter.detach().cpu() for x in (policy, critic) for parameter in x.parameters()]

    with stand_in() as questions:
        far = on_device(policy), on_device(critic)
        found = update(*far)
        questions.clear()
        update(*far)
        asked = Counter(questions)
    torch.testing.assert_close(found, update(policy, critic), atol=1e-5, rtol=1e-4)
    steps, models = config.epochs * config.num_minibatches, 2
    parameters = sum(1 for model in far for _ in model.parameters())
    assert sum(asked.values()) <= parameters + 20 * steps * models
