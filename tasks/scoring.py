"""Scores of responses: reward models, reward functions, and their weighted sum.

A component is one reward with a name. Its raw score is stored under that name; the sum of weight times score is ``score``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ppo_core import InPrecision, Ragged, micro_batches
from tasks.errors import ModelError, RewardError, TransientError
from tasks.imports import import_function
from tasks.models import (
    POLICY,
    REWARD_MODEL,
    ScalarModel,
    load_scalar_model,
    part_directory,
    pick_device,
    pick_dtype,
    read_model_config,
)
from tasks.responses import batch_values, rollout_batch
from tasks.retry import is_a_service_s
from tasks.rewards import RewardConfig
from tasks.schemas import Table
from tasks.stage import StageContext
from tasks.store import Ref
from tasks.text import encode_dialogue, load_tokenizer, same_tokenizer

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
    scores = torch.empty(len(rows))
    lengths = torch.tensor([len(row) for row in rows])
    for part in micro_batches(lengths, token_budget, group_cost=PASS_COST):
        own = last_token_scores(model, [rows[i] for i in part.tolist()], device=device, dtype=dtype)
        scores[part] = own.float().cpu()
    return scores.tolist()


def encode_dialogues(tokenizer: Any, row: Mapping[str, Any], responses: Sequence[str]) -> list[list[int]]:
    """Token ids of a prompt with each of its complete responses, for a model of this tokenizer."""
    prompt = json.loads(row["messages"]) if row["messages"] else row["prompt"]
    return [encode_dialogue(tokenizer, prompt, response)[0] for response in responses]


def model_scores(
    context: StageContext, model: ScalarModel, model_directory: Path, rollouts: Table, policy_directory: Path
) -> list[float]:
    """Scores by a reward model: over the sampled tokens themselves, or over the text where its tokenizer is another."""
    device = pick_device(context.execution)
    model = model.to(device).eval()
    settings: dict[str, Any] = {
        "token_budget": context.execution.micro_batch_tokens,
        "device": device,
        "dtype": pick_dtype(context.execution, device),
    }
    if same_tokenizer(model_directory, policy_directory):
        _, scores = batch_values(model, rollout_batch(rollouts), **settings)
        return scores.tolist()
    tokenizer = load_tokenizer(str(model_directory))
    columns = rollouts.select(["prompt", "messages", "response", "finish_reason"]).to_pylist()
    rows = []
    for row in columns:
        prompt = json.loads(row["messages"]) if row["messages"] else row["prompt"]
        complete = row["finish_reason"] == "stop"
        rows.append(encode_dialogue(tokenizer, prompt, row["response"], complete=complete)[0])
    return scores_in_batches(model, rows, **settings)


def function_scores(name: str, import_path: str, rollouts: Table) -> list[float]:
    """Scores by a Python function ``(prompts, responses, rows) -> list[float]``, checked before anything is stored."""
    function = import_function(import_path, field=f"rewards.{name}.function")
    table = rollouts.select(["prompt", "response", "extra", "rollout_id", "prompt_id", "sample_index", "finish_reason"])
    rows = [{**json.loads(row.pop("extra") or "{}"), **row} for row in table.to_pylist()]
    prompts, responses = [row["prompt"] for row in rows], [row["response"] for row in rows]
    where = f"rewards.{name}: {import_path}"
    try:
        scores = function(prompts, responses, rows)
    except Exception as error:
        if is_a_service_s(error):
            raise TransientError(f"{where} raised {type(error).__name__}: {error}") from error
        raise RewardError(f"{where} raised {type(error).__name__}: {error}; mend it and run again") from error
    try:
        scores = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"{where} returned {scores!r:.80}, not a list of numbers; return one float per response"
        ) from error
    if len(scores) != len(rows):
        raise RewardError(f"{where} returned {len(scores)} scores for {len(rows)} responses; return one per response")
    return scores


def score_rows(
    context: StageContext,
    rollouts: Table,
    rewards: Mapping[str, RewardConfig],
    *,
    policy: Ref,
    reward_model: Ref | None,
    external: Sequence[Ref],
) -> dict[str, list[float]]:
    """Each component's scores by its name. ``external`` are the models of the components that name one, in their order."""
    others = iter(external)
    policy_directory = part_directory(policy, POLICY)
    scores: dict[str, list[float]] = {}
    for name, reward in rewards.items():
        if reward.function is not None:
            scores[name] = function_scores(name, reward.function, rollouts)
            require_finite(scores[name], rollouts, where=f"rewards.{name}: {reward.function}")
            continue
        ref = reward_model if reward.is_trained_in_run else next(others)
        assert ref is not None, "the configuration refuses a trained reward without a reward model"
        directory = part_directory(ref, REWARD_MODEL)
        model = context.models.get(ref, REWARD_MODEL, lambda d=directory: load_reward_model(d))  # type: ignore[misc]
        scores[name] = model_scores(context, model, directory, rollouts, policy_directory)
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


def load_reward_model(directory: Path) -> ScalarModel:
    """A finished reward model: one whose head would be drawn at random is refused."""
    config = read_model_config(directory)
    if not any("ForSequenceClassification" in name for name in config.architectures or []):
        raise ModelError(
            f"{directory} is a {(config.architectures or ['model without architecture'])[0]}, not a sequence classifier; "
            "name a reward model, or train one with the reward_model section"
        )
    return load_scalar_model(directory)


def weighted_sum(scores: Mapping[str, Sequence[float]], rewards: Mapping[str, RewardConfig]) -> list[float]:
    """``Σ weight · score`` per row."""
    return [
        sum(rewards[name].weight * score for name, score in zip(scores, row, strict=True))
        for row in zip(*scores.values(), strict=True)
    ]
