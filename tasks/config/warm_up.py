"""Supervised training before any reinforcement learning."""

from pydantic import Field

from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig


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
