"""What a round is measured by: rewards held out of training, held-out prompts, and its report."""

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.config.base import StageConfig
from tasks.config.engines import SamplingEngine
from tasks.config.model_access import ModelStageConfig
from tasks.config.rewards import Rewards


class EvaluationConfig(StageConfig):
    """How policy and reference are compared after each round."""

    samples_per_prompt: int = Field(1, gt=0)
    held_out_rewards: Rewards = Field({})
    """Rewards that training never sees: what is really wanted, where it can be measured. Stored beside the score."""


class EvaluatePolicyConfig(ModelStageConfig):
    """What the stage reads. Evaluation samples as training does."""

    samples_per_prompt: int
    rewards: Rewards
    held_out_rewards: Rewards
    engine: SamplingEngine = "builtin"
    sampling: SamplingConfig
    stop_strings: tuple[str, ...] = ()


class AuditRolloutsConfig(ModelStageConfig):
    """What the stage reads."""

    held_out_rewards: Rewards


class ReportRoundConfig(StageConfig):
    """How much of a round its report shows."""

    num_samples: int = Field(24, gt=0)
    """Rollouts of the last iteration in the table of samples: the best, the worst, and evenly between."""
