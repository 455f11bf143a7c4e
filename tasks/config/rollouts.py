"""Which responses an iteration samples, and how."""

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.config.base import StageConfig
from tasks.config.engines import SamplingEngine
from tasks.config.model_access import ModelStageConfig


class GenerationConfig(StageConfig):
    """How an iteration's rollouts are made from a policy."""

    prompts_per_iteration: int = Field(64, gt=0)
    samples_per_prompt: int = Field(1, gt=0)
    shards: int = Field(1, gt=0)
    """Parts that are generated, scored and retried on their own; the rows are the same however many there are."""
    engine: SamplingEngine = "builtin"
    """What samples: the trainer itself, or vLLM, in process or by the servers of ``execution.engine_servers``. The update
    corrects for how another engine's log-probabilities differ from the trainer's."""
    sampling: SamplingConfig
    stop_strings: tuple[str, ...] = ()
    """A response also ends where one of these appears."""


class RolloutsConfig(GenerationConfig):
    """How an iteration's rollouts are made, and from which policy."""

    lag: int = Field(0, ge=0)
    """Updates that the policy which samples is behind the one that learns: iteration i samples from what iteration
    i - 1 - lag of its round left, the first lag + 1 from what the round starts from. So generation waits for no update that
    is under way, and several workers do both at once. The update corrects for the difference, as for another engine."""


class GenerateRolloutsConfig(GenerationConfig, ModelStageConfig):
    """What the stage reads."""


class GenerateCandidatesConfig(ModelStageConfig):
    """What the stage reads."""

    prompts: int = Field(gt=0)
    samples_per_prompt: int = Field(gt=1)
    engine: SamplingEngine = "builtin"
    sampling: SamplingConfig
    stop_strings: tuple[str, ...] = ()
