"""Responses of a policy to prompts, by the engine that a configuration names."""

from tasks.sampling.calibration import CALIBRATION, calibration_rollouts
from tasks.sampling.passes import batch_exact_kl, batch_logprobs, batch_values, rollout_batch
from tasks.sampling.sampler import Sampler

__all__ = [
    "CALIBRATION",
    "Sampler",
    "batch_exact_kl",
    "batch_logprobs",
    "batch_values",
    "calibration_rollouts",
    "rollout_batch",
]
