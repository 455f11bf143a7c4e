"""Problems whose responses can all be written down, exact answers to them, and training on them as a run does it.

A response is a list of tokens that ends with token 0, the EOS, or at the maximal length. A prefix is a *node* of the
tree of responses, numbered like a heap: the empty one is 0 and token ``k`` leads from node ``n`` to ``n * V + 1 + k``.

Maximising ``J(pi) = E_pi[score] - kl_coef * KL(pi || ref)`` has the solution ``pi* = ref * exp(score / kl_coef) / Z``
with ``J* = kl_coef * log Z``: Ziegler et al. 2019, arXiv:1909.08593; Korbak et al. 2022, arXiv:2205.11275.
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
    """A reference policy, a score for each response, and the price of a nat. Everything exact is float64."""

    ref_logits: Tensor
    """(nodes shorter than ``length``, V)."""

    scores: Tensor
    """(all nodes,): read where the node is a complete response."""

    length: int
    kl_coef: float

    @property
    def vocabulary(self) -> int:
        return self.ref_logits.shape[1]

    @cached_property
    def responses(self) -> list[list[int]]:
        """All of them, the shorter ones first."""
        complete: list[list[int]] = []
        open_prefixes: list[list[int]] = [[]]
        for t in range(self.length):
            longer = [[*prefix, token] for prefix in open_prefixes for token in range(self.vocabulary)]
            is_last = t == self.length - 1
            complete += [response for response in longer if response[-1] == EOS or is_last]
            open_prefixes = [response for response in longer if response[-1] != EOS]
        return complete

    @cached_property
    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each response and token: the node before it, the token, and whether there is one; (R, length) each."""
        tokens = torch.zeros(len(self.responses), self.length, dtype=torch.int64)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, response in enumerate(self.responses):
            tokens[row, : len(response)] = torch.tensor(response)
            mask[row, : len(response)] = True
        before = torch.zeros_like(tokens)
        for t in range(1, self.length):
            before[:, t] = before[:, t - 1] * self.vocabulary + 1 + tokens[:, t - 1]
        return torch.where(mask, before, 0), tokens, mask

    @cached_property
    def response_scores(self) -> Tensor:
        return self.scores[self.nodes_of(*self.steps[1:])]

    def nodes_of(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The node of each complete response of (B, T) tokens."""
        nodes = torch.zeros(len(tokens), dtype=torch.int64)
        for t in range(tokens.shape[1]):
            nodes = torch.where(mask[:, t], nodes * self.vocabulary + 1 + tokens[:, t], nodes)
        return nodes

    def logprobs(self, logits: Tensor) -> Tensor:
        """Of each response, under the policy with this table."""
        before, tokens, mask = self.steps
        by_token = logits.double().log_softmax(dim=1)[before, tokens]
        return torch.where(mask, by_token, 0.0).sum(dim=1)

    @cached_property
    def ref_logprobs(self) -> Tensor:
        return self.logprobs(self.ref_logits)

    def kl(self, logprobs: Tensor) -> float:
        """``KL(pi || ref)`` in nats per response."""
        return float((logprobs.exp() * (logprobs - self.ref_logprobs)).sum())

    def mean_score(self, logprobs: Tensor) -> float:
        return float((logprobs.exp() * self.response_scores).sum())

    def objective(self, logprobs: Tensor) -> float:
        return self.mean_score(logprobs) - self.kl_coef * self.kl(logprobs)

    def optimum(self, kl_coef: float | None = None) -> Tensor:
        """Log-probabilities of the responses under ``pi*``."""
        tilted = self.ref_logprobs + self.response_scores / (self.kl_coef if kl_coef is None else kl_coef)
        return tilted - tilted.logsumexp(dim=0)

    @cached_property
    def best_objective(self) -> float:
        """``J*``."""
        return self.kl_coef * float((self.ref_logprobs + self.response_scores / self.kl_coef).logsumexp(dim=0))

    def share(self, logprobs: Tensor) -> float:
        """How much of the way from ``J(ref)`` to ``J*`` a policy has come."""
        start = self.objective(self.ref_logprobs)
        return (self.objective(logprobs) - start) / (self.best_objective - start)


def num_nodes(vocabulary: int, length: int) -> int:
    """Of all prefixes of at most ``length`` tokens."""
    return sum(vocabulary**t for t in range(length + 1))


def random_problem(seed: int, *, length: int | None = None, kl_coef: float | None = None) -> Problem:
    """Vocabulary 4 to 8, length 2 to 4, and a price of 0.3 to 1 at which KL(pi* || ref) is about a nat."""
    generator = torch.Generator().manual_seed(derive_seed("problem", seed))
    vocabulary, drawn_length = (
        int(torch.randint(low, high + 1, (), generator=generator)) for low, high in ((4, 8), (2, 4))
    )
    drawn_kl_coef = 0.3 + 0.7 * float(torch.rand((), generator=generator))
    length = drawn_length if length is None else length
    return Problem(
        ref_logits=torch.randn(num_nodes(vocabulary, length - 1), vocabulary, dtype=torch.float64, generator=generator),
        scores=torch.randn(num_nodes(vocabulary, length), dtype=torch.float64, generator=generator),
        length=length,
        kl_coef=drawn_kl_coef if kl_coef is None else kl_coef,
    )


class NodeTable(nn.Module):
    """A row of numbers for each node; the prompt is one token, whichever."""

    def __init__(self, table: Tensor, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.vocabulary = vocabulary

    def look_up(self, input_ids: Tensor, position_ids: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows after each of the new tokens, (B, L, columns), and the node after the last of them."""
        columns = []
        for ids, positions in zip(input_ids.unbind(1), position_ids.unbind(1), strict=True):
            nodes = torch.where(positions == 0, 0, nodes * self.vocabulary + 1 + ids)
            columns.append(nodes)
        # After the last token, and after an EOS, there is nothing to look up, and nobody reads what is found.
        rows = torch.stack(columns, dim=1).clamp(max=len(self.table) - 1)
        return nn.functional.embedding(rows, self.table), nodes


class TablePolicy(NodeTable):
    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        use_cache: bool,
        logits_to_keep: int,
        past_key_values: HistoryCache | None = None,
    ) -> SimpleNamespace:
        nodes = input_ids.new_zeros(len(input_ids)) if past_key_values is None else past_key_values.histories
        logits, nodes = self.look_up(input_ids, position_ids, nodes)
        return SimpleNamespace(
            logits=logits[:, -logits_to_keep:], past_key_values=HistoryCache(nodes) if use_cache else None
        )


