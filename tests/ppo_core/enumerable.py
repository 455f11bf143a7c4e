"""Problems whose responses can all be written down, the exact answers to them, and training on them as a run does it.

A response is a list of tokens that ends with token 0, the EOS, or at the maximal length. What has been answered so far
is a *node* of the tree of responses, numbered like a heap: nothing is 0, and token ``k`` leads from node ``n`` to
``n * V + 1 + k``.

``J(pi) = E_pi[score] - kl_coef * KL(pi || ref)`` is largest for ``pi* = ref * exp(score / kl_coef) / Z``, where it is
``J* = kl_coef * log Z``: Ziegler et al. 2019, arXiv:1909.08593; Korbak et al. 2022, arXiv:2205.11275.
"""

from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Literal

import torch
from small_models import HistoryCache
from torch import Tensor, nn

from ppo_core import (
    GroupEstimator,
    Optimizers,
    PPOConfig,
    Ragged,
    RolloutBatch,
    SamplingConfig,
    derive_seed,
    gae,
    group_advantages,
    kl_estimate,
    ppo_update,
    response_logprobs,
    response_values,
    sample,
    token_rewards,
)

EOS = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """A reference policy, a score for each response, and the price of a nat. What is computed here is float64.

    Distributions over responses are given and returned as their log-probabilities, in the order of ``responses``.
    """

    ref_logits: Tensor
    """(nodes shorter than ``length``, V): of the next token after each."""

    node_scores: Tensor
    """(all nodes,): read only where the node is a complete response."""

    length: int
    kl_coef: float

    @property
    def vocabulary(self) -> int:
        return self.ref_logits.shape[1]

    @cached_property
    def responses(self) -> list[list[int]]:
        complete: list[list[int]] = []
        unfinished: list[list[int]] = [[]]
        for _ in range(self.length):
            longer = [[*so_far, token] for so_far in unfinished for token in range(self.vocabulary)]
            complete += [response for response in longer if response[-1] == EOS]
            unfinished = [response for response in longer if response[-1] != EOS]
        return complete + unfinished

    @cached_property
    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each response and position, (R, length) each: the node before it, the token, whether there is one."""
        mask = torch.tensor([[t < len(response) for t in range(self.length)] for response in self.responses])
        tokens = torch.tensor([response + [EOS] * (self.length - len(response)) for response in self.responses])
        before = torch.zeros_like(tokens)
        for t in range(1, self.length):
            before[:, t] = torch.where(mask[:, t], before[:, t - 1] * self.vocabulary + 1 + tokens[:, t - 1], 0)
        return before, tokens, mask

    @cached_property
    def scores(self) -> Tensor:
        _, tokens, mask = self.steps
        return self.scores_of(tokens, mask)

    def scores_of(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Of complete responses, (B, T)."""
        nodes = torch.zeros(len(tokens), dtype=torch.int64)
        for t in range(tokens.shape[1]):
            nodes = torch.where(mask[:, t], nodes * self.vocabulary + 1 + tokens[:, t], nodes)
        return self.node_scores[nodes]

    def logprobs(self, logits: Tensor) -> Tensor:
        """The distribution over responses of the policy with this table of logits."""
        before, tokens, mask = self.steps
        by_token = logits.detach().double().log_softmax(dim=1)[before, tokens]
        return torch.where(mask, by_token, 0.0).sum(dim=1)

    @cached_property
    def ref_logprobs(self) -> Tensor:
        return self.logprobs(self.ref_logits)

    def mean_score(self, logprobs: Tensor) -> float:
        return float((logprobs.exp() * self.scores).sum())

    def kl(self, logprobs: Tensor) -> float:
        """``KL(pi || ref)`` in nats per response."""
        return float((logprobs.exp() * (logprobs - self.ref_logprobs)).sum())

    def objective(self, logprobs: Tensor) -> float:
        """``J``."""
        return self.mean_score(logprobs) - self.kl_coef * self.kl(logprobs)

    @cached_property
    def optimum(self) -> Tensor:
        """``pi*``."""
        return (self.ref_logprobs + self.scores / self.kl_coef).log_softmax(dim=0)

    @cached_property
    def best_objective(self) -> float:
        """``J*``."""
        return self.kl_coef * float((self.ref_logprobs + self.scores / self.kl_coef).logsumexp(dim=0))

    def share(self, logprobs: Tensor) -> float:
        """How much of the way from ``J(ref)`` to ``J*`` a distribution has come."""
        start = self.objective(self.ref_logprobs)
        return (self.objective(logprobs) - start) / (self.best_objective - start)


def num_nodes(vocabulary: int, length: int) -> int:
    """Of at most ``length`` tokens."""
    return sum(vocabulary**t for t in range(length + 1))


def random_problem(seed: int, *, length: int | None = None) -> Problem:
    """4 to 8 tokens, 2 to 4 of them in a response, standard normal scores, and a price of a nat from 0.2 to 1.

    At these prices the optimum of the first ten lies 0.4 to 3.5 nats from the reference: neither beside it nor a single
    response, which would be a test of finding that one.
    """
    generator = torch.Generator().manual_seed(derive_seed("problem", seed))
    vocabulary = int(torch.randint(4, 9, (), generator=generator))
    drawn_length = int(torch.randint(2, 5, (), generator=generator))
    kl_coef = 0.2 ** float(torch.rand((), generator=generator))
    length = drawn_length if length is None else length
    return Problem(
        ref_logits=torch.randn(num_nodes(vocabulary, length - 1), vocabulary, dtype=torch.float64, generator=generator),
        node_scores=torch.randn(num_nodes(vocabulary, length), dtype=torch.float64, generator=generator),
        length=length,
        kl_coef=kl_coef,
    )


