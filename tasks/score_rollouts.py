"""Stage: what reward, reference and critic say of the rollouts."""

from typing import Any

from tasks.rewards import Rewards
from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref


class ScoreRolloutsConfig(StageConfig):
    """The components of the score, and the temperature at which the rollouts were sampled."""

    rewards: Rewards
    temperature: float
    trust_remote_code: bool = False


@stage(version="1", config=ScoreRolloutsConfig)
def score_rollouts(
    context: StageContext,
    config: ScoreRolloutsConfig,
    *,
    rollouts: Ref,
    policy: Ref,
    reference: Ref,
    critic: Ref,
    reward_model: Ref | None,
    external: list[Ref],
) -> StageOutput:
    """Add score, one column per component, ref_logprobs and values to each rollout."""
    import torch

    from ppo_core import Ragged, response_values
    from tasks.models import (
        CRITIC,
        POLICY,
        load_critic,
        load_policy,
        part_directory,
        pick_device,
        pick_dtype,
    )
    from tasks.responses import batch_logprobs, per_token, rollout_batch
    from tasks.schemas import ROLLOUTS, require_columns, scored, with_columns
    from tasks.scoring import score_rows, weighted_sum
    from tasks.store import read_dataset, write_dataset

    table = read_dataset(rollouts.directory / "rollouts")
    require_columns(table, ROLLOUTS, where=rollouts.path)
    batch = rollout_batch(table, "logprobs")
    device = pick_device(context.execution)
    dtype = pick_dtype(context.execution, device)
    token_budget = context.execution.micro_batch_tokens
    passes = 3

    scores = score_rows(context, table, config.rewards, policy=policy, reward_model=reward_model, external=external)
    context.progress(table.num_rows, passes * table.num_rows)
    reference_model = context.models.get(
        reference,
        POLICY,
        lambda: load_policy(part_directory(reference, POLICY), trust_remote_code=config.trust_remote_code),
    ).to(device)
    ref_logprobs = batch_logprobs(
        reference_model, batch, temperature=config.temperature, token_budget=token_budget, device=device, dtype=dtype
    )
    context.progress(2 * table.num_rows, passes * table.num_rows)
    critic_model = context.models.get(
        critic, CRITIC, lambda: load_critic(critic, context.run_seed, trust_remote_code=config.trust_remote_code)
    ).to(device)
    with torch.inference_mode():
        values = per_token(
            lambda padded: response_values(critic_model, padded),
            batch,
            token_budget=token_budget,
            device=device,
            dtype=dtype,
        )
    total = weighted_sum(scores, config.rewards)
    added: dict[str, Any] = {
        "score": total,
        **{f"score_{name}": own for name, own in scores.items()},
        "ref_logprobs": Ragged(ref_logprobs, batch.responses.offsets),
        "values": Ragged(values, batch.responses.offsets),
    }
    write_dataset(context.output / "rollouts", with_columns(table, added, scored(list(scores))))
    context.progress(passes * table.num_rows, passes * table.num_rows)
    mean = {name: sum(own) / len(own) for name, own in scores.items()}
    score = torch.tensor(total)
    return StageOutput(
        rows=table.num_rows,
        metrics={
            "score/mean": float(score.mean()),
            "score/std": float(score.std(correction=0)),
            **{f"score/{name}": value for name, value in mean.items()},
        },
    )
