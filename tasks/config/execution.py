"""Where and how stages run."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config.base import StageConfig


class ExecutionConfig(StageConfig):
    """Where and how stages run. Only the two dtypes change results, so only they are part of a fingerprint."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto takes CUDA, else Apple's MPS, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward passes; weights that are trained stay float32. auto: bfloat16 on CUDA, float32 elsewhere."""
    head_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layer that makes logits, where the rest of a forward pass is in bfloat16: bfloat16 is faster and
    rounds log-probabilities by 0.01 and more. The heads of critic and reward model are always in float32."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass, which computes the layer again: less memory, more time."""
    micro_batch_tokens: int = Field(16384, gt=0)
    """Padded tokens in one forward and backward pass: lower it when memory runs out. Results change by rounding alone; a
    checkpoint that was not kept is made again with the one that made it."""
    engine_server: str | None = None
    """Address of the server that ``rollouts.engine: vllm`` samples by, as http://host:8000; null runs vLLM in this process.
    It must see the run's directory. Its key, if it wants one, is ``ROUNDS_ENGINE_API_KEY``."""
    stage_timeout_s: float | None = Field(7200.0, gt=0)
    """A stage that reports no progress for so long is taken for hung, killed and retried; one that does may take any time.
    A reward function reports nothing before it returns. null: no limit."""
    retries: int = Field(3, ge=0, le=10)
    """Further attempts after a transient error."""

    @model_validator(mode="after")
    def _head_is_no_narrower_than_all(self) -> Self:
        if self.dtype == "float32" and self.head_dtype == "bfloat16":
            raise ValueError("head_dtype=bfloat16 says nothing with dtype=float32; leave it out, or set dtype too")
        return self

    @field_validator("engine_server")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        # A run's configuration is written down and shown, so no password belongs there.
        if address is not None and not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", address):
            raise ValueError(
                f"{address!r} is no address like http://host:8000, without user, password and query; correct it"
            )
        return address
