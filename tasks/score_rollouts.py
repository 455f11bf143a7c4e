"""Stage: what reward, reference and critic say of the rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ppo_core import Ragged, RolloutBatch
from tasks.config import ScoreRolloutsConfig
from tasks.contract import StageContext, StageOutput
from tasks.models import Models
from tasks.sampling import batch_exact_kl, batch_logprobs, batch_values, rollout_batch
from tasks.scoring import score_rows, weighted_sum
from tasks.store import (
    ROLLOUTS,
    SAMPLING_LOGPROBS,
    Ref,
    Table,
    ragged_column,
    read_dataset,
    require_columns,
    scored_schema,
    with_columns,
    write_dataset,
)


def score_rollouts(
    context: StageContext,
    config: ScoreRolloutsConfig,
    *,
    rollouts: Ref,
    policy: Ref,
    reference: Ref,
    critic: Ref | None,
    reward_model: Ref | None,
    external: Mapping[str, Ref],
) -> StageOutput:
    """Add score, one column per component and ref_logprobs to each rollout; with a critic, values and final_value.

    ``policy`` is the one that will be updated. Where an earlier one sampled, logprobs become its own too.
    """
    table = read_dataset(rollouts.directory / "rollouts")
    require_columns(table, ROLLOUTS, where=rollouts.path)
    batch = rollout_batch(table, "logprobs")
    models = Models(context, config.access)
    is_behind = table.column("policy_version").unique().to_pylist() != [policy.digest]
    passes = 2 + config.exact_kl + (critic is not None) + is_behind

    scores = score_rows(
        models,
        table,
        config.rewards,
        policy=policy,
        reward_model=reward_model,
        external=external,
    )
    context.progress(table.num_rows, passes * table.num_rows)
    offsets = batch.responses.offsets
    reference_model = models.policy(reference)
    ref_logprobs = batch_logprobs(models, reference_model, batch, temperature=config.temperature)
    context.progress(2 * table.num_rows, passes * table.num_rows)
    total = weighted_sum(scores, config.rewards)
    added: dict[str, Any] = {
        "score": total,
        **{f"score_{name}": own for name, own in scores.items()},
        "ref_logprobs": Ragged(ref_logprobs, offsets),
    }
    if config.exact_kl:
        exact_kl = batch_exact_kl(models, models.policy(policy), reference_model, batch, temperature=config.temperature)
        added["exact_kl"] = Ragged(exact_kl, offsets)
    if is_behind:
        added |= logprobs_of(policy, models, table, batch, temperature=config.temperature)
    if critic is not None:
        values, final_values = batch_values(models, models.critic(critic, policy), batch)
        added |= {"values": Ragged(values, offsets), "final_value": final_values.tolist()}
    schema = scored_schema(
        list(scores),
        has_exact_kl=config.exact_kl,
        has_values=critic is not None,
        has_sampling_logprobs=SAMPLING_LOGPROBS in (*table.column_names, *added),
    )
    write_dataset(context.output / "rollouts", with_columns(table, added, schema))
    context.progress(passes * table.num_rows, passes * table.num_rows)
    return StageOutput(rows=table.num_rows, metrics=metrics_of(total, scores))


def metrics_of(total: Sequence[float], scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean and spread of the score, and the mean of each of its components."""
    score = torch.tensor(total)
    return {
        "score/mean": float(score.mean()),
        "score/std": float(score.std(correction=0)),
        **{f"score/{name}": sum(own) / len(own) for name, own in scores.items()},
    }


def logprobs_of(
    policy: Ref, models: Models, table: Table, batch: RolloutBatch, *, temperature: float
) -> dict[str, Ragged]:
    """The log-probabilities of a policy that did not sample, and those of the one that did under the other name.

    What another engine sampled by has them already: one weight a token corrects for engine and lag together.
    """
    logprobs = batch_logprobs(models, models.policy(policy), batch, temperature=temperature)
    sampled_by = SAMPLING_LOGPROBS if SAMPLING_LOGPROBS in table.column_names else "logprobs"
    return {
        "logprobs": Ragged(logprobs, batch.responses.offsets),
        SAMPLING_LOGPROBS: ragged_column(table, sampled_by, torch.float32),
    }
