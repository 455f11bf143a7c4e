"""Limits that a healthy run stays far away from."""

from typing import Literal

from pydantic import Field

from tasks.config.base import StageConfig


class HealthConfig(StageConfig):
    """Limits that a healthy run stays far away from: beyond one, a stage stops before it commits anything.

    They change no result, so they are part of no fingerprint. A loss or gradient that is not finite always stops.
    """

    action: Literal["stop", "warn"] = "stop"
    """warn says it and goes on."""
    max_ratio_deviation: float | None = Field(None, gt=0)
    """Of ``|ratio - 1|`` in an update's first minibatch, where sampling and training must agree; null is 0.01 for float32
    and 0.5 for bfloat16 forward passes."""
    max_engine_difference: float | None = Field(None, gt=0)
    """Nats a token between the log-probabilities of the engine that samples and the trainer's, tried on a few prompts before
    anything is sampled (the largest with float32 forward passes, the mean with others) and mean over a shard; more, and the
    engine samples from another model. null is what rounding allows: 1e-4 for float32, 0.03 for bfloat16 forward passes."""
    max_approx_kl: float = Field(10.0, gt=0)
    """Nats a token between the policy that sampled and the one in training, mean over a minibatch."""
    max_kl: float = Field(20.0, gt=0)
    """Nats a token between policy and reference, mean over an iteration."""
    min_entropy: float = Field(1e-4, ge=0)
    """Nats of the next-token distribution, mean over a minibatch."""
    min_reward_model_accuracy: float = Field(0.5, ge=0, lt=1)
    """Which a reward model's accuracy on held-out pairs exceeds by a standard error, or it is no better than chance; with
    fewer than 25 held-out preferences that is only said. 0: no limit."""
