"""Stage: token rewards and advantages, as arithmetic on columns; no model is loaded."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch

from ppo_core import (
    Ragged,
    gae,
    group_advantages,
    kl_estimate,
    length_adaptive_lam,
    masked_mean,
    masked_whiten,
    next_kl_coef,
    overlong_penalty,
    rewards_to_go,
    token_rewards,
    treated_scores,
)
from ppo_core.config import COMPARES_SAMPLES
from tasks.config import AdvantagesConfig, ComputeAdvantagesConfig, LengthCutConfig
from tasks.contract import Gates, StageContext, StageOutput
from tasks.errors import ConfigError
from tasks.metrics import mean_metric
from tasks.models import LoopState, read_loop_state
from tasks.sampling import rollout_batch
from tasks.store import (
    Ref,
    Table,
    advantages_schema,
    concatenate,
    ragged_column,
    read_dataset,
    with_columns,
    write_dataset,
)

MANY_CUT_OFF = 0.5
"""Share of cut off responses above which most of what is scored is unfinished."""


def compute_advantages(
    context: StageContext, config: ComputeAdvantagesConfig, *, scored: list[Ref], checkpoint: Ref
) -> StageOutput:
    """Add treated_score, kl, rewards, advantages and returns, and say what the next iteration has to remember.

    All shards become one data set, since whitening and the moments of the scores need them together. ``checkpoint`` is
    what the iteration goes on from; only its loop state is read.
    """
    before = read_loop_state(checkpoint.directory)
    kl_coef = config.kl_coef if config.kl_target is None or before.kl_coef is None else before.kl_coef
    table = concatenate([read_dataset(ref.directory / "rollouts") for ref in scored])
    batch = rollout_batch(table)
    mask = batch.responses.mask()
    kl = kl_of_tokens(config, table, mask)
    kl_of_response = kl.sum(1)
    kl_per_token = float(kl[mask].mean())
    gates = Gates(context)
    require_near_reference(gates, kl_per_token, context.health.max_kl)
    scores = torch.tensor(table.column("score").to_pylist(), dtype=torch.float32)
    cut_off = ~batch.stopped
    mean_kl = float(kl_of_response.mean())
    after = next_state(before, config, scores, cut_off, kl_coef=kl_coef, mean_kl=mean_kl)
    after = replace(after, told_length_cut=before.told_length_cut or tell_of_length_cuts(context, config, cut_off))
    if config.length_cut.exclude:
        kept = rows_to_learn_from(config, table, cut_off, place=context.place.label)
        table, batch = table.filter(kept.tolist()), batch.select(kept.nonzero()[:, 0])
        scores, cut_off = scores[kept], cut_off[kept]
        mask = batch.responses.mask()
        kl = kl[kept, : mask.shape[1]]
    treated = treated_by(config, scores, cut_off, batch.responses.lengths, after)
    rewards = token_rewards(treated, kl, mask, kl_coef=kl_coef)
    columns = {"kl": kl, "rewards": rewards, **advantages_of(config, table, rewards, mask)}
    spread = float(columns["advantages"][mask].std(correction=0))
    if config.whiten or (config.whiten is None and config.algorithm == "ppo"):
        columns["advantages"] = masked_whiten(columns["advantages"], mask)
    added = {name: Ragged.from_padded(column, mask) for name, column in columns.items()}
    schema = advantages_schema(table.schema, has_returns="returns" in columns)
    table = with_columns(table, {"treated_score": treated.tolist(), **added}, schema)
    write_dataset(context.output / "rollouts", table)
    after.write(context.output)
    context.progress(table.num_rows, table.num_rows, tokens=int(mask.sum()))
    return StageOutput(
        rows=table.num_rows,
        metrics={
            "kl/mean": mean_kl,
            "kl/per_token": kl_per_token,
            "kl/coef": kl_coef,
            "rewards/treated_score": float(treated.mean()),
            **mean_metric("rewards/mean", rewards.sum(1).tolist(), table.column("prompt_id").to_pylist()),
            "advantages/std_before_whitening": spread,
            "advantages/excluded_share": 1 - table.num_rows / len(kl_of_response),
            "health/warnings": float(len(gates.warnings)),
            **means_of_critic(table, columns, mask),
        },
    )


def means_of_critic(table: Table, columns: Mapping[str, torch.Tensor], mask: torch.Tensor) -> dict[str, float]:
    """What it expected and what came, mean over tokens; nothing without a critic."""
    if "returns" not in columns:
        return {}
    values = padded_column(table, "values")
    return {"values/mean": float(values[mask].mean()), "returns/mean": float(columns["returns"][mask].mean())}


def require_near_reference(gates: Gates, kl_per_token: float, limit: float) -> None:
    gates.at_most(
        "max_kl",
        kl_per_token,
        limit,
        what="the KL from the reference, in nats a token,",
        advice="raise advantages.kl_coef, lower optimizers.learning_rate",
    )


def kl_of_tokens(config: AdvantagesConfig, table: Table, mask: torch.Tensor) -> torch.Tensor:
    """(B, T) the penalty's estimate of the KL from the reference; 0 at padding."""
    if config.kl_estimator == "exact":
        kl = padded_column(table, "exact_kl")
    else:
        kl = kl_estimate(padded_column(table, "logprobs"), padded_column(table, "ref_logprobs"), config.kl_estimator)
    return torch.where(mask, kl, 0.0)


