"""Stage: one PPO update of policy and critic; reads a checkpoint and writes the next one."""

import shutil
from dataclasses import replace

import torch

from ppo_core import InPrecision, RolloutBatch, ppo_update
from ppo_core.update import MinibatchStats
from tasks.config import UpdatePolicyConfig
from tasks.contract import Gates, StageContext, StageOutput
from tasks.metrics.explained_variance import explained_variance_stderr
from tasks.models import STATE_FILE, Models, NextCheckpoint
from tasks.sampling import rollout_batch
from tasks.store import SAMPLING_LOGPROBS, BackgroundWriter, Ref, Table, read_dataset

MAX_DEVIATION, MAX_DEVIATION_IN_BFLOAT16 = 0.01, 0.5


def update_policy(
    context: StageContext,
    config: UpdatePolicyConfig,
    *,
    experience: Ref,
    policy: Ref,
    critic: Ref | None,
    reference: Ref | None,
) -> StageOutput:
    """Read checkpoint k (or the models that training starts from), update, write checkpoint k + 1.

    Without a critic there is none in the checkpoint. The reference is read for an exact KL loss alone.
    """
    table = read_dataset(experience.directory / "rollouts")
    columns = columns_for(config, has_critic=critic is not None)
    columns += [SAMPLING_LOGPROBS] if SAMPLING_LOGPROBS in table.column_names else []
    batch = rollout_batch(table, *columns)
    models = Models(context, config.access)
    dtype, head_dtype = models.dtype, models.head_dtype
    critic_epochs = 0 if critic is None or config.access.shared_trunk else config.ppo.critic_epochs or config.ppo.epochs
    total = len(batch.responses.values) * (config.ppo.epochs * config.train_policy + critic_epochs)
    done = 0

    def on_tokens(tokens: int) -> None:
        nonlocal done
        # Each of the processes that train together tells of its own part, and all have as much to do.
        done = min(total, done + tokens * models.sharing.size)
        context.progress(done, total, unit="tokens", tokens=done)

    gates = Gates(context)
    with BackgroundWriter(flushes=context.keeps_recoverable) as writer:
        checkpoint = NextCheckpoint(context, config, models, policy=policy, critic=critic, writer=writer)
        stats = ppo_update(
            InPrecision(checkpoint.policy.model, dtype, head_dtype) if config.train_policy else None,
            InPrecision(checkpoint.critic.model, dtype) if checkpoint.critic is not None else None,
            checkpoint.optimizers,
            batch,
            # Responses that were left out may have left fewer than that.
            replace(config.ppo, num_minibatches=min(config.ppo.num_minibatches, len(batch))),
            temperature=config.temperature,
            reference=InPrecision(models.policy(reference), dtype, head_dtype) if reference is not None else None,
            micro_batch_tokens=context.execution.micro_batch_tokens,
            sharing=models.sharing,
            seed=context.seed("update"),
            before_step=lambda minibatch: require_health(gates, context, minibatch, dtype),
            on_tokens=on_tokens,
            on_trained=checkpoint.on_trained,
        )
    shutil.copyfile(experience.directory / STATE_FILE, context.output / STATE_FILE)
    given = rates(config, has_critic=critic is not None) | doubt_of_critic(table, batch)
    return StageOutput(
        rows=table.num_rows,
        metrics={
            **{f"update/{name}": float(value) for name, value in {**stats.as_dict(), **given}.items()},
            "health/warnings": float(len(gates.warnings)),
        },
        resident=checkpoint.resident,
        recoverable="*.safetensors",
    )


def rates(config: UpdatePolicyConfig, *, has_critic: bool) -> dict[str, float]:
    """The learning rates of what was trained."""
    found = {"learning_rate": config.learning_rate} if config.train_policy else {}
    return found | ({"critic_learning_rate": config.critic_learning_rate} if has_critic else {})


def doubt_of_critic(table: Table, batch: RolloutBatch) -> dict[str, float]:
    """The standard error of the variance that the critic explained; nothing without a critic, or with one prompt."""
    if "values" not in batch.token_columns:
        return {}
    stderr = explained_variance_stderr(
        batch.token_columns["values"],
        batch.token_columns["returns"],
        lengths=batch.responses.lengths,
        groups=table.column("prompt_id").to_pylist(),
    )
    return {} if stderr is None else {"explained_variance_stderr": stderr}


def columns_for(config: UpdatePolicyConfig, *, has_critic: bool) -> list[str]:
    """The token columns that this update reads."""
    names = ["logprobs", "advantages"]
    names += ["values", "returns"] if has_critic else []
    return names + (["ref_logprobs"] if config.ppo.kl_loss_coef > 0 else [])


def require_health(gates: Gates, context: StageContext, minibatch: MinibatchStats, dtype: torch.dtype) -> None:
    """Look at a minibatch before its step."""
    health, values = context.health, minibatch.values
    where = f"in epoch {minibatch.epoch}, minibatch {minibatch.minibatch},"
    if minibatch.epoch == minibatch.minibatch == 0:
        gates.at_most(
            "max_ratio_deviation",
            values["ratio_max_deviation"],
            health.max_ratio_deviation or (MAX_DEVIATION if dtype == torch.float32 else MAX_DEVIATION_IN_BFLOAT16),
            what="|ratio - 1| before the first step",
            advice="sampling and training disagree: look for dropout, another temperature or precision",
        )
    gates.at_most(
        "max_approx_kl",
        values["approx_kl"],
        health.max_approx_kl,
        what=f"the KL from the policy that sampled, in nats a token, {where}",
        advice="lower optimizers.learning_rate, take fewer ppo.epochs or set ppo.target_kl",
    )
    gates.at_least(
        "min_entropy",
        values["entropy"],
        health.min_entropy,
        what=f"the policy's entropy, in nats a token, {where}",
        advice="raise advantages.kl_coef or ppo.entropy_coef, or lower optimizers.learning_rate",
    )
