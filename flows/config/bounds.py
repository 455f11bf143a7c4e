"""How large a run may be: far above what anybody trains, and below what makes every command wait for ever.

All stages of a run are planned before it starts, and again by each command that looks at it: a tenth of a millisecond for
each of them. The rows of an iteration are held in memory. A number with three zeros too many is told at once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.config.run_config import RunConfig

MAX_SHARDS_OF_RUN = 50_000
"""Rounds × iterations × shards: some 250,000 stages, half a minute to plan. Published runs have a few thousand updates."""
MAX_RESPONSES = 1_000_000
"""Responses that are sampled in one go, for an iteration or for a calibration."""


def require_bounded(config: "RunConfig") -> None:
    """Refuse a run that could not be planned or held. Raises ``ValueError``: fields, product, next move."""
    rollouts = config.rollouts
    shards = config.rounds * config.iterations * rollouts.shards
    if shards > MAX_SHARDS_OF_RUN:
        raise ValueError(
            f"rounds={config.rounds}: with iterations={config.iterations} and rollouts.shards={rollouts.shards} the run has "
            f"{shards:,} shards of rollouts, more than {MAX_SHARDS_OF_RUN:,}; lower one of the three, or continue in a run "
            "of its own from an exported policy"
        )
    counts = {
        "rollouts.prompts_per_iteration × rollouts.samples_per_prompt": rollouts.prompts_per_iteration
        * rollouts.samples_per_prompt,
        "evaluation.samples_per_prompt": config.evaluation.samples_per_prompt,
        "report.num_samples": config.report.num_samples,
    }
    if config.reward_model is not None:
        counts["reward_model.calibration_samples"] = config.reward_model.calibration_samples
    if config.critic_pretraining is not None:
        counts["critic_pretraining.samples"] = config.critic_pretraining.samples
    for field, count in counts.items():
        if count > MAX_RESPONSES:
            raise ValueError(f"{field}={count}: more than {MAX_RESPONSES:,} responses at once; lower it")
