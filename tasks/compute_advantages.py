"""Stage: token rewards and advantages, as arithmetic on columns; no model is loaded."""

from pydantic import Field

from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref


class AdvantagesConfig(StageConfig):
    """From scores to advantages (``algorithm.md`` 4 and 5)."""

    kl_coef: float = Field(0.05, ge=0, allow_inf_nan=False)
    """Weight of the KL penalty in the reward of each token."""
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    whiten: bool = True
    """Give the advantages of an iteration mean 0 and standard deviation 1."""


@stage(version="1", config=AdvantagesConfig, uses_models=False)
def compute_advantages(context: StageContext, config: AdvantagesConfig, *, scored: list[Ref]) -> StageOutput:
    """Add kl, rewards, advantages and returns; all shards become one data set, since whitening needs them together."""
    import torch

    from ppo_core import Ragged, gae, kl_estimate, masked_whiten, token_rewards
    from tasks.responses import rollout_batch
    from tasks.schemas import advantages as with_advantages
    from tasks.schemas import components_of, concatenate, with_columns
    from tasks.store import read_dataset, write_dataset

    table = concatenate([read_dataset(ref.directory / "rollouts") for ref in scored])
    batch = rollout_batch(table, "logprobs", "ref_logprobs", "values")
    mask = batch.responses.mask()
    logprobs, ref_logprobs, values = (
        batch.column(name).padded(fill=0.0) for name in ("logprobs", "ref_logprobs", "values")
    )
    scores = torch.tensor(table.column("score").to_pylist(), dtype=torch.float32)
    # k1, not k3: as a reward, only k1's policy gradient is the gradient of KL(policy || reference).
    kl = kl_estimate(logprobs, ref_logprobs, "k1")
    rewards = token_rewards(scores, kl, mask, kl_coef=config.kl_coef)
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    columns = {
        "kl": kl,
        "rewards": rewards,
        "advantages": masked_whiten(advantages, mask) if config.whiten else advantages,
        "returns": returns,
    }
    table = with_columns(
        table,
        {name: Ragged.from_padded(column, mask) for name, column in columns.items()},
        with_advantages(components_of(table)),
    )
    write_dataset(context.output / "rollouts", table)
    context.progress(table.num_rows, table.num_rows, tokens=int(mask.sum()))
    kl_of_response = torch.where(mask, kl, 0.0).sum(1)
    return StageOutput(
        rows=table.num_rows,
        metrics={
            "kl/mean": float(kl_of_response.mean()),
            "kl/per_token": float(kl[mask].mean()),
            "kl/coef": config.kl_coef,
            "rewards/mean": float(torch.where(mask, rewards, 0.0).sum(1).mean()),
            "advantages/std_before_whitening": float(advantages[mask].std(correction=0)),
            "values/mean": float(values[mask].mean()),
            "returns/mean": float(returns[mask].mean()),
        },
    )
