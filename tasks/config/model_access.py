"""How a stage's models are loaded."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.config.base import StageConfig


class AdapterConfig(StageConfig):
    """Low-rank adapters for policy and critic over one frozen base, instead of whole models (arXiv:2106.09685)."""

    rank: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    """An adapter's product has the weight alpha / rank."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the names of the linear layers that get adapters; empty: all but the head."""


class ModelAccess(StageConfig):
    """What a stage is told of how its models are loaded; no more than it reads, since all of it is part of its recipe."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model."""
    chat_template_kwargs: Mapping[str, Any] = Field({})
    """Options of the policy's chat template, which also says where an answer ends."""
    lora: AdapterConfig | None = None
    """The adapters that training begins with, where a model has none yet."""
    shared_trunk: bool = False
    """Whether the critic is a head on the policy's body."""


class ModelStageConfig(StageConfig):
    """Base of what a stage with models reads."""

    access: ModelAccess = ModelAccess()
