"""The table of the kinds of rewards: what computes the scores of each. A kind of a few lines has its class here."""

from collections.abc import Mapping
from typing import Any

from tasks.config import FunctionReward, ModelReward, RewardConfig, TrainedReward
from tasks.scoring.functions import FunctionScorer
from tasks.scoring.reward_models import ModelScorer
from tasks.scoring.scorer import Scorer

SCORERS: Mapping[type[RewardConfig], type[Scorer[Any]]] = {
    TrainedReward: ModelScorer,
    ModelReward: ModelScorer,
    FunctionReward: FunctionScorer,
}
