"""How long the stages of a run should take, from a trial of seconds: responses as long as those of the preferences, else as
long as they may become."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.config import RunConfig
from flows.plan import Plan

OVERHEAD_S = 0.3
"""Of any stage: its task, its manifest, its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a trial says of a configuration: seconds of its kinds of work."""

    config: RunConfig
    trial: Mapping[str, float]
    sizes: Mapping[str, Any]
    prompt: float
    """Tokens of a prompt, on average."""
    response: float
    """Tokens of a response, on average."""

    def generate(self, count: float) -> float:
        """So many responses, in groups of which each takes a step for each token of its longest response."""
        most = self.config.rollouts.sampling.max_new_tokens
        groups = max(1.0, math.ceil(count * (self.prompt + most) / self.config.execution.micro_batch_tokens))
        drawn = most * groups * self.trial["step"] + self.response * count * self.trial["step_a_response"]
        again = 0.0 if self.sizes["forward_bytes"] == 4 else count * self.row * self.trial["forward_a_token"]
        return drawn + count * self.trial["read"] + again

    def score(self, count: float) -> float:
        """So many responses by reference, critic, reward models and functions."""
        others = sum(n for field, n in self.sizes["others"].items() if field.startswith("rewards."))
        passes = 1 + self.config.has_critic + (self.config.rollouts.lag > 0)
        models = self.own * passes + self.reward_model + others
        return count * (self.row * self.forward * models + self.trial["function"])

    def train(self, parameters: float, tokens: float, steps: float) -> float:
        """Passes of a model of so many parameters, and steps of its optimizer; those of adapters are narrow."""
        width = min(parameters, self.trained)
        return tokens * parameters * self.trial["learn_a_token"] / self.own + (
            steps * width * self.trial["optimizer_step"] / self.own
        )

    @property
    def row(self) -> float:
        """Tokens of a prompt and its response."""
        return self.prompt + self.response

    @property
    def own(self) -> int:
        return int(self.sizes["parameters"])

    @property
    def trained(self) -> int:
        return int(self.sizes["adapter_parameters"]) or self.own

    @property
    def forward(self) -> float:
        return self.trial["forward_a_token"] / self.own

    @property
    def reward_model(self) -> int:
        return int(self.sizes["others"].get("reward_model.base", self.own)) if self.config.reward_model else 0


def seconds_of_stages(
    config: RunConfig,
    trial: Mapping[str, float],
    sizes: Mapping[str, Any],
    lengths: Mapping[str, Sequence[int]],
    *,
    write_speed: float,
) -> dict[str, float]:
    """Of one execution of each stage, where rows of each kind have so many tokens and a second writes so many bytes."""
    most = config.rollouts.sampling.max_new_tokens
    response = min(most, mean(lengths["responses"]) or most)
    pace = Pace(config=config, trial=trial, sizes=sizes, prompt=mean(lengths["prompts"]), response=response)
    responses = config.rollouts.prompts_per_iteration * config.rollouts.samples_per_prompt
    ppo = config.ppo
    epochs = ppo.epochs
    if config.has_critic and not config.model.shared_trunk:
        epochs += ppo.critic_epochs or ppo.epochs
    held_out = len(lengths.get("held_out_prompts", ())) or config.data.num_held_out_prompts
    evaluated = held_out * config.evaluation.samples_per_prompt
    seconds = {
        "generate_rollouts": pace.generate(responses / config.rollouts.shards),
        "score_rollouts": pace.score(responses / config.rollouts.shards),
        "update_policy": pace.train(pace.own, epochs * responses * pace.row, epochs * ppo.num_minibatches)
        + checkpoint_bytes(config, sizes) / write_speed,
        "evaluate_policy": 2 * (pace.generate(evaluated) + pace.score(evaluated)),
        **seconds_before(config, pace, lengths),
    }
    return {stage: own + OVERHEAD_S for stage, own in seconds.items()}


def seconds_before(config: RunConfig, pace: Pace, lengths: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Of what is trained before the first iteration."""
    seconds = {}
    if config.warm_up is not None:
        tokens = sum(lengths["texts"]) * config.warm_up.epochs
        seconds["warm_up"] = pace.train(pace.own, tokens, tokens / config.warm_up.batch_tokens)
    if config.reward_model is not None:
        count = lengths["num_preferences"][0] * config.reward_model.epochs
        steps = count / config.reward_model.batch_size
        seconds["train_reward_model"] = pace.train(pace.reward_model, count * mean(lengths["preferences"]), steps)
        samples = config.reward_model.calibration_samples
        seconds["train_reward_model"] += pace.generate(samples) + samples * pace.row * pace.forward * pace.reward_model
    if config.has_critic and config.critic_pretraining is not None:
        own = config.critic_pretraining
        samples = own.samples if config.reward_model is None else config.reward_model.calibration_samples
        learned = pace.train(pace.own, own.epochs * samples * pace.row, own.epochs * samples / own.batch_size)
        drawn = pace.generate(samples) if config.reward_model is None else 0.0
        seconds["critic_pretraining"] = drawn + pace.score(samples) + learned
    return seconds


def seconds_of_run(plan: Plan, seconds: Mapping[str, float], *, workers: int = 1) -> float:
    """Of all stages that would execute, where so many shards of an iteration do so at once."""
    counts = Counter(
        (planned.stage, planned.place.round, planned.place.iteration) for planned in plan.stages if planned.ref is None
    )
    return sum(
        # Only shards are several in one place.
        math.ceil(count / workers) * seconds.get(stage, OVERHEAD_S)
        for (stage, _, _), count in counts.items()
    )


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
