"""Scores of responses: reward models, reward functions, and their weighted sum."""

from tasks.scoring.mixture import score_rows, weighted_sum
from tasks.scoring.reward_models import last_token_scores, model_scores

__all__ = ["last_token_scores", "model_scores", "score_rows", "weighted_sum"]