class TableCritic(NodeTable):
    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        values, _ = self.look_up(input_ids, position_ids, input_ids.new_zeros(len(input_ids)))
        return values[..., 0]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the same for all problems."""

    advantages: Literal["gae"] | GroupEstimator
    config: PPOConfig
    policy_lr: float
    """Of Adam; falls linearly to zero."""
    critic_lr: float = 0.1
    kl_in_reward: bool = True
    iterations: int = 150
    num_responses: int = 2048
    group_size: int = 16
    lam: float = 0.95


def train(problem: Problem, recipe: Recipe, *, seed: int) -> TablePolicy:
    """Iterations of sampling, rewarding, advantages and update, through the same functions as a run."""
    policy = TablePolicy(problem.ref_logits.float(), problem.vocabulary)
    reference = TablePolicy(problem.ref_logits.float(), problem.vocabulary)
    critic = (
        TableCritic(torch.zeros(len(problem.ref_logits), 1), problem.vocabulary) if recipe.advantages == "gae" else None
    )
    optimizers = Optimizers(
        policy=torch.optim.Adam(policy.parameters(), recipe.policy_lr),
        critic=None if critic is None else torch.optim.Adam(critic.parameters(), recipe.critic_lr),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / recipe.iterations)
        for optimizer in (optimizers.policy, optimizers.critic)
        if optimizer is not None
    ]
    prompts = Ragged.from_rows([[1]] * recipe.num_responses, torch.int64)
    sampling = SamplingConfig(max_new_tokens=problem.length, stop_token_ids=(EOS,))
    for iteration in range(recipe.iterations):
        first = derive_seed("learning", seed, iteration)
        batch = sample(policy, prompts, sampling=sampling, seeds=range(first, first + recipe.num_responses))
        batch = with_advantages(batch, problem, recipe, reference, critic)
        ppo_update(
            policy,
            critic,
            optimizers,
            batch,
            recipe.config,
            seed=derive_seed(first),
            reference=reference,
            micro_batch_tokens=2**20,
        )
        for schedule in schedules:
            schedule.step()
    return policy


@torch.no_grad()
def with_advantages(
    batch: RolloutBatch, problem: Problem, recipe: Recipe, reference: TablePolicy, critic: TableCritic | None
) -> RolloutBatch:
    padded = batch.padded()
    mask = padded.response_mask
    ref_logprobs = response_logprobs(reference, padded, temperature=1.0)
    kl = kl_estimate(padded.token_columns["logprobs"], ref_logprobs, "k1")
    scores = problem.scores[problem.nodes_of(padded.response_ids, mask)].float()
    rewards = token_rewards(scores, kl, mask, kl_coef=problem.kl_coef if recipe.kl_in_reward else 0.0)
    batch = batch.with_columns(ref_logprobs=ref_logprobs[mask])
    if critic is not None:
        values = response_values(critic, padded)
        advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=recipe.lam)
        return batch.with_columns(values=values[mask], advantages=advantages[mask], returns=returns[mask])
    groups = torch.arange(len(batch)) // recipe.group_size
    by_response = group_advantages(rewards.sum(dim=1), groups, estimator=recipe.advantages)
    return batch.with_columns(advantages=by_response[:, None].expand(mask.shape)[mask])
