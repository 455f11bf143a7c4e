"""A policy, a critic and rollouts small enough to work out by hand what an update does to them."""

import torch
from cases import Draws
from small_models import HistoryCritic, history_policy

from ppo_core import (
    ALONE,
    Optimizers,
    PPOConfig,
    Ragged,
    SamplingConfig,
    derive_seed,
    ppo_update,
    response_logprobs,
    sample,
)

PROMPTS = [[1], [2, 3, 4], [5, 6], [7, 1, 2, 3, 4, 5], [2], [3, 3, 3]]
ONE_STEP = {"epochs": 1, "num_minibatches": 1}


class CountingSGD(torch.optim.SGD):
    """Plain gradient descent: unlike Adam it does not blow a rounding up to a full step."""

    num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        return super().step(closure)


class World:
    """A policy, a critic, a reference, and rollouts of that policy with made-up advantages, values and returns."""

    def __init__(self, seed=0, *, policy_lr=0.5, critic_lr=0.5, temperature=1.0):
        self.policy, self.critic, self.reference = history_policy(seed), HistoryCritic(97), history_policy(seed + 1)
        self.temperature = temperature
        self.optimizers = Optimizers(
            policy=CountingSGD(self.policy.parameters(), policy_lr),
            critic=CountingSGD(self.critic.parameters(), critic_lr),
        )
        batch = sample(
            self.policy,
            Ragged.from_rows(PROMPTS, torch.int64),
            sampling=SamplingConfig(max_new_tokens=5, stop_token_ids=(0, 1), temperature=temperature),
            seeds=[derive_seed(seed, i) for i in range(len(PROMPTS))],
        )
        draws, n = Draws(seed), len(batch.responses.values)
        padded = batch.padded()
        with torch.no_grad():
            logprobs, ref_logprobs = (
                response_logprobs(model, padded, temperature=temperature)[padded.response_mask]
                for model in (self.policy, self.reference)
            )
        self.batch = batch.with_columns(
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=torch.zeros(n, dtype=torch.float64),
            advantages=draws.normal(n),
            returns=draws.normal(n),
        )

    def off_policy(self):
        """Rollouts as if another policy had sampled them: ratios from about 1/3 to 3."""
        logprobs = self.batch.token_columns["logprobs"]
        return self.batch.with_columns(logprobs=logprobs + 0.4 * Draws(1).normal(len(logprobs)))

    def update(
        self,
        *,
        seed=0,
        batch=None,
        temperature=None,
        policy=True,
        critic=True,
        micro_batch_tokens=8192,
        sharing=ALONE,
        before_step=None,
        on_tokens=None,
        on_trained=None,
        **settings,
    ):
        return ppo_update(
            self.policy if policy else None,
            self.critic if critic else None,
            self.optimizers,
            self.batch if batch is None else batch,
            PPOConfig(**settings),
            seed=seed,
            temperature=self.temperature if temperature is None else temperature,
            reference=self.reference if settings.get("kl_loss_estimator") == "exact" else None,
            micro_batch_tokens=micro_batch_tokens,
            sharing=sharing,
            before_step=before_step,
            on_tokens=on_tokens,
            on_trained=on_trained,
        )

    @property
    def weights(self):
        return [self.policy.table.detach().clone(), self.critic.policy.table.detach().clone()]


def assert_same_weights(these, those, tolerance=1e-12):
    for a, b in zip(these, those, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def history(tokens, size=97):
    """The row of a table of history_policy that holds the logits after these tokens."""
    number = 0
    for token in tokens:
        number = (number * 31 + 7 * token + 1) % size
    return number
