"""The table of the kinds of rewards: what computes the scores of each. A kind of a few lines has its class here."""

from collections.abc import Mapping
from typing import Any

from tasks.config import RewardConfig, rewards
from tasks.scoring.functions import FunctionScorer
from tasks.scoring.reward_models import ModelScorer
from tasks.scoring.scorer import Scorer

SCORERS: Mapping[type[RewardConfig], type[Scorer[Any]]] = {
    rewards.TrainedReward: ModelScorer,
    rewards.ModelReward: ModelScorer,
    rewards.FunctionReward: FunctionScorer,
}