def padded_column(table: Table, name: str) -> torch.Tensor:
    """(B, T) of a column with one number per response token; 0 at padding."""
    return ragged_column(table, name, torch.float32).padded(fill=0.0)


def tell_of_length_cuts(context: StageContext, config: AdvantagesConfig, cut_off: torch.Tensor) -> bool:
    """Say, where nothing in the configuration is meant for it, that most responses are cut off; whether it was said."""
    share = float(cut_off.double().mean())
    if share <= MANY_CUT_OFF or config.bootstrap or config.length_cut != LengthCutConfig():
        return False
    context.warn(
        f"{share:.0%} of the responses were cut off at rollouts.sampling.max_new_tokens and are scored as if they ended "
        "there; raise it, look for what should end a response, or set advantages.length_cut (score: keep, if so it shall be)"
    )
    return True


def rows_to_learn_from(
    config: ComputeAdvantagesConfig, table: Table, cut_off: torch.Tensor, *, place: str
) -> torch.Tensor:
    """(B,) bool: the finished responses, without those that no other finished one of their prompt is left to compare with.

    Raises:
        ConfigError: none is left.
    """
    kept = ~cut_off
    if config.algorithm in COMPARES_SAMPLES:
        prompt_ids = table.column("prompt_id").to_pylist()
        finished = Counter(prompt for prompt, keep in zip(prompt_ids, kept.tolist(), strict=True) if keep)
        kept = kept & torch.tensor([finished[prompt] > 1 for prompt in prompt_ids])
    if not kept.any():
        raise ConfigError(
            f"advantages.length_cut.exclude: of the {len(cut_off)} responses of {place} {int(cut_off.sum())} were cut off "
            f"at rollouts.sampling.max_new_tokens={config.max_new_tokens}, and none is left to learn from; raise it, or "
            "leave exclude out"
        )
    return kept


def next_state(
    before: LoopState,
    config: AdvantagesConfig,
    scores: torch.Tensor,
    cut_off: torch.Tensor,
    *,
    kl_coef: float,
    mean_kl: float,
) -> LoopState:
    """The moments with those of this iteration's scores that count, and the KL coefficient of the next one."""
    if config.kl_target is not None:
        kl_coef = next_kl_coef(kl_coef, mean_kl, len(scores), target=config.kl_target, horizon=config.kl_horizon)
    counting = scores if config.scores_count_when_cut_off else scores[~cut_off]
    return LoopState(kl_coef=kl_coef, scores=before.scores.with_scores(counting))


def treated_by(
    config: ComputeAdvantagesConfig,
    scores: torch.Tensor,
    cut_off: torch.Tensor,
    lengths: torch.Tensor,
    state: LoopState,
) -> torch.Tensor:
    """The scores as they count. The moments hold this iteration already, so that the first one has some."""
    length_penalty = None
    if config.length_cut.ramp_tokens:
        assert config.max_new_tokens is not None, "a run's configuration always has it"
        length_penalty = overlong_penalty(
            lengths,
            max_length=config.max_new_tokens,
            ramp=config.length_cut.ramp_tokens,
            penalty=config.length_cut.ramp_penalty,
        )
    return treated_scores(
        scores,
        cut_off,
        moments=state.scores if config.normalize_scores else None,
        clip=config.score_clip,
        keep_cut_off=config.scores_count_when_cut_off,
        cut_off_penalty=config.length_cut.penalty,
        length_penalty=length_penalty,
        whiten=config.whiten_scores,
    )


def advantages_of(
    config: ComputeAdvantagesConfig, table: Table, rewards: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Advantages, and with a critic the returns that it learns; without whitening."""
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
            lam=config.lam if config.lam_alpha is None else length_adaptive_lam(mask, alpha=config.lam_alpha),
            critic_lam=config.critic_lam,
            horizon=config.horizon,
            bootstrap_values=bootstrap_values,
        )
        return {"advantages": advantages, "returns": returns}
    if config.reward_to_go:
        to_go = rewards_to_go(rewards, mask, gamma=config.gamma)
        baseline = masked_mean(to_go, mask) if config.algorithm == "reinforce" else 0.0
        return {"advantages": torch.where(mask, to_go - baseline, 0.0)}
    # The response is one action: its reward is the sum of its tokens', score less penalty, and all tokens share it.
    numbers = {prompt_id: number for number, prompt_id in enumerate(table.column("prompt_id").unique().to_pylist())}
    groups = torch.tensor([numbers[prompt_id] for prompt_id in table.column("prompt_id").to_pylist()])
    of_response = group_advantages(rewards.sum(1), groups, estimator=config.algorithm)
    return {"advantages": torch.where(mask, of_response[:, None], 0.0)}
