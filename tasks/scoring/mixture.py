"""Scores of responses: reward models, reward functions, and their weighted sum.

A component is one reward with a name. Its raw score is stored under that name; the sum of weight times score is ``score``.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ppo_core import InPrecision, Ragged, micro_batches
from tasks.config import RewardConfig
from tasks.contract import StageContext
from tasks.errors import ModelError, RewardError
from tasks.models import (
    POLICY,
    REWARD_MODEL,
    ScalarModel,
    context_length,
    load_reward_model,
    part_directory,
    pick_device,
    pick_dtype,
    why_limited,
)
from tasks.scoring.functions import function_scores
from tasks.store import Ref, Table
from tasks.text import decode_response, encode_dialogues, load_tokenizer

PASS_COST = 64
"""What a forward pass costs besides its tokens, in tokens."""


def last_token_scores(
    model: ScalarModel, rows: Sequence[Sequence[int]], *, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """(B,) scalars at the last token of each row of token ids, in one forward pass."""
    ragged = Ragged.from_rows(rows, torch.int64)
    assert bool((ragged.lengths > 0).all()), "a row without a token has no last token"
    scores = InPrecision(model, dtype)(input_ids=ragged.padded(fill=0).to(device))
    return scores.gather(1, ragged.lengths.to(device)[:, None] - 1).squeeze(1)


@torch.inference_mode()
def scores_in_batches(
    model: ScalarModel, rows: Sequence[Sequence[int]], *, token_budget: int, device: torch.device, dtype: torch.dtype
) -> list[float]:
    """Scores of any number of rows, in their order."""
    config = model.model.config.get_text_config()
    limit, longest = context_length(config), max(map(len, rows), default=0)
    if limit is not None and longest > limit:
        raise ModelError(
            f"a prompt with its response takes {longest} tokens as the reward model reads it, and that has a context "
            f"of {limit}{why_limited(config)}; lower rollouts.sampling.max_new_tokens, or name one with a longer context"
        )
    scores = torch.empty(len(rows))
    lengths = torch.tensor([len(row) for row in rows])
    for part in micro_batches(lengths, token_budget, group_cost=PASS_COST):
        own = last_token_scores(model, [rows[i] for i in part.tolist()], device=device, dtype=dtype)
        scores[part] = own.float().cpu()
    return scores.tolist()


def model_scores(
    context: StageContext,
    model: ScalarModel,
    model_directory: Path,
    rollouts: Table,
    policy_directory: Path,
    *,
    to_the_end: bool,
    trust_remote_code: bool = False,
) -> list[float]:
    """Scores by a reward model, which reads each dialogue in its own tokenizer's and template's way, as it was trained.

    A response's own special tokens are written out, what ended it gives way to the reward model's own end of a dialogue,
    and one that was cut off is read as if it ended there: what that counts for is settled with the advantages.
    ``to_the_end`` as in ``encode_dialogue``.
    """
    device = pick_device(context.execution)
    model = model.to(device).eval()
    tokenizer = load_tokenizer(str(model_directory), trust_remote_code=trust_remote_code)
    policy_tokenizer = load_tokenizer(str(policy_directory), trust_remote_code=trust_remote_code)
    columns = rollouts.select(["prompt", "messages", "response_token_ids", "finish_reason"]).to_pylist()
    rows = []
    for row in columns:
        finished = row["finish_reason"] == "stop"
        text = decode_response(policy_tokenizer, row["response_token_ids"], finished=finished, special_tokens=True)
        rows += encode_dialogues(tokenizer, row, [text], to_the_end=to_the_end)
    return scores_in_batches(
        model,
        rows,
        token_budget=context.execution.micro_batch_tokens,
        device=device,
        dtype=pick_dtype(context.execution, device),
    )


def score_rows(
    context: StageContext,
    rollouts: Table,
    rewards: Mapping[str, RewardConfig],
    *,
    policy: Ref,
    reward_model: Ref | None,
    external: Sequence[Ref],
    trust_remote_code: bool = False,
) -> dict[str, list[float]]:
    """Each component's scores by its name. ``external`` are the models of the components that name one, in their order."""
    others = iter(external)
    policy_directory = part_directory(policy, POLICY)
    scores: dict[str, list[float]] = {}
    for name, reward in rewards.items():
        if reward.function is not None:
            scores[name] = function_scores(
                name, reward.function, rollouts, policy_directory, trust_remote_code=trust_remote_code
            )
            continue
        ref = reward_model if reward.is_trained_in_run else next(others)
        assert ref is not None, "the configuration refuses a trained reward without a reward model"
        directory = part_directory(ref, REWARD_MODEL)
        model = context.models.get(
            ref,
            REWARD_MODEL,
            lambda d=directory: load_reward_model(d, trust_remote_code=trust_remote_code),  # type: ignore[misc]
        )
        # A model of others was trained on all that its template writes; ours, calibrated, up to the end of the turn.
        to_the_end = not model.is_calibrated
        scores[name] = model_scores(
            context,
            model,
            directory,
            rollouts,
            policy_directory,
            to_the_end=to_the_end,
            trust_remote_code=trust_remote_code,
        )
        require_finite(scores[name], rollouts, where=f"rewards.{name}: {directory}")
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
