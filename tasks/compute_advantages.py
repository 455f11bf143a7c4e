"""Stage: token rewards and advantages, as arithmetic on columns; no model is loaded."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from ppo_core.config import KLLossEstimator
from tasks.health import Gates
from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref

if TYPE_CHECKING:
    import torch

    from tasks.loop_state import LoopState
    from tasks.schemas import Table

Algorithm = Literal["ppo", "vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo"]
"""``ppo`` learns a critic; the others compare the responses of an iteration, or of a prompt, with each other."""


class AdvantagesConfig(StageConfig):
    """From scores to advantages (``algorithm.md`` 4 and 5)."""

    kl_coef: float = Field(0.05, ge=0, allow_inf_nan=False)
    """Weight of the KL penalty in the reward of each token."""
    kl_estimator: KLLossEstimator = "k1"
    """Of the penalty. Only k1's policy gradient is that of the divergence: exact leaves out what a token does to the KL at
    its own position, so pair it with ``ppo.kl_loss_coef``; k2 and k3 are biased as rewards."""
    kl_target: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Nats a response that ``kl_coef`` is steered towards, from iteration to iteration; null keeps it as it is."""
    kl_horizon: float = Field(10000.0, gt=0, allow_inf_nan=False)
    """Responses over which ``kl_coef`` may change by a fifth."""
    normalize_scores: bool = False
    """Take from each score the mean of all scores so far and divide by their standard deviation."""
    score_clip: float | None = Field(None, gt=0)
    """Then limit scores to plus and minus this."""
    length_cut_penalty: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Then take this from the score of a response that ran into the length limit."""
    whiten_scores: bool = False
    """Then give the scores of an iteration standard deviation 1; their mean stays."""
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    horizon: int | None = Field(None, gt=0)
    """Steps that an advantage looks ahead; null looks to the end of the response."""
    bootstrap: bool = False
    """Count the critic's value after a response that was cut off by length; off, nothing is expected after it."""
    whiten: bool | None = None
    """Give the advantages of an iteration mean 0 and standard deviation 1; null does so where there is a critic."""

    @model_validator(mode="after")
    def _target_needs_a_coefficient(self) -> Self:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target steers kl_coef, which stays 0 once it is 0; give kl_coef a positive start")
        if self.kl_target is None and self.kl_horizon != type(self).model_fields["kl_horizon"].default:
            raise ValueError("kl_horizon says nothing without kl_target; set that too")
        return self


class ComputeAdvantagesConfig(AdvantagesConfig):
    """What the stage reads."""

    algorithm: Algorithm = "ppo"


@stage(version="2", config=ComputeAdvantagesConfig, uses_models=False)
def compute_advantages(
    context: StageContext, config: ComputeAdvantagesConfig, *, scored: list[Ref], checkpoint: Ref
) -> StageOutput:
    """Add treated_score, kl, rewards, advantages and returns, and say what the next iteration has to remember.

    All shards become one data set, since whitening and the moments of the scores need them together. ``checkpoint`` is
    what the rollouts were sampled from; only its loop state is read.
    """
    import torch

    from ppo_core import Ragged, kl_estimate, masked_whiten, token_rewards
    from tasks.loop_state import read_loop_state
    from tasks.responses import rollout_batch
    from tasks.schemas import advantages as with_advantages
    from tasks.schemas import concatenate, with_columns
    from tasks.standard_errors import mean_metric
    from tasks.store import read_dataset, write_dataset

    before = read_loop_state(checkpoint.directory)
    kl_coef = config.kl_coef if config.kl_target is None or before.kl_coef is None else before.kl_coef
    table = concatenate([read_dataset(ref.directory / "rollouts") for ref in scored])
    batch = rollout_batch(table)
    mask = batch.responses.mask()
    if config.kl_estimator == "exact":
        kl = padded_column(table, "exact_kl")
    else:
        kl = kl_estimate(padded_column(table, "logprobs"), padded_column(table, "ref_logprobs"), config.kl_estimator)
    kl = torch.where(mask, kl, 0.0)
    kl_of_response = kl.sum(1)
    kl_per_token = float(kl[mask].mean())
    gates = Gates(context)
    gates.at_most(
        "max_kl",
        kl_per_token,
        context.health.max_kl,
        what="the KL from the reference, in nats a token,",
        advice="raise advantages.kl_coef, lower optimizers.learning_rate",
    )

    scores = torch.tensor(table.column("score").to_pylist(), dtype=torch.float32)
    after = next_state(before, config, scores, kl_coef=kl_coef, mean_kl=float(kl_of_response.mean()))
    treated = treated_by(config, scores, ~batch.stopped, after)
    rewards = token_rewards(treated, kl, mask, kl_coef=kl_coef)
    columns = {"kl": kl, "rewards": rewards, **advantages_of(config, table, rewards, mask)}
    spread = float(columns["advantages"][mask].std(correction=0))
    if config.whiten or (config.whiten is None and config.algorithm == "ppo"):
        columns["advantages"] = masked_whiten(columns["advantages"], mask)
    table = with_columns(
        table,
        {
            "treated_score": treated.tolist(),
            **{name: Ragged.from_padded(column, mask) for name, column in columns.items()},
        },
        with_advantages(table.schema, has_returns="returns" in columns),
    )
    write_dataset(context.output / "rollouts", table)
    after.write(context.output)
    context.progress(table.num_rows, table.num_rows, tokens=int(mask.sum()))
    metrics = {
        "kl/mean": float(kl_of_response.mean()),
        "kl/per_token": kl_per_token,
        "kl/coef": kl_coef,
        "rewards/treated_score": float(treated.mean()),
        **mean_metric("rewards/mean", rewards.sum(1).tolist(), table.column("prompt_id").to_pylist()),
        "advantages/std_before_whitening": spread,
        "health/warnings": float(len(gates.warnings)),
    }
    if "returns" in columns:
        metrics["values/mean"] = float(padded_column(table, "values")[mask].mean())
        metrics["returns/mean"] = float(columns["returns"][mask].mean())
    return StageOutput(rows=table.num_rows, metrics=metrics)


