"""PPO for language models as pure mathematics: torch and numpy, no files, clocks, environment or trackers.

The names below are imported when one of them is first used, so that settings and errors cost nothing without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo_core.advantages import gae, group_advantages, length_adaptive_lam, rewards_to_go
    from ppo_core.batch import AS_FEW_AS_POSSIBLE, PaddedBatch, Ragged, RolloutBatch
    from ppo_core.config import GroupEstimator, PPOConfig, SamplingConfig, can_share
    from ppo_core.errors import ConfigError, EmptyMaskError, NonFiniteError, ShapeError, UserError
    from ppo_core.forward import (
        forward_groups,
        response_and_final_values,
        response_logprobs,
        response_values,
        token_logits,
        token_logprobs,
    )
    from ppo_core.heads import HeadCritic, TrunkCritic
    from ppo_core.kl import KLEstimator, exact_kl, kl_estimate, next_kl_coef
    from ppo_core.logprobs import entropy, gather_logprobs, linear_logprobs
    from ppo_core.losses import aggregate_loss, importance_weights, kl_loss, pg_loss, policy_loss, value_loss
    from ppo_core.masking import explained_variance, masked_mean, masked_whiten
    from ppo_core.packing import micro_batches, minibatches
    from ppo_core.precision import InPrecision
    from ppo_core.preferences import (
        CalibrationBin,
        calibration_bins,
        expected_calibration_error,
        preference_loss,
        ranking_loss,
    )
    from ppo_core.randomness import derive_seed, row_uniforms
    from ppo_core.rewards import RunningMoments, overlong_penalty, token_rewards, treated_scores
    from ppo_core.sampling import sample
    from ppo_core.sharded import inside, shard, whole
    from ppo_core.shares import ALONE, Sharing, add_gradients
    from ppo_core.update import MinibatchStats, Optimizers, UpdateStats, ppo_update

__all__ = [
    "ALONE",
    "AS_FEW_AS_POSSIBLE",
    "CalibrationBin",
    "ConfigError",
    "EmptyMaskError",
    "GroupEstimator",
    "HeadCritic",
    "InPrecision",
    "KLEstimator",
    "MinibatchStats",
    "NonFiniteError",
    "Optimizers",
    "PPOConfig",
    "PaddedBatch",
    "Ragged",
    "RolloutBatch",
    "RunningMoments",
    "SamplingConfig",
    "ShapeError",
    "Sharing",
    "TrunkCritic",
    "UpdateStats",
    "UserError",
    "add_gradients",
    "aggregate_loss",
    "calibration_bins",
    "can_share",
    "derive_seed",
    "entropy",
    "exact_kl",
    "expected_calibration_error",
    "explained_variance",
    "forward_groups",
    "gae",
    "gather_logprobs",
    "group_advantages",
    "importance_weights",
    "inside",
    "kl_estimate",
    "kl_loss",
    "length_adaptive_lam",
    "linear_logprobs",
    "masked_mean",
    "masked_whiten",
    "micro_batches",
    "minibatches",
    "next_kl_coef",
    "overlong_penalty",
    "pg_loss",
    "policy_loss",
    "ppo_update",
    "preference_loss",
    "ranking_loss",
    "response_and_final_values",
    "response_logprobs",
    "response_values",
    "rewards_to_go",
    "row_uniforms",
    "sample",
    "shard",
    "token_logits",
    "token_logprobs",
    "token_rewards",
    "treated_scores",
    "value_loss",
    "whole",
]

_MODULES = (
    "advantages",
    "batch",
    "config",
    "errors",
    "forward",
    "heads",
    "kl",
    "logprobs",
    "losses",
    "masking",
    "packing",
    "precision",
    "preferences",
    "randomness",
    "rewards",
    "sampling",
    "sharded",
    "shares",
    "update",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ppo_core' has no attribute {name!r}")
    for module in _MODULES:
        found = vars(import_module(f"ppo_core.{module}"))
        globals().update({public: found[public] for public in __all__ if public in found})
    return globals()[name]
