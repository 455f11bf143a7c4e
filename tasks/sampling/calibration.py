"""Responses of the reference to the first training prompts: a reward model is calibrated on them, a critic pre-trained."""

import math

from ppo_core import SamplingConfig
from tasks.models import Models
from tasks.sampling.sampler import Sampler
from tasks.store import Ref, Table, read_dataset

CALIBRATION = "calibration"
"""Where in an output the data set ``rollouts`` of these responses lies."""


def calibration_rollouts(
    models: Models,
    *,
    reference: Ref,
    data: Ref,
    num_samples: int,
    sampling: SamplingConfig,
    stop_strings: tuple[str, ...],
) -> Table:
    """At least ``num_samples`` rollouts, as many to each prompt."""
    context = models.context
    prompts = read_dataset(data.directory / "prompts")
    prompts = prompts.slice(0, min(prompts.num_rows, num_samples))
    return Sampler(models, reference).sample(
        prompts,
        samples_per_prompt=math.ceil(num_samples / prompts.num_rows),
        sampling=sampling,
        stop_strings=stop_strings,
        seed_of=lambda prompt_id, index: context.seed("calibration", prompt_id, index),
        on_rows=lambda rows, tokens: context.progress(rows, num_samples, unit="rows", tokens=tokens),
    )
