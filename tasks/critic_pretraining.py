"""Stage: the critic learns what the reference's responses score, before the first iteration asks it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from ppo_core import InPrecision, PPOConfig, RolloutBatch, TrunkCritic, explained_variance, forward_groups, inside
from ppo_core.objectives import Counts, critic_objective
from tasks.config import CriticPretrainingStageConfig, StageConfig
from tasks.contract import StageContext, StageOutput, stage_function
from tasks.models import CRITIC, POLICY, Models, descend, part_directory, shuffled
from tasks.sampling import CALIBRATION, batch_values, calibration_rollouts, rollout_batch
from tasks.store import Input, Ref, Table, read_dataset, write_dataset
from tasks.text import copy_tokenizer

HELD_OUT_EVERY = 8
"""One prompt of so many measures the critic and never trains it."""


def critic_pretraining(
    context: StageContext,
    config: CriticPretrainingStageConfig,
    *,
    reference: Ref,
    critic: Ref,
    reward_model: Ref | None,
    external: Mapping[str, Ref],
    data: Ref,
) -> StageOutput:
    """Regress the critic, at every token, on what an iteration would make of the response.

    The reference is the policy that the run starts from, so that no KL is in the targets. Of a critic on the policy's body
    only the head is trained, since the policy must stay what it is.
    """
    models = Models(context, config.access)
    sampled = sampled_by_reference(models, config, reference=reference, reward_model=reward_model, data=data)
    experience = experience_of(
        context, config, sampled, reference=reference, critic=critic, reward_model=reward_model, external=external
    )
    table = read_dataset(experience.directory / "rollouts")
    batch = rollout_batch(table, "values", "returns")
    is_held_out = held_out_rows(table)
    train, held_out = (batch.select(rows.nonzero()[:, 0]) for rows in (~is_held_out, is_held_out))
    trainable = models.take_critic(critic, models.policy(reference))
    trained = trainable.model.head_alone() if isinstance(trainable.model, TrunkCritic) else trainable.model
    losses = fit(models, trained, trainable.parameters, train, config)
    returns = held_out.token_columns["returns"]
    after, _ = batch_values(models, trained, held_out)
    explained = {
        name: float(explained_variance(values, returns, torch.ones_like(returns, dtype=torch.bool)))
        for name, values in {"_before": held_out.token_columns["values"], "": after}.items()
    }
    trainable.writer()(context.output / CRITIC)
    copy_tokenizer(part_directory(reference, POLICY), context.output / CRITIC)
    tail = losses[-max(1, len(losses) // 10) :]
    return StageOutput(
        rows=len(train),
        metrics={
            "critic_pretraining/first_loss": losses[0],
            "critic_pretraining/loss": sum(tail) / len(tail),
            "critic_pretraining/steps": len(losses),
            **{f"critic_pretraining/explained_variance{name}": value for name, value in explained.items()},
        },
        resident={CRITIC: trainable.kept()},
    )


def fit(
    models: Models,
    critic: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    batch: RolloutBatch,
    config: CriticPretrainingStageConfig,
) -> list[float]:
    """Train the critic on the ``returns`` of a batch, and return the loss of each step."""
    context, model = models.context, InPrecision(critic, models.dtype)

    def passes(rows: Sequence[int]) -> list[Callable[[float], float]]:
        chosen = batch.select(torch.tensor(rows))
        counts = Counts(num_tokens=len(chosen.responses.values), num_responses=None)

        def backward(packed_rows: list[torch.Tensor], factor: float) -> float:
            padded = chosen.padded(packed_rows, models.device)
            loss, _ = inside(model, lambda: critic_objective(model, padded, PPOConfig(), counts))
            (loss * factor).backward()
            return float(loss.detach())

        groups = forward_groups([model], chosen.lengths, context.execution.micro_batch_tokens)
        return [partial(backward, packed_rows) for packed_rows in groups]

    def batches(epoch: int) -> list[list[int]]:
        order = shuffled(len(batch), seed=context.seed("critic_pretraining"), epoch=epoch)
        return [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]

    return descend(
        parameters,
        batches,
        passes,
        sharing=models.sharing,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        warmup_share=config.warmup_share,
        max_grad_norm=config.max_grad_norm,
        on_step=lambda step, steps, _: context.progress(step, steps, unit="steps"),
    )


def sampled_by_reference(
    models: Models,
    config: CriticPretrainingStageConfig,
    *,
    reference: Ref,
    reward_model: Ref | None,
    data: Ref,
) -> Ref:
    """Responses of the reference: those that a reward model of this run was calibrated on, else new ones."""
    if reward_model is not None:
        return Ref(str(reward_model.directory / CALIBRATION), reward_model.digest)
    rollouts = calibration_rollouts(
        models,
        reference=reference,
        data=data,
        num_samples=config.samples,
        sampling=config.sampling,
        stop_strings=config.stop_strings,
    )
    directory = models.context.output / CALIBRATION
    write_dataset(directory / "rollouts", rollouts)
    return Ref(str(directory), reference.digest)


def experience_of(
    context: StageContext,
    config: CriticPretrainingStageConfig,
    sampled: Ref,
    *,
    reference: Ref,
    critic: Ref,
    reward_model: Ref | None,
    external: Mapping[str, Ref],
) -> Ref:
    """The responses with ``values`` of the critic as it is and ``returns``, by the very stages of an iteration."""

    def made(name: str, directory: str, settings: StageConfig, **inputs: Input) -> Ref:
        output = context.output / directory
        output.mkdir()
        stage_function(name)(replace(context, output=output), settings, **inputs)
        return Ref(str(output), sampled.digest)

    scored = made(
        "score_rollouts",
        "scored",
        config.scoring,
        rollouts=sampled,
        policy=reference,
        reference=reference,
        critic=critic,
        reward_model=reward_model,
        external=external,
    )
    experience = made("compute_advantages", "experience", config.advantages, scored=[scored], checkpoint=reference)
    # All its columns are in the experience too.
    shutil.rmtree(scored.directory)
    return experience


def held_out_rows(table: Table) -> torch.Tensor:
    """(B,) bool: all rows of some of the prompts; of a lone prompt's, none could be told from those of training."""
    prompt_ids = table.column("prompt_id").to_pylist()
    numbers = {prompt_id: number for number, prompt_id in enumerate(dict.fromkeys(prompt_ids))}
    every = min(HELD_OUT_EVERY, len(numbers))
    if every == 1:
        return torch.tensor([i == len(prompt_ids) - 1 for i in range(len(prompt_ids))])
    return torch.tensor([numbers[prompt_id] % every == every - 1 for prompt_id in prompt_ids])
