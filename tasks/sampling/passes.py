"""What models say of rollouts, in micro-batches: log-probabilities, exact KL, values."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from ppo_core import (
    InPrecision,
    PaddedBatch,
    Ragged,
    RolloutBatch,
    exact_kl,
    forward_groups,
    inside,
    response_and_final_values,
    token_logits,
    token_logprobs,
)
from tasks.models import Models
from tasks.store import Table, ragged_column


def rollout_batch(table: Table, *columns: str) -> RolloutBatch:
    """Rollouts as tensors, with the per-token columns named."""
    responses = ragged_column(table, "response_token_ids", torch.int64)
    return RolloutBatch(
        prompts=ragged_column(table, "prompt_token_ids", torch.int64),
        responses=responses,
        stopped=torch.tensor([reason == "stop" for reason in table.column("finish_reason").to_pylist()]),
        token_columns={name: ragged_column(table, name, torch.float32).values for name in columns},
    )


@torch.inference_mode()
def batch_logprobs(
    models: Models,
    model: PreTrainedModel,
    batch: RolloutBatch,
    *,
    temperature: float,
) -> torch.Tensor:
    """(N,) log-probabilities of a batch's responses under ``model``, aligned with its ragged values: one forward pass as in
    training.

    A sampler's own come from a cache filled token by token. They differ in the last bits, in bfloat16 in many more, where
    only these make the first ratio of the update 1.
    """
    policy = InPrecision(model, models.dtype, models.head_dtype)

    def forward(padded: PaddedBatch) -> tuple[torch.Tensor, ...]:
        return (token_logprobs(policy, padded, temperature=temperature),)

    return in_micro_batches(models, forward, [policy], batch)[0].values


@torch.inference_mode()
def batch_exact_kl(
    models: Models,
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batch: RolloutBatch,
    *,
    temperature: float,
) -> torch.Tensor:
    """(N,) KL(model || reference) of the distribution that each response token was drawn from."""
    pair = [InPrecision(m, models.dtype, models.head_dtype) for m in (model, reference)]

    def forward(padded: PaddedBatch) -> tuple[torch.Tensor, ...]:
        logits, ref_logits = (token_logits(m, padded, temperature=temperature) for m in pair)
        return (exact_kl(logits, ref_logits),)

    return in_micro_batches(models, forward, pair, batch)[0].values


@torch.inference_mode()
def batch_values(models: Models, critic: torch.nn.Module, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) the critic's values of response tokens, and (B,) those after each response's last token."""
    model = InPrecision(critic, models.dtype)

    def forward(padded: PaddedBatch) -> tuple[torch.Tensor, ...]:
        values, final_values = inside(critic, lambda: response_and_final_values(model, padded))
        return values[padded.response_mask], final_values

    values, final_values = in_micro_batches(models, forward, [model], batch)
    return values.values, final_values.values


def in_micro_batches(
    models: Models,
    forward: Callable[[PaddedBatch], tuple[torch.Tensor, ...]],
    passed: Sequence[torch.nn.Module],
    batch: RolloutBatch,
) -> list[Ragged]:
    """What a forward pass says of a batch's rows, in their order: flat numbers of response tokens, or one per row."""
    parts: list[list[Ragged]] = []
    order = []
    for packed_rows in forward_groups(passed, batch.lengths, models.context.execution.micro_batch_tokens):
        rows = torch.cat(packed_rows)
        lengths = batch.responses.lengths[rows]
        parts.append([as_rows(x.float().cpu(), lengths) for x in forward(batch.padded(packed_rows, models.device))])
        order.append(rows)
    original = torch.argsort(torch.cat(order))
    return [Ragged.concatenate(column).select(original) for column in zip(*parts, strict=True)]


def as_rows(x: torch.Tensor, lengths: torch.Tensor) -> Ragged:
    """Flat numbers as rows of these lengths; where there is one number a row, as rows of one."""
    lengths = lengths if len(x) == int(lengths.sum()) else torch.ones_like(lengths)
    return Ragged(x, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
