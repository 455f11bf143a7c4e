"""Stage: the policy against the reference, on prompts held out of training."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.rewards import Rewards
from tasks.samplers import SamplingEngine
from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref

if TYPE_CHECKING:
    from tasks.schemas import Table


class EvaluationConfig(StageConfig):
    """How policy and reference are compared after each round."""

    samples_per_prompt: int = Field(1, gt=0)
    held_out_rewards: Rewards = Field({})
    """Rewards that training never sees: what is really wanted, where it can be measured. Stored beside the score."""


class EvaluatePolicyConfig(StageConfig):
    """What the stage reads. Evaluation samples as training does."""

    samples_per_prompt: int
    rewards: Rewards
    held_out_rewards: Rewards
    engine: SamplingEngine = "builtin"
    sampling: SamplingConfig
    stop_strings: tuple[str, ...] = ()
    trust_remote_code: bool = False


@stage(version="3", config=EvaluatePolicyConfig)
def evaluate_policy(
    context: StageContext,
    config: EvaluatePolicyConfig,
    *,
    policy: Ref,
    reference: Ref,
    reward_model: Ref | None,
    external: list[Ref],
    data: Ref,
    lora_base: Ref | None = None,
) -> StageOutput:
    """Sample both with the same randomness, score both with everything there is, and say how far they are apart."""
    from ppo_core import Ragged
    from tasks.learners import Learners
    from tasks.responses import Sampler, rollout_batch
    from tasks.samplers.agreement import engine_differences
    from tasks.schemas import concatenate, evaluation, with_columns
    from tasks.scoring import score_rows, weighted_sum
    from tasks.store import read_dataset, write_dataset

    prompts = read_dataset(data.directory / "held_out_prompts")
    components = {**config.rewards, **config.held_out_rewards}
    num_rows = prompts.num_rows * config.samples_per_prompt
    learners = Learners(context=context, lora_base=lora_base, trust_remote_code=config.trust_remote_code)
    tables: dict[str, Table] = {}
    for number, (name, model) in enumerate({"policy": policy, "reference": reference}.items()):
        sampler = Sampler(context, model, learners, engine=config.engine, proof_prompts=prompts)
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
        ref_logprobs = sampler.logprobs(learners.policy(reference), batch, temperature=config.sampling.temperature)
        scores = score_rows(context, table, components, policy=policy, reward_model=reward_model, external=external)
        trained_on = {component: scores[component] for component in config.rewards}
        added: dict[str, Any] = {
            "sampled_by": [name] * num_rows,
            "score": weighted_sum(trained_on, config.rewards),
            **{f"score_{component}": own for component, own in scores.items()},
            "ref_logprobs": Ragged(ref_logprobs, batch.responses.offsets),
        }
        tables[name] = with_columns(table, added, evaluation(list(scores)))
    write_dataset(context.output / "evaluation", concatenate(list(tables.values())))
    return StageOutput(rows=2 * num_rows, metrics=comparison(tables["policy"], tables["reference"], list(components)))


def comparison(policy: "Table", reference: "Table", components: list[str]) -> dict[str, float]:
    """Means of both, and each score's gain in units of the reference's standard deviation over responses."""
    import torch

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
    for name, table in {"": policy, "reference_": reference}.items():
        lengths = [len(ids) for ids in table.column("response_token_ids").to_pylist()]
        metrics[f"evaluation/{name}response_length"] = sum(lengths) / len(lengths)
    metrics["evaluation/kl"] = sum(logratio) / len(logratio)
    return metrics
