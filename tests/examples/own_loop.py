"""PPO in a loop of one's own, by ``ppo_core`` alone: sample, score by a function, advantages, update.

The model is small and random, so that this takes seconds. Any causal language model of Hugging Face has the same place.

    python own_loop.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from ppo_core import (
    Optimizers,
    PPOConfig,
    Ragged,
    SamplingConfig,
    gae,
    kl_estimate,
    masked_whiten,
    ppo_update,
    response_logprobs,
    response_values,
    sample,
    token_rewards,
)

END, WANTED = 0, 7
KL_COEF = 0.02
SHAPE = LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


class Critic(torch.nn.Module):
    """One number for each position: a body of its own, and a head that begins with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = LlamaModel(SHAPE), torch.nn.Linear(SHAPE.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)

    def forward(self, input_ids, position_ids=None):
        hidden = self.body(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return self.head(hidden).squeeze(-1)


def score(response: torch.Tensor) -> float:
    """What is wanted of a response: as many of its tokens as possible are the wanted one."""
    return float((response == WANTED).float().mean())


# Several threads would only wait for each other over so small a model.
torch.set_num_threads(1)
torch.manual_seed(0)
policy, critic = LlamaForCausalLM(SHAPE).eval(), Critic().eval()
reference = LlamaForCausalLM(SHAPE).eval()
reference.load_state_dict(policy.state_dict())
optimizers = Optimizers(
    policy=torch.optim.AdamW(policy.parameters(), lr=5e-3), critic=torch.optim.AdamW(critic.parameters(), lr=5e-3)
)
prompts = Ragged.from_rows([[1, 2], [1, 3, 4]], dtype=torch.int64)

for iteration in range(10):
    batch = sample(
        policy,
        prompts,
        sampling=SamplingConfig(max_new_tokens=8, stop_token_ids=(END,)),
        seeds=range(32 * iteration, 32 * (iteration + 1)),
        samples_per_prompt=16,
    )
    padded = batch.padded()
    mask, logprobs = padded.response_mask, padded.token_columns["logprobs"]
    with torch.no_grad():
        kl = kl_estimate(logprobs, response_logprobs(reference, padded, temperature=1.0), "k1")
        values = response_values(critic, padded)
    scores = torch.tensor([score(batch.responses.row(i)) for i in range(len(batch))])
    rewards = token_rewards(scores, kl, mask, kl_coef=KL_COEF)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    advantages = masked_whiten(advantages, mask)
    batch = batch.with_columns(values=values[mask], advantages=advantages[mask], returns=returns[mask])
    stats = ppo_update(policy, critic, optimizers, batch, PPOConfig(), seed=iteration)
    print(f"score {scores.mean():.2f}, KL {kl.where(mask, 0.0).sum(1).mean():.2f}, entropy {stats.entropy:.2f}")
