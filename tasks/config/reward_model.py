"""The reward model that a run trains."""

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig


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
