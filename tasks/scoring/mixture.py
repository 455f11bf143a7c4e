"""Scores of responses: each reward of a run, and their weighted sum.

A component is one reward with a name. Its raw score is stored under that name; the sum of weight times score is ``score``.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from tasks.config import RewardConfig
from tasks.errors import RewardError
from tasks.models import Models
from tasks.scoring.kinds import SCORERS
from tasks.store import Ref, Table


def score_rows(
    models: Models,
    rollouts: Table,
    rewards: Mapping[str, RewardConfig],
    *,
    policy: Ref,
    reward_model: Ref | None,
    external: Mapping[str, Ref],
    held_out: Collection[str] = (),
) -> dict[str, list[float]]:
    """Each component's scores by its name. ``external`` are the models of those that name one, by the same names;
    those of ``held_out`` are the evaluation's own, and messages say so."""
    scores: dict[str, list[float]] = {}
    for name, reward in rewards.items():
        field = f"{'evaluation.held_out_rewards' if name in held_out else 'rewards'}.{name}"
        model = reward_model if reward.is_trained_in_run else external.get(name)
        scorer = SCORERS[type(reward)](field=field, reward=reward, models=models, policy=policy, model=model)
        scores[name] = scorer.score(rollouts)
        require_finite(scores[name], rollouts, where=scorer.where)
    return scores


def require_finite(scores: Sequence[float], rollouts: Table, *, where: str) -> None:
    """Refuse a score that training could not follow, by the rollout that it is of."""
    for row, score in enumerate(scores):
        if not math.isfinite(score):
            rollout = rollouts.select(["rollout_id", "response"]).slice(row, 1).to_pylist()[0]
            raise RewardError(
                f"{where} returned {score} for rollout {rollout['rollout_id']} ({rollout['response']!r:.60}); "
                "mend it so that it returns a finite score"
            )


def weighted_sum(scores: Mapping[str, Sequence[float]], rewards: Mapping[str, RewardConfig]) -> list[float]:
    """``Σ weight · score`` per row."""
    return [
        sum(rewards[name].weight * score for name, score in zip(scores, row, strict=True))
        for row in zip(*scores.values(), strict=True)
    ]
