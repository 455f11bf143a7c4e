"""What a reward is, in the configuration."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig

TRAINED = "trained"


class RewardConfig(StageConfig):
    """One component of the score: a reward model or a Python function, with its weight in the sum."""

    model: str | None = None
    """``trained`` for the reward model that this run trains, else the name or directory of a sequence classifier."""
    function: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """Instead of a model, the import path ``module:function`` of ``(prompts, responses, rows) -> list[float]``."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Of its score in the sum."""
    code: str = Field("", repr=False, json_schema_extra={"readOnly": True})
    """Digest of the function's module, so that an edited function scores again; filled in when the run starts."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.model is None) == (self.function is None):
            raise ValueError("give a reward either a model or a function")
        return self

    @property
    def is_trained_in_run(self) -> bool:
        return self.model == TRAINED

    @property
    def names_model(self) -> bool:
        """Whether it is a finished reward model of somebody else's."""
        return self.model is not None and not self.is_trained_in_run


def by_name(rewards: Mapping[str, RewardConfig]) -> dict[str, RewardConfig]:
    return dict(sorted(rewards.items()))


# A run stores its configuration with sorted keys. Read from there or from what the user wrote, in whatever order, the same
# rewards must give the same columns, the same sum and the same list of models.
Rewards = Annotated[Mapping[str, RewardConfig], AfterValidator(by_name)]


class ScoreRolloutsConfig(ModelStageConfig):
    """The components of the score, and the temperature at which the rollouts were sampled."""

    rewards: Rewards
    temperature: float
    exact_kl: bool = False
    """Add the exact KL at each position, for a penalty that is made of it."""
