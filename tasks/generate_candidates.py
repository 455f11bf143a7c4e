"""Stage: responses for people to rank, several to each of some prompts, where rollouts do not suffice."""

from ppo_core import derive_seed
from tasks.config import GenerateCandidatesConfig
from tasks.contract import StageContext, StageOutput
from tasks.models import Models
from tasks.sampling import Sampler
from tasks.store import Ref, read_dataset, write_dataset


def generate_candidates(
    context: StageContext, config: GenerateCandidatesConfig, *, policy: Ref, data: Ref
) -> StageOutput:
    """Sample from a checkpoint, to prompts drawn by the run's seed."""
    every_prompt = read_dataset(data.directory / "prompts")
    ids = every_prompt.column("prompt_id").to_pylist()
    drawn = sorted(range(len(ids)), key=lambda i: (derive_seed(context.run_seed, "candidates", ids[i]), i))
    prompts = every_prompt.take(sorted(drawn[: config.prompts]))
    num_rows = prompts.num_rows * config.samples_per_prompt
    sampler = Sampler(Models(context, config.access), policy, engine=config.engine, proof_prompts=every_prompt)
    candidates = sampler.sample(
        prompts,
        samples_per_prompt=config.samples_per_prompt,
        occurrences=[0] * prompts.num_rows,
        sampling=config.sampling,
        stop_strings=config.stop_strings,
        seed_of=lambda prompt_id, index: context.seed("candidate", prompt_id, index),
        on_rows=lambda rows, tokens: context.progress(rows, num_rows, tokens=tokens),
    )
    write_dataset(context.output / "candidates", candidates)
    return StageOutput(rows=candidates.num_rows)
