"""Stage: a reward model from preferences, calibrated on the reference policy's responses."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ppo_core import ranking_loss
from tasks.config import TrainRewardModelConfig
from tasks.contract import Gates, StageContext, StageOutput
from tasks.errors import DataError
from tasks.models import POLICY, REWARD_MODEL, Models, ScalarModel, descend, part_directory, shuffled
from tasks.sampling import CALIBRATION, calibration_rollouts
from tasks.scoring import last_token_scores, model_scores
from tasks.scoring.held_out_pairs import BY_LENGTH, held_out_pairs, pack_groups, pairs_table, quality_of
from tasks.store import Ref, read_dataset, write_dataset, write_json
from tasks.text import OPTIONS_FILE, copy_tokenizer, encode_dialogues, options_of


def train_reward_model(
    context: StageContext, config: TrainRewardModelConfig, *, base: Ref, reference: Ref, data: Ref
) -> StageOutput:
    """Bradley–Terry over all ordered pairs of each preference, every preference with the same weight."""
    source = part_directory(base, REWARD_MODEL, POLICY)
    models = Models(context, config.access)
    # Without a base of its own it reads as the policy does.
    tokenizer = models.tokenizer(source, options=config.access.chat_template_kwargs if config.base is None else None)
    model = models.new_reward_model(base, seed=context.seed("head"))
    train = read_dataset(data.directory / "preferences").to_pylist()
    held_out = read_dataset(data.directory / "held_out_preferences").to_pylist()
    if config.use_margins and all(row["margin"] is None for row in train):
        raise DataError(
            "reward_model.use_margins: no preference has a margin; add the column, or leave use_margins out"
        )
    losses = fit(models, model, train, tokenizer, config)
    # Before the scores are rescaled: σ(s⁺ − s⁻) is a probability only on the scale of the training loss.
    scores_of = partial(last_token_scores, models, model)
    pairs = held_out_pairs(held_out, tokenizer, context.execution.micro_batch_tokens, scores_of)
    quality = quality_of(pairs)
    gates = Gates(context)
    require_better_than_chance(quality, context.health.min_reward_model_accuracy, gates)
    mean, std = calibrate(models, model, source, config, reference=reference, data=data)
    models.scalar_writer(model, source)(context.output / REWARD_MODEL)
    copy_tokenizer(source, context.output / REWARD_MODEL)
    if options := options_of(tokenizer):
        # So that whoever scores with it renders a conversation as here.
        write_json(context.output / REWARD_MODEL / OPTIONS_FILE, dict(options))
    write_dataset(context.output / "held_out_pairs", pairs_table(held_out, pairs))
    write_json(context.output / "calibration.json", {**quality, "score_mean": mean, "score_std": std})
    return StageOutput(
        rows=len(train),
        metrics={
            "reward_model/steps": float(len(losses)),
            "reward_model/loss": sum(losses[-10:]) / len(losses[-10:]),
            "reward_model/accuracy": quality["accuracy"],
            "reward_model/accuracy_error": quality["accuracy_error"],
            **{f"reward_model/{name}": quality[name] for name in BY_LENGTH if quality[name] is not None},
            "reward_model/mean_margin": quality["mean_margin"],
            "reward_model/calibration_error": quality["calibration_error"],
            "reward_model/score_mean": mean,
            "reward_model/score_std": std,
            "health/warnings": float(len(gates.warnings)),
        },
        resident={REWARD_MODEL: model},
    )


def fit(
    models: Models,
    model: ScalarModel,
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainRewardModelConfig,
) -> list[float]:
    """Train the model on preferences, and return the loss of each step."""
    context, device = models.context, models.device
    num_pairs = [pairs_in(row["ranks"]) for row in rows]
    dialogues = [encode_dialogues(tokenizer, row, row["responses"]) for row in rows]

    def passes(batch: Sequence[int]) -> list[Callable[[float], float]]:
        def backward(part: Sequence[int], factor: float) -> float:
            chosen = [batch[k] for k in part]
            group_ids = [g for g, i in enumerate(chosen) for _ in dialogues[i]]
            ranks = [rank for i in chosen for rank in rows[i]["ranks"]]
            scores = last_token_scores(models, model, [ids for i in chosen for ids in dialogues[i]])
            margin = [rows[i]["margin"] or 0.0 for i in chosen for _ in dialogues[i]] if config.use_margins else None
            loss = ranking_loss(
                scores,
                torch.tensor(ranks, device=device),
                torch.tensor(group_ids, device=device),
                margin=None if margin is None else torch.tensor(margin, device=device),
                centering=config.centering,
            ) * (len(chosen) / len(batch))
            (loss * factor).backward()
            return float(loss.detach())

        parts = pack_groups([dialogues[i] for i in batch], context.execution.micro_batch_tokens)
        return [partial(backward, part) for part in parts]

    def batches(epoch: int) -> list[list[int]]:
        order = shuffled(len(rows), seed=context.seed("reward_model"), epoch=epoch)
        return batches_of_pairs(order, num_pairs, config.batch_size)

    return descend(
        list(model.parameters()),
        batches,
        passes,
        sharing=models.sharing,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        warmup_share=config.warmup_share,
        max_grad_norm=config.max_grad_norm,
        on_step=lambda step, steps, _: context.progress(step, steps, unit="steps"),
    )


def calibrate(
    models: Models, model: ScalarModel, source: Path, config: TrainRewardModelConfig, *, reference: Ref, data: Ref
) -> tuple[float, float]:
    """Give the scores of the reference's responses mean 0 and standard deviation 1; what they were is returned.

    A critic may learn from the same responses, so they are kept.
    """
    rollouts = calibration_rollouts(
        models,
        reference=reference,
        data=data,
        num_samples=config.calibration_samples,
        sampling=config.sampling,
        stop_strings=config.stop_strings,
    )
    write_dataset(models.context.output / CALIBRATION / "rollouts", rollouts)
    scores = torch.tensor(model_scores(models, model, source, rollouts, reference, to_the_end=False))
    mean, std = float(scores.mean()), max(float(scores.std()), 1e-6)
    model.calibrate(mean, std)
    return mean, std


def pairs_in(ranks: Sequence[int]) -> int:
    """How many pairs of responses a ranking orders; a tie is none."""
    return sum(a != b for a, b in combinations(ranks, 2))


def batches_of_pairs(order: Sequence[int], num_pairs: Sequence[int], batch_size: int) -> list[list[int]]:
    """The preferences in this order, cut into batches whose pairs are as near to ``batch_size`` as whole ones allow.

    A ranking of many responses may be a batch of its own. What is left at the end is one too.
    """
    batches: list[list[int]] = []
    filled = 0
    for preference in order:
        with_it = filled + num_pairs[preference]
        if not batches or abs(with_it - batch_size) > abs(filled - batch_size):
            batches.append([])
            with_it = num_pairs[preference]
        batches[-1].append(preference)
        filled = with_it
    return batches


FEWEST_TO_STOP_BY = 25
"""Held-out preferences with which a standard error at chance is 0.1: fewer cannot tell a good model from a coin."""


def require_better_than_chance(quality: dict[str, Any], limit: float, gates: Gates) -> None:
    """Stop a run that would follow a reward model which tells responses apart no better than ``limit``."""
    accuracy, error = quality["accuracy"], quality["accuracy_error"]
    measured = f"{accuracy:.2f} ± {error:.2f} of {quality['pairs']} held-out pairs"
    if quality["preferences"] < FEWEST_TO_STOP_BY:
        # A handful may by chance be all right or all wrong, and their standard error is then 0.
        message = (
            f"the reward model is right for {measured}, too few to tell it from chance; give more preferences, or hold out "
            "more of them (data.held_out_preferences)"
        )
    else:
        message = (
            f"the reward model is right for {measured}, which is not above health.min_reward_model_accuracy={limit:g} by a "
            "standard error, so that a policy would follow noise; look at whether the labels say what is meant, give more "
            "preferences, more epochs or a better reward_model.base"
        )
    gates.require(
        "min_reward_model_accuracy",
        limit == 0 or accuracy - error > limit,
        message,
        can_stop=quality["preferences"] >= FEWEST_TO_STOP_BY,
    )
