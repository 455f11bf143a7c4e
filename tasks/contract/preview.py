"""What is looked at before a run is started."""

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.config import DataConfig, ExecutionConfig, FromScratchConfig, ModelAccess, ModelChecks, Rewards
from tasks.config.base import StageConfig


class TrialConfig(StageConfig):
    """What a few responses, passes and steps are tried with."""

    sampling: SamplingConfig
    rewards: Rewards = Field({})
    """Those that are functions; each is called once, with what was sampled."""


class PreviewConfig(StageConfig):
    """What of a run is looked at, small enough to send."""

    data: DataConfig
    seed: int
    checks: ModelChecks
    access: ModelAccess
    """How the policy is loaded, and what its chat template is used with."""
    from_scratch: FromScratchConfig | None = None
    execution: ExecutionConfig = ExecutionConfig()
    first_rows: int | None = None
    """Of each file no more than these are read, and functions and hub data sets not at all; null reads everything."""
    trial: TrialConfig | None = None
    """Null tries nothing, so that no weights are read."""
