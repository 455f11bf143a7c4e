"""The optimizers, and what one update reads."""

from pydantic import Field

from ppo_core.config import PPOConfig
from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig


class OptimizersConfig(StageConfig):
    """Two optimizers with learning rates of their own, on one schedule over the iterations of a round."""

    learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False)
    """The policy's."""
    critic_learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False)
    critic_warmup: int = Field(0, ge=0)
    """Iterations at the run's beginning in which the critic trains alone and the policy stays as it is."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    warmup_iterations: int = Field(0, ge=0)
    """Iterations over which the learning rates rise to their full value in each round."""
    decay: str = Field("constant", pattern="^(constant|linear|cosine)$")
    """constant, linear or cosine: how they fall after that, to a tenth at the round's last iteration."""

    def factor(self, iteration: int, iterations: int) -> float:
        """What both learning rates are multiplied by in an iteration (from 1) of a round of so many."""
        import math

        if iteration <= self.warmup_iterations:
            return iteration / (self.warmup_iterations + 1)
        progress = (iteration - 1 - self.warmup_iterations) / max(1, iterations - 1 - self.warmup_iterations)
        if self.decay == "linear":
            return 1 - 0.9 * progress
        if self.decay == "cosine":
            return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        return 1.0


class UpdatePolicyConfig(ModelStageConfig):
    """What the stage reads; the learning rates are those of this iteration."""

    ppo: PPOConfig
    temperature: float
    learning_rate: float
    critic_learning_rate: float
    weight_decay: float
    train_policy: bool = True
