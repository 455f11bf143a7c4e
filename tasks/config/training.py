"""What is trained before PPO: the warm-up, the reward model, the critic."""

from collections.abc import Mapping

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig
from tasks.config.rewards import ScoreRolloutsConfig


class RewardModelConfig(StageConfig):
    """A reward model trained in the run."""

    base: str | None = None
    """Name or directory of the model it starts from; by default the policy that PPO starts from."""
    epochs: int = Field(1, gt=0)
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    batch_size: int = Field(32, gt=0)
    """Pairs in one optimizer step, about so many: a ranking counts all that it orders, K(K - 1)/2 of K responses without
    ties, and stays whole."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    use_margins: bool = False
    """Demand the margin that the data names between the scores of a pair; a ranking has none."""
    centering: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of the mean of (chosen + rejected score)², which keeps scores near 0."""
    calibration_samples: int = Field(256, gt=1)
    """Responses of the reference policy on which the scores get mean 0 and standard deviation 1."""


class TrainRewardModelConfig(RewardModelConfig, ModelStageConfig):
    """What the stage reads: the user's settings, and how the policy samples, for calibration."""

    sampling: SamplingConfig
    stop_strings: tuple[str, ...] = ()


class WarmUpConfig(StageConfig):
    """Supervised warm-up on ``data.texts``."""

    epochs: int = Field(1, gt=0)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)
    batch_tokens: int = Field(4096, gt=0)
    """Padded tokens in one optimizer step."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    max_grad_norm: float = Field(1.0, gt=0)


class WarmUpStageConfig(WarmUpConfig, ModelStageConfig):
    """What the stage reads."""


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
