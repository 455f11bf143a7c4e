"""What the critic learns before the first iteration asks it."""

from collections.abc import Mapping

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig
from tasks.config.rewards import ScoreRolloutsConfig


class CriticPretrainingConfig(StageConfig):
    """Supervised training of the critic on responses of the reference (VC-PPO, arXiv:2503.01491)."""

    samples: int = Field(256, gt=1)
    """Responses to train and measure on, where the run trains no reward model; else they are those of
    ``reward_model.calibration_samples``."""
    epochs: int = Field(4, gt=0)
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Null takes ``optimizers.critic_learning_rate``."""
    batch_size: int = Field(16, gt=0)
    """Responses in one optimizer step."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = Field(1.0, gt=0)


class CriticPretrainingStageConfig(CriticPretrainingConfig, ModelStageConfig):
    """What the stage reads."""

    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    scoring: ScoreRolloutsConfig
    advantages: ComputeAdvantagesConfig
    """Its returns are the targets: with ``critic_lam: 1`` what was received."""
    versions: Mapping[str, str]
    """Of these two stages: another way to make the targets makes another critic."""
    sampling: SamplingConfig
    stop_strings: tuple[str, ...] = ()
