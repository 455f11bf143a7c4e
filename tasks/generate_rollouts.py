"""Stage: responses of the current policy to this iteration's prompts, one shard of them."""

from collections import Counter

import torch

from ppo_core import derive_seed
from tasks.config import GenerateRolloutsConfig
from tasks.contract import StageContext, StageOutput
from tasks.metrics import empty_metric, mean_metric
from tasks.models import Models
from tasks.sampling import Sampler, rollout_batch
from tasks.sampling.engines import engine_differences
from tasks.store import Ref, read_dataset, write_dataset


def generate_rollouts(context: StageContext, config: GenerateRolloutsConfig, *, policy: Ref, data: Ref) -> StageOutput:
    """Sample, and store each token's log-probability in the numerics of the update."""
    every_prompt = read_dataset(data.directory / "prompts")
    chosen = shard_of(prompts_of_iteration(every_prompt.num_rows, config, context), config, context)
    prompts = every_prompt.take([prompt for prompt, _ in chosen])
    sampler = Sampler(Models(context, config.access), policy, engine=config.engine, proof_prompts=every_prompt)
    num_rows = prompts.num_rows * config.samples_per_prompt
    rollouts = sampler.sample(
        prompts,
        samples_per_prompt=config.samples_per_prompt,
        occurrences=[occurrence for _, occurrence in chosen],
        sampling=config.sampling,
        stop_strings=config.stop_strings,
        seed_of=lambda prompt_id, index: context.seed("rollout", prompt_id, index),
        on_rows=lambda rows, tokens: context.progress(rows, num_rows, tokens=tokens),
    )
    differences = engine_differences(rollouts, context)
    write_dataset(context.output / "rollouts", rollouts)
    batch = rollout_batch(rollouts)
    of_prompts = rollouts.column("prompt_id").to_pylist()
    return StageOutput(
        rows=rollouts.num_rows,
        metrics={
            **mean_metric("rollouts/response_length", batch.responses.lengths.tolist(), of_prompts),
            **empty_metric("rollouts/empty_share", rollouts.column("response").to_pylist(), of_prompts),
            "rollouts/length_cut_share": float((~batch.stopped).double().mean()),
            **differences,
        },
    )


def prompts_of_iteration(
    num_prompts: int, config: GenerateRolloutsConfig, context: StageContext
) -> list[tuple[int, int]]:
    """The next ``prompts_per_iteration`` of a pass over all prompts, in an order drawn anew for each round and pass: the
    position of each, and how often it came before in this iteration, which two passes may meet in."""
    first = (context.place.iteration - 1) * config.prompts_per_iteration
    chosen: list[int] = []
    for position in range(first, first + config.prompts_per_iteration):
        number, offset = divmod(position, num_prompts)
        if not chosen or offset == 0:
            seed = derive_seed(context.run_seed, context.place.round, "prompts", number)
            order = torch.randperm(num_prompts, generator=torch.Generator().manual_seed(seed)).tolist()
        chosen.append(order[offset])
    seen: Counter[int] = Counter()
    occurrences = []
    for prompt in chosen:
        occurrences.append(seen[prompt])
        seen[prompt] += 1
    return list(zip(chosen, occurrences, strict=True))


def shard_of(
    chosen: list[tuple[int, int]], config: GenerateRolloutsConfig, context: StageContext
) -> list[tuple[int, int]]:
    """This shard's consecutive part of the prompts; the configuration refuses more shards than there are prompts."""
    shard = context.place.shard or 0
    start, end = (len(chosen) * s // config.shards for s in (shard, shard + 1))
    return chosen[start:end]
