"""Scores of responses: reward models, reward functions, and their weighted sum."""

from tasks.scoring.mixture import last_token_scores, model_scores, score_rows, weighted_sum

__all__ = ["last_token_scores", "model_scores", "score_rows", "weighted_sum"]