class NodeTable(nn.Module):
    """A row of numbers for each node. The prompt is one token, whichever."""

    def __init__(self, table: Tensor, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.vocabulary = vocabulary

    def look_up(self, input_ids: Tensor, position_ids: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The rows after each new token, (B, L, columns), and the node after the last of them."""
        visited = []
        for ids, positions in zip(input_ids.unbind(1), position_ids.unbind(1), strict=True):
            nodes = torch.where(positions == 0, 0, nodes * self.vocabulary + 1 + ids)
            visited.append(nodes)
        # Nothing follows a response's last token: there is no row for it, and nobody reads the one that is found.
        rows = torch.stack(visited, dim=1).clamp(max=len(self.table) - 1)
        return nn.functional.embedding(rows, self.table), nodes


class TablePolicy(NodeTable):
    """Any policy at all over the responses of a problem, called like a causal language model."""

    def forward(
        self,
        *,
        input_ids: Tensor,
        use_cache: bool,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        past_key_values: HistoryCache | None = None,
    ) -> SimpleNamespace:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        nodes = input_ids.new_zeros(len(input_ids)) if past_key_values is None else past_key_values.histories
        logits, nodes = self.look_up(input_ids, position_ids, nodes)
        cache = HistoryCache(nodes) if use_cache else None
        return SimpleNamespace(logits=logits[:, -logits_to_keep:], past_key_values=cache)


class TableCritic(NodeTable):
    """A value for each node."""

    def forward(self, *, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        values, _ = self.look_up(input_ids, position_ids, input_ids.new_zeros(len(input_ids)))
        return values[..., 0]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train."""

    advantages: Literal["gae"] | GroupEstimator
    config: PPOConfig
    kl_in_reward: bool = True
    lr: float = 0.1
    """Of Adam, for the policy and for the critic. Falls linearly to zero, or sampling noise would hold the policy at
    some distance from its optimum."""
    iterations: int = 100
    num_responses: int = 2048
    """Per iteration, all to the one prompt."""
    group_size: int = 16
    lam: float = 0.95


RECIPES = {
    "ppo": Recipe(advantages="gae", config=PPOConfig(epochs=2)),
    "rloo": Recipe(advantages="rloo", config=PPOConfig(loss="pg", epochs=1)),
    "grpo": Recipe(advantages="grpo", config=PPOConfig(epochs=2)),
}
"""All else is left at its default: the ratio clip at 0.2, four minibatches, no value clip."""


def train(problem: Problem, recipe: Recipe, *, seed: int) -> TablePolicy:
    """From the reference policy, by sampling, rewards, advantages and update, through the functions that a run calls."""
    policy = TablePolicy(problem.ref_logits.float(), problem.vocabulary)
    reference = TablePolicy(problem.ref_logits.float(), problem.vocabulary)
    critic = TableCritic(torch.zeros(len(problem.ref_logits), 1), problem.vocabulary)
    optimizers = Optimizers(
        policy=torch.optim.Adam(policy.parameters(), recipe.lr), critic=torch.optim.Adam(critic.parameters(), recipe.lr)
    )
    for iteration in range(recipe.iterations):
        for optimizer in (optimizers.policy, optimizers.critic):
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 - iteration / recipe.iterations)
        iteration_seed = derive_seed("learning", seed, iteration)
        batch = sampled(policy, problem, recipe.num_responses, seed=iteration_seed)
        batch = with_advantages(batch, problem, recipe, reference, critic)
        ppo_update(
            policy,
            critic if recipe.advantages == "gae" else None,
            optimizers,
            batch,
            recipe.config,
            seed=iteration_seed,
            reference=reference,
            micro_batch_tokens=2**20,
        )
    return policy


def sampled(policy: TablePolicy, problem: Problem, num_responses: int, *, seed: int) -> RolloutBatch:
    prompts = Ragged(torch.ones(num_responses, dtype=torch.int64), torch.arange(num_responses + 1))
    sampling = SamplingConfig(max_new_tokens=problem.length, stop_token_ids=(EOS,))
    return sample(policy, prompts, sampling=sampling, seeds=range(seed, seed + num_responses))


@torch.no_grad()
def with_advantages(
    batch: RolloutBatch, problem: Problem, recipe: Recipe, reference: TablePolicy, critic: TableCritic
) -> RolloutBatch:
    padded = batch.padded()
    mask = padded.response_mask
    ref_logprobs = response_logprobs(reference, padded, temperature=1.0)
    batch = batch.with_columns(ref_logprobs=ref_logprobs[mask])
    kl = kl_estimate(padded.token_columns["logprobs"], ref_logprobs, "k1")
    scores = problem.scores_of(batch.responses.padded(fill=0), mask)
    rewards = token_rewards(scores, kl, mask, kl_coef=problem.kl_coef if recipe.kl_in_reward else 0.0)
    if recipe.advantages == "gae":
        values = response_values(critic, padded)
        advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=recipe.lam)
        return batch.with_columns(values=values[mask], advantages=advantages[mask], returns=returns[mask])
    groups = torch.arange(len(batch)) // recipe.group_size
    of_response = group_advantages(rewards.sum(dim=1), groups, estimator=recipe.advantages)
    return batch.with_columns(advantages=of_response[:, None].expand(mask.shape)[mask])
