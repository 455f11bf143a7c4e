"""Stage: the policy against the reference, on prompts held out of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ppo_core import Ragged
from tasks.config import EvaluatePolicyConfig, RewardConfig
from tasks.contract import StageContext, StageOutput
from tasks.metrics import (
    correlation,
    correlation_stderr,
    distinct_metric,
    empty_metric,
    gain,
    lead,
    mean_metric,
    mean_stderr,
    moments,
    with_stderr,
)
from tasks.models import Models
from tasks.sampling import Sampler, batch_logprobs, rollout_batch
from tasks.sampling.engines import engine_differences
from tasks.scoring import score_rows, weighted_sum
from tasks.store import Ref, Table, concatenate, evaluation_schema, read_dataset, with_columns, write_dataset


def evaluate_policy(
    context: StageContext,
    config: EvaluatePolicyConfig,
    *,
    policy: Ref,
    reference: Ref,
    reward_model: Ref | None,
    external: Mapping[str, Ref],
    data: Ref,
) -> StageOutput:
    """Sample both with the same randomness, score both with everything there is, and say how far they are apart."""
    prompts = read_dataset(data.directory / "held_out_prompts")
    components = {**config.rewards, **config.held_out_rewards}
    num_rows = prompts.num_rows * config.samples_per_prompt
    models = Models(context, config.access)
    tables: dict[str, Table] = {}
    for number, (name, ref) in enumerate({"policy": policy, "reference": reference}.items()):
        sampler = Sampler(models, ref, engine=config.engine, proof_prompts=prompts)
        table = sampler.sample(
            prompts,
            samples_per_prompt=config.samples_per_prompt,
            sampling=config.sampling,
            stop_strings=config.stop_strings,
            seed_of=lambda prompt_id, index: context.seed("evaluation", prompt_id, index),
            on_rows=lambda rows, tokens, before=number * num_rows: context.progress(  # type: ignore[misc]
                before + rows, 2 * num_rows, tokens=tokens
            ),
        )
        engine_differences(table, context)
        batch = rollout_batch(table)
        ref_logprobs = batch_logprobs(models, models.policy(reference), batch, temperature=config.sampling.temperature)
        scores = score_rows(
            models,
            table,
            components,
            policy=policy,
            reward_model=reward_model,
            external=external,
            held_out=config.held_out_rewards,
        )
        trained_on = {component: scores[component] for component in config.rewards}
        added: dict[str, Any] = {
            "sampled_by": [name] * num_rows,
            "score": weighted_sum(trained_on, config.rewards),
            **{f"score_{component}": own for component, own in scores.items()},
            "ref_logprobs": Ragged(ref_logprobs, batch.responses.offsets),
        }
        tables[name] = with_columns(table, added, evaluation_schema(list(scores)))
    write_dataset(context.output / "evaluation", concatenate(list(tables.values())))
    return StageOutput(
        rows=2 * num_rows,
        metrics={
            **comparison(tables["policy"], tables["reference"], list(components)),
            **doubts(tables["policy"], tables["reference"], config.rewards, list(config.held_out_rewards)),
        },
    )


def comparison(policy: "Table", reference: "Table", components: list[str]) -> dict[str, float]:
    """Means of both, and each score's gain in units of the reference's standard deviation over responses."""

    def column(table: "Table", name: str) -> torch.Tensor:
        return torch.tensor(table.column(name).to_pylist(), dtype=torch.float64)

    metrics: dict[str, float] = {}
    for name in ["score", *(f"score_{component}" for component in components)]:
        ours, theirs = column(policy, name), column(reference, name)
        std = float(theirs.std()) if len(theirs) > 1 else 0.0
        label = name.removeprefix("score_")
        metrics[f"evaluation/{label}"] = float(ours.mean())
        metrics[f"evaluation/reference_{label}"] = float(theirs.mean())
        metrics[f"evaluation/reference_{label}_std"] = std
        if std > 0:
            metrics[f"evaluation/{label}_gain"] = (float(ours.mean()) - float(theirs.mean())) / std
    logratio = [
        sum(own) - sum(ref)
        for own, ref in zip(
            policy.column("logprobs").to_pylist(), policy.column("ref_logprobs").to_pylist(), strict=True
        )
    ]
    metrics["evaluation/kl"] = sum(logratio) / len(logratio)
    return metrics


def doubts(
    policy: "Table", reference: "Table", rewards: Mapping[str, RewardConfig], held_out: Sequence[str]
) -> dict[str, float]:
    """What speaks against believing the gain: lengths, empty and repetitive responses, rewards that do not rise with the
    score, and a reward model that does not follow them on the reference's own responses."""

    def column(table: "Table", name: str) -> list[float]:
        return list(table.column(name).to_pylist())

    metrics: dict[str, float] = {}
    prompts = reference.column("prompt_id").to_pylist()
    for prefix, table in {"evaluation/": policy, "evaluation/reference_": reference}.items():
        responses = table.column("response_token_ids").to_pylist()
        metrics |= mean_metric(f"{prefix}response_length", [len(ids) for ids in responses], prompts)
        metrics |= empty_metric(f"{prefix}empty_share", table.column("response").to_pylist(), prompts)
        metrics |= distinct_metric(f"{prefix}distinct_2", responses, 2, prompts)
    by_models = [name for name, reward in rewards.items() if reward.is_learned]
    learned = [
        sum(rewards[name].weight * score for name, score in zip(by_models, row, strict=True))
        for row in zip(*(column(reference, f"score_{name}") for name in by_models), strict=True)
    ]
    scores, before = column(policy, "score"), column(reference, "score")
    for name in held_out:
        own, theirs = column(policy, f"score_{name}"), column(reference, f"score_{name}")
        start = {"score": moments(before), "other": moments(theirs)}
        ahead = gain(moments(scores), start["score"]) - gain(moments(own), start["other"])
        # Both answered the same prompts, so what is independent is the difference at a prompt.
        leads = zip(lead(scores, own, **start), lead(before, theirs, **start), strict=True)
        spread = mean_stderr([now - then for now, then in leads], prompts)
        metrics |= with_stderr(f"evaluation/{name}_gap", ahead, spread)
        if learned:
            follows = correlation(learned, theirs)
            stderr = correlation_stderr(follows, prompts)
            metrics |= with_stderr(f"evaluation/reference_{name}_correlation", follows, stderr)
    return metrics