def padded_column(table: "Table", name: str) -> "torch.Tensor":
    """(B, T) of a column with one number per response token; 0 at padding."""
    import torch

    from tasks.schemas import ragged_column

    return ragged_column(table, name, torch.float32).padded(fill=0.0)


def next_state(
    before: "LoopState", config: AdvantagesConfig, scores: "torch.Tensor", *, kl_coef: float, mean_kl: float
) -> "LoopState":
    """The moments with this iteration's scores, and the KL coefficient of the next one."""
    from ppo_core import next_kl_coef
    from tasks.loop_state import LoopState

    if config.kl_target is not None:
        kl_coef = next_kl_coef(kl_coef, mean_kl, len(scores), target=config.kl_target, horizon=config.kl_horizon)
    return LoopState(kl_coef=kl_coef, scores=before.scores.with_scores(scores))


def treated_by(
    config: AdvantagesConfig, scores: "torch.Tensor", cut_off: "torch.Tensor", state: "LoopState"
) -> "torch.Tensor":
    """The scores as they count. The moments hold this iteration already, so that the first one has some."""
    from ppo_core import treated_scores

    return treated_scores(
        scores,
        cut_off,
        moments=state.scores if config.normalize_scores else None,
        clip=config.score_clip,
        cut_off_penalty=config.length_cut_penalty,
        whiten=config.whiten_scores,
    )


def advantages_of(
    config: ComputeAdvantagesConfig, table: "Table", rewards: "torch.Tensor", mask: "torch.Tensor"
) -> dict[str, "torch.Tensor"]:
    """Advantages, and with a critic the returns that it learns; without whitening."""
    import torch

    from ppo_core import gae, group_advantages

    if config.algorithm == "ppo":
        bootstrap_values = None
        if config.bootstrap:
            stopped = torch.tensor([reason == "stop" for reason in table.column("finish_reason").to_pylist()])
            final_values = torch.tensor(table.column("final_value").to_pylist(), dtype=torch.float32)
            bootstrap_values = torch.where(stopped, 0.0, final_values)
        advantages, returns = gae(
            rewards,
            padded_column(table, "values"),
            mask,
            gamma=config.gamma,
            lam=config.lam,
            horizon=config.horizon,
            bootstrap_values=bootstrap_values,
        )
        return {"advantages": advantages, "returns": returns}
    # The response is one action: its reward is the sum of its tokens', score less penalty, and all tokens share it.
    numbers = {prompt_id: number for number, prompt_id in enumerate(table.column("prompt_id").unique().to_pylist())}
    groups = torch.tensor([numbers[prompt_id] for prompt_id in table.column("prompt_id").to_pylist()])
    of_response = group_advantages(rewards.sum(1), groups, estimator=config.algorithm)
    return {"advantages": torch.where(mask, of_response[:, None], 0.0)}
