"""Stage: responses of the current policy to this iteration's prompts, one shard of them."""

from typing import TYPE_CHECKING

from pydantic import Field

from ppo_core.config import SamplingConfig
from tasks.samplers import SamplingEngine
from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref

if TYPE_CHECKING:
    from tasks.schemas import Table


class RolloutsConfig(StageConfig):
    """How an iteration's rollouts are made."""

    prompts_per_iteration: int = Field(64, gt=0)
    samples_per_prompt: int = Field(1, gt=0)
    shards: int = Field(1, gt=0)
    """Parts that are generated, scored and retried on their own; the rows are the same however many there are."""
    engine: SamplingEngine = "builtin"
    """What samples: the trainer itself, or vLLM, in process or as the server of ``execution.engine_server``. The update
    corrects for how another engine's log-probabilities differ from the trainer's."""
    sampling: SamplingConfig
    stop_strings: tuple[str, ...] = ()
    """A response also ends where one of these appears."""


class GenerateRolloutsConfig(RolloutsConfig):
    trust_remote_code: bool = False


@stage(version="3", config=GenerateRolloutsConfig)
def generate_rollouts(
    context: StageContext, config: GenerateRolloutsConfig, *, policy: Ref, data: Ref, lora_base: Ref | None = None
) -> StageOutput:
    """Sample, and store each token's log-probability in the numerics of the update."""
    from tasks.learners import Learners
    from tasks.responses import Sampler, rollout_batch
    from tasks.samplers.agreement import engine_differences
    from tasks.store import read_dataset, write_dataset

    every_prompt = read_dataset(data.directory / "prompts")
    prompts = shard_of(prompts_of_iteration(every_prompt, config, context), config, context)
    learners = Learners(context=context, lora_base=lora_base, trust_remote_code=config.trust_remote_code)
    sampler = Sampler(context, policy, learners, engine=config.engine, proof_prompts=every_prompt)
    num_rows = prompts.num_rows * config.samples_per_prompt
    rollouts = sampler.sample(
        prompts,
        samples_per_prompt=config.samples_per_prompt,
        sampling=config.sampling,
        stop_strings=config.stop_strings,
        seed_of=lambda prompt_id, index: context.seed("rollout", prompt_id, index),
        on_rows=lambda rows, tokens: context.progress(rows, num_rows, tokens=tokens),
    )
    differences = engine_differences(rollouts, context)
    write_dataset(context.output / "rollouts", rollouts)
    batch = rollout_batch(rollouts)
    return StageOutput(
        rows=rollouts.num_rows,
        metrics={
            "rollouts/response_length": float(batch.responses.lengths.double().mean()),
            "rollouts/length_cut_share": float((~batch.stopped).double().mean()),
            **differences,
        },
    )


def prompts_of_iteration(prompts: "Table", config: RolloutsConfig, context: StageContext) -> "Table":
    """The next ``prompts_per_iteration`` of a pass over all prompts, in an order drawn anew for each round and pass."""
    import torch

    from ppo_core import derive_seed

    first = (context.place.iteration - 1) * config.prompts_per_iteration
    chosen: list[int] = []
    for position in range(first, first + config.prompts_per_iteration):
        number, offset = divmod(position, prompts.num_rows)
        if not chosen or offset == 0:
            seed = derive_seed(context.run_seed, context.place.round, "prompts", number)
            order = torch.randperm(prompts.num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
        chosen.append(order[offset])
    # A prompt that comes twice in one iteration would draw the same randomness, and the same response, twice.
    return prompts.take(list(dict.fromkeys(chosen)))


def shard_of(prompts: "Table", config: RolloutsConfig, context: StageContext) -> "Table":
    """This shard's consecutive part of the prompts."""
    from tasks.errors import ConfigError

    shard = context.place.shard or 0
    start, end = (prompts.num_rows * s // config.shards for s in (shard, shard + 1))
    if start == end:
        raise ConfigError(
            f"rollouts.shards={config.shards} is more than the {prompts.num_rows} prompts of an iteration"
        )
    return prompts.slice(start, end - start)
