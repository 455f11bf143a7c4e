"""How a stage's models are loaded."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.config.adapters import AdapterConfig
from tasks.config.base import StageConfig


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
