"""A few responses, passes and steps of the policy, timed: seconds that say how long hours will be."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ppo_core import InPrecision, RolloutBatch, forward_groups, token_logprobs
from tasks.config import HealthConfig
from tasks.contract import PreviewConfig, ResidentModels, StageContext, TrialConfig
from tasks.errors import TransientError, UserError
from tasks.models import Models, adamw
from tasks.sampling import Sampler, rollout_batch
from tasks.scoring import score_rows
from tasks.store import Place, Ref, Table

Result = TypeVar("Result")
FEW, MANY = 2, 8
"""Responses drawn together, of which each step of sampling costs something for itself and something a response."""
BRIEF, LONGER = 2, 12
"""New tokens, of which the first comes with the reading of the prompt."""
FEWEST_TRIES, MOST_TRIES, ENOUGH_S = 2, 5, 1.0
"""How often each work is timed: more often where it is brief."""
PASS_TOKENS = {"cpu": 512, "mps": 2048, "cuda": 8192}


def try_policy(
    config: PreviewConfig, directory: Path, prompts: Table, scratch: Path, mistakes: list[str]
) -> dict[str, float]:
    """Seconds of each kind of work; a reward function that fails is a mistake."""
    assert config.trial is not None
    execution = config.execution
    context = StageContext(
        output=scratch,
        place=Place(1, 1),
        run_seed=config.seed,
        execution=execution,
        health=HealthConfig(),
        resident=ResidentModels(),
        report=lambda _: None,
    )
    access = config.access.model_copy(update={"lora": None, "shared_trunk": False})
    models = Models(context, access)
    policy = Ref(str(directory), "tried")
    sampled = sampling_seconds(models, policy, prompts, config.trial)
    found = {"read": sampled["read"], "step": sampled["step"], "step_a_response": sampled["step_a_response"]}
    rollouts = sampled["rollouts"]
    found |= pass_seconds(models, policy, rollout_batch(rollouts))
    began = time.monotonic()
    try:
        score_rows(models, rollouts, config.trial.rewards, policy=policy, reward_model=None, external={})
    except (UserError, TransientError) as error:
        mistakes.append(str(error))
    found["function"] = (time.monotonic() - began) / rollouts.num_rows
    return found


def sampling_seconds(models: Models, policy: Ref, prompts: Table, trial: TrialConfig) -> dict[str, Any]:
    """Of reading a prompt, of a step, and what a response adds to it: from four draws, after one that is not timed."""
    sampler = Sampler(models, policy)
    few = prompts.take([i % prompts.num_rows for i in range(FEW)])
    many = prompts.take([i % prompts.num_rows for i in range(MANY)])

    def draw(rows: Table, num_tokens: int) -> Table:
        return sampler.sample(
            rows,
            samples_per_prompt=1,
            # Ends are not looked for, so that all are of one length.
            sampling=replace(
                trial.sampling, max_new_tokens=min(num_tokens, trial.sampling.max_new_tokens), stop_token_ids=()
            ),
            stop_strings=(),
            seed_of=lambda prompt_id, index: models.context.seed("trial", prompt_id, index),
            on_rows=lambda _, __: None,
        )

    draw(few, BRIEF)
    brief, _ = timed(lambda: draw(few, BRIEF), models)
    brief_many, _ = timed(lambda: draw(many, BRIEF), models)
    longer, _ = timed(lambda: draw(few, LONGER), models)
    longer_many, rollouts = timed(lambda: draw(many, LONGER), models)
    steps = max(1, min(LONGER, trial.sampling.max_new_tokens) - BRIEF)
    step_few, step_many = max(0.0, longer - brief) / steps, max(0.0, longer_many - brief_many) / steps
    a_response = max(0.0, step_many - step_few) / (MANY - FEW)
    return {
        "step": max(0.0, step_few - FEW * a_response),
        "step_a_response": a_response,
        "read": max(0.0, brief_many - BRIEF * step_many) / MANY,
        "rollouts": rollouts,
    }


def pass_seconds(models: Models, policy: Ref, batch: RolloutBatch) -> dict[str, float]:
    """Of a token in a forward pass and in a pass that learns, and of a step of the optimizer. No weight changes."""
    num_tokens = min(PASS_TOKENS[models.device.type], models.context.execution.micro_batch_tokens)
    times = max(1, num_tokens // int(batch.lengths.sum()))
    batch = RolloutBatch.concatenate([batch] * times)
    model = models.policy(policy)
    in_precision = InPrecision(model, models.dtype, models.head_dtype)
    groups = forward_groups([in_precision], batch.lengths, models.context.execution.micro_batch_tokens)
    padded = [batch.padded(group, models.device) for group in groups]

    def forward() -> None:
        with torch.no_grad():
            for part in padded:
                token_logprobs(in_precision, part, temperature=1.0)

    def learn() -> None:
        for part in padded:
            logprobs, _ = token_logprobs(in_precision, part, temperature=1.0, with_entropy=True)
            (-logprobs.mean()).backward()

    parameters = list(model.parameters())
    optimizer = adamw([{"params": parameters, "lr": 0.0}])
    forward()
    learn()
    optimizer.step()
    tokens = int(batch.lengths.sum())
    found = {
        "forward_a_token": timed(forward, models)[0] / tokens,
        "learn_a_token": timed(learn, models)[0] / tokens,
        "optimizer_step": timed(optimizer.step, models)[0],
    }
    optimizer.zero_grad(set_to_none=True)
    return found


def timed(work: Callable[[], Result], models: Models) -> tuple[float, Result]:
    """Seconds until it is done, on the device too: the least of several tries, since others use the machine as well."""
    tries: list[float] = []
    while len(tries) < FEWEST_TRIES or (len(tries) < MOST_TRIES and sum(tries) < ENOUGH_S):
        _wait(models)
        began = time.monotonic()
        result = work()
        _wait(models)
        tries.append(time.monotonic() - began)
    return min(tries), result


def _wait(models: Models) -> None:
    if models.device.type == "cuda":
        torch.cuda.synchronize(models.device)
