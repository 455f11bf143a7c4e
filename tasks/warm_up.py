"""Stage: supervised training of the base model on texts, before any reinforcement learning."""

from collections.abc import Sequence

from pydantic import Field

from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref


class WarmUpConfig(StageConfig):
    """Supervised warm-up on ``data.texts``."""

    epochs: int = Field(1, gt=0)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    batch_tokens: int = Field(4096, gt=0)
    """Padded tokens in one optimizer step."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = Field(1.0, gt=0)


class WarmUpStageConfig(WarmUpConfig):
    """What the stage reads."""

    trust_remote_code: bool = False


@stage(version="1", config=WarmUpStageConfig)
def warm_up(context: StageContext, config: WarmUpStageConfig, *, base: Ref, data: Ref) -> StageOutput:
    """Minimise the next-token loss; of a row with a prompt, only its response counts."""
    import torch

    from ppo_core import gather_logprobs, micro_batches
    from tasks.models import POLICY, load_policy, part_directory, pick_device, pick_dtype, precision
    from tasks.schemas import ragged_column
    from tasks.store import read_dataset
    from tasks.text import copy_tokenizer
    from tasks.training import descend, pad_rows, shuffled

    source = part_directory(base, POLICY)
    device = pick_device(context.execution)
    dtype = pick_dtype(context.execution, device)
    table = read_dataset(data.directory / "texts")
    texts = ragged_column(table, "token_ids", torch.int64)
    prompt_lengths = torch.tensor(table.column("prompt_length").to_pylist())
    model = load_policy(source, trust_remote_code=config.trust_remote_code).to(device)

    def backward(batch: Sequence[int]) -> float:
        rows = torch.tensor(batch)
        lengths = texts.lengths[rows]
        # Token t is predicted at t - 1, and the first token of a row by nothing.
        num_tokens = int((lengths - prompt_lengths[rows].clamp(min=1)).sum())
        total = 0.0
        for part in micro_batches(lengths, context.execution.micro_batch_tokens):
            chosen = rows[part]
            input_ids, attention_mask, position_ids = (
                x.to(device) for x in pad_rows([texts.row(int(i)).tolist() for i in chosen])
            )
            columns = torch.arange(input_ids.shape[1], device=device)
            counted = attention_mask.bool() & (columns >= prompt_lengths[chosen].to(device)[:, None]) & (columns > 0)
            with precision(device, dtype):
                logits = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids).logits
            logprobs = gather_logprobs(logits[:, :-1], input_ids[:, 1:])
            loss = -torch.where(counted[:, 1:], logprobs, 0.0).sum() / num_tokens
            loss.backward()
            total += float(loss.detach())
        return total

    def batches(epoch: int) -> list[list[int]]:
        # Rows of like length share a batch, so that little of it is padding; the order of the batches is random.
        by_length = micro_batches(texts.lengths, config.batch_tokens)
        order = shuffled(len(by_length), seed=context.seed("warm_up"), epoch=epoch)
        return [by_length[i].tolist() for i in order]

    num_tokens = int(texts.lengths.sum())
    losses = descend(
        model,
        batches,
        backward,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        warmup_share=config.warmup_share,
        max_grad_norm=config.max_grad_norm,
        on_step=lambda step, steps, _: context.progress(
            step, steps, unit="steps", tokens=num_tokens * config.epochs * step // steps
        ),
    )
    model.save_pretrained(str(context.output / POLICY))
    copy_tokenizer(source, context.output / POLICY)
    tail = losses[-max(1, len(losses) // 10) :]
    return StageOutput(
        rows=len(texts),
        metrics={"warm_up/first_loss": losses[0], "warm_up/loss": sum(tail) / len(tail), "warm_up/steps": len(losses)},
        resident={POLICY: model},
    )
