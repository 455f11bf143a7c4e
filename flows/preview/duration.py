"""How long the stages of a run should take, from a trial of seconds: every response as long as it may become."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flows.config import RunConfig
from flows.plan import Plan

OVERHEAD_S = 0.3
"""Of any stage: its task, its manifest, its files."""


def seconds_of_stages(
    config: RunConfig,
    trial: Mapping[str, float],
    sizes: Mapping[str, Any],
    lengths: Mapping[str, Sequence[int]],
    *,
    write_speed: float,
) -> dict[str, float]:
    """Of one execution of each stage, where rows of each kind have so many tokens and a second writes so many bytes."""
    own, others = sizes["parameters"], sizes["others"]
    responses = config.rollouts.prompts_per_iteration * config.rollouts.samples_per_prompt
    prompt = mean(lengths["prompts"])
    row = prompt + config.rollouts.sampling.max_new_tokens

    def generate(count: float) -> float:
        groups = max(1.0, math.ceil(count * row / config.execution.micro_batch_tokens))
        steps = config.rollouts.sampling.max_new_tokens
        drawn = steps * (groups * trial["step"] + count * trial["step_a_response"]) + count * trial["read"]
        again = 0.0 if sizes["forward_bytes"] == 4 else count * row * trial["forward_a_token"]
        return drawn + again

    reward_model = others.get("reward_model.base", own) if config.reward_model is not None else 0
    critic = own if config.has_critic and not config.model.critic_is_on_policy else 0
    externals = sum(count for field, count in others.items() if field.startswith("rewards."))
    forward = trial["forward_a_token"] / own
    learn, step = trial["learn_a_token"] / own, trial["optimizer_step"] / own

    def score(count: float) -> float:
        models = own + (critic or config.has_critic * own) + reward_model + externals
        return count * (row * forward * models + trial.get("function", 0.0))

    def train(parameters: float, tokens: float, steps: float) -> float:
        return parameters * (tokens * learn + steps * step)

    trained = sizes["adapter_parameters"] or own
    ppo = config.ppo
    update = ppo.epochs * (responses * row * learn * own + ppo.num_minibatches * step * trained)
    critic_epochs = ppo.critic_epochs or ppo.epochs
    update += critic_epochs * (responses * row * learn * critic + ppo.num_minibatches * step * critic)
    seconds = {
        "generate_rollouts": generate(responses / config.rollouts.shards),
        "score_rollouts": score(responses / config.rollouts.shards),
        "update_policy": update + checkpoint_bytes(config, sizes) / write_speed,
    }
    held_out = (
        config.data.num_held_out_prompts if not lengths.get("held_out_prompts") else len(lengths["held_out_prompts"])
    )
    evaluated = held_out * config.evaluation.samples_per_prompt
    seconds["evaluate_policy"] = 2 * (generate(evaluated) + score(evaluated))
    if config.warm_up is not None:
        tokens = sum(lengths["texts"]) * config.warm_up.epochs
        seconds["warm_up"] = train(own, tokens, tokens / config.warm_up.batch_tokens)
    calibrated = config.critic_pretraining.samples if config.critic_pretraining is not None else 0
    if config.reward_model is not None:
        calibrated = config.reward_model.calibration_samples
        pairs = lengths["num_preferences"][0] * config.reward_model.epochs
        trained_tokens = pairs * mean(lengths["preferences"])
        seconds["train_reward_model"] = train(reward_model, trained_tokens, pairs / config.reward_model.batch_size)
        seconds["train_reward_model"] += generate(calibrated) + calibrated * row * forward * reward_model
    if config.has_critic and config.critic_pretraining is not None:
        epochs = config.critic_pretraining.epochs
        steps = epochs * calibrated / config.critic_pretraining.batch_size
        seconds["critic_pretraining"] = score(calibrated) + train(critic or trained, epochs * calibrated * row, steps)
        if config.reward_model is None:
            seconds["critic_pretraining"] += generate(calibrated)
    return {stage: own_seconds + OVERHEAD_S for stage, own_seconds in seconds.items()}


def seconds_of_run(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Of all stages that would execute."""
    counts = Counter(planned.stage for planned in plan.stages if planned.ref is None)
    return sum(count * seconds.get(stage, OVERHEAD_S) for stage, count in counts.items())


def checkpoint_bytes(config: RunConfig, sizes: Mapping[str, Any]) -> int:
    """Of a checkpoint whose weights are kept: policy and critic, and two moments of each weight."""
    own = sizes["parameters"]
    if config.model.lora is not None:
        parts = (2 if config.has_critic and not config.model.shared_trunk else 1) * sizes["adapter_parameters"]
    else:
        critic = sizes["others"].get("model.critic", sizes["others"].get("reward_model.base", own))
        parts = own + (critic if config.has_critic and not config.model.shared_trunk else 0)
    return int(parts * 4 * 3)


def mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
