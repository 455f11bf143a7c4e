"""Stage: supervised training of the base model on texts, before any reinforcement learning."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ppo_core import (
    AS_FEW_AS_POSSIBLE,
    InPrecision,
    Ragged,
    RolloutBatch,
    forward_groups,
    inside,
    micro_batches,
    token_logprobs,
)
from tasks.config import WarmUpStageConfig
from tasks.contract import StageContext, StageOutput
from tasks.models import POLICY, Models, descend, part_directory, shuffled
from tasks.store import Ref, ragged_column, read_dataset
from tasks.text import copy_tokenizer


def warm_up(context: StageContext, config: WarmUpStageConfig, *, base: Ref, data: Ref) -> StageOutput:
    """Minimise the next-token loss; of a row with a prompt, only its response counts."""
    source = part_directory(base, POLICY)
    models = Models(context, config.access)
    table = read_dataset(data.directory / "texts")
    texts = as_rollouts(
        ragged_column(table, "token_ids", torch.int64), torch.tensor(table.column("prompt_length").to_pylist())
    )
    trainable = models.take_policy(base)
    policy = InPrecision(trainable.model, models.dtype, models.head_dtype)

    def passes(batch: Sequence[int]) -> list[Callable[[float], float]]:
        chosen = texts.select(torch.tensor(batch))

        def backward(packed_rows: list[torch.Tensor], factor: float) -> float:
            padded = chosen.padded(packed_rows, models.device)
            logprobs = inside(policy, lambda: token_logprobs(policy, padded, temperature=1.0))
            loss = -logprobs.sum() / len(chosen.responses.values)
            (loss * factor).backward()
            return float(loss.detach())

        groups = forward_groups([trainable.model], chosen.lengths, context.execution.micro_batch_tokens)
        return [partial(backward, packed_rows) for packed_rows in groups]

    def batches(epoch: int) -> list[list[int]]:
        # Rows of like length share a batch, so that little of it is padding; the order of the batches is random.
        by_length = micro_batches(texts.lengths, config.batch_tokens, group_cost=AS_FEW_AS_POSSIBLE)
        order = shuffled(len(by_length), seed=context.seed("warm_up"), epoch=epoch)
        return [by_length[i].tolist() for i in order]

    num_tokens = int(texts.lengths.sum())
    losses = descend(
        trainable.parameters,
        batches,
        passes,
        sharing=models.sharing,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        warmup_share=config.warmup_share,
        max_grad_norm=config.max_grad_norm,
        on_step=lambda step, steps, _: context.progress(
            step, steps, unit="steps", tokens=num_tokens * config.epochs * step // steps
        ),
    )
    trainable.writer()(context.output / POLICY)
    copy_tokenizer(source, context.output / POLICY)
    tail = losses[-max(1, len(losses) // 10) :]
    return StageOutput(
        rows=len(texts),
        metrics={"warm_up/first_loss": losses[0], "warm_up/loss": sum(tail) / len(tail), "warm_up/steps": len(losses)},
        resident={POLICY: trainable.kept()},
    )


def as_rollouts(texts: Ragged, prompt_lengths: torch.Tensor) -> RolloutBatch:
    """Texts cut after their prompts, or after their first token, which nothing predicts; those with no more are left out."""
    columns, mask = torch.arange(int(texts.lengths.max())), texts.mask()
    rows = texts.padded(fill=0)
    is_prompt = mask & (columns < prompt_lengths.clamp(min=1)[:, None])
    prompts, responses = (Ragged.from_padded(rows, part) for part in (is_prompt, mask & ~is_prompt))
    has_more = responses.lengths > 0
    stopped = torch.ones(int(has_more.sum()), dtype=torch.bool)
    return RolloutBatch(prompts=prompts.select(has_more), responses=responses.select(has_more), stopped=stopped)
