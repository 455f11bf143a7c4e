"""What computes the scores of a reward."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from tasks.config import RewardConfig
from tasks.models import Models
from tasks.store import Ref, Table

R = TypeVar("R", bound=RewardConfig)


@dataclass(frozen=True, kw_only=True)
class Scorer(ABC, Generic[R]):
    """One component of the score in a run."""

    field: str
    """That of the reward in the configuration, by which messages name it."""
    reward: R
    models: Models
    policy: Ref
    """What sampled the responses; its tokenizer reads their ids."""
    model: Ref | None
    """The reward model that the reward is, the run's own or somebody else's; None for one that is no model."""

    @property
    def where(self) -> str:
        """Whose scores these are, in messages."""
        return self.field

    @abstractmethod
    def score(self, rollouts: Table) -> list[float]:
        """One number per rollout, in their order."""
