"""How a stage's models are loaded, and what a run asks of the models that it names."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.config.base import StageConfig
from tasks.config.execution import ExecutionConfig
from tasks.paths import user_path


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


class ModelChecks(StageConfig):
    """What a run asks of the models that it names, small enough to send; directories as texts."""

    policy: str | None = None
    """None where the run makes it, or its tokenizer, itself."""
    critic: str | None = None
    """A model that the critic starts from, which is neither the policy nor the run's reward model."""
    reward_model_base: str | None = None
    reward_models: Mapping[str, str] = {}
    """Finished ones by the field that names them."""
    max_new_tokens: int
    adapted_layers: tuple[str, ...] = ()
    shared_trunk: bool = False
    scalar_policy: bool = False
    """Whether a critic or reward model with a body of its own starts from the policy."""
    critic_is_reward_model: bool = False
    """Whether the critic starts from the run's reward model."""
    trust_remote_code: bool = False
    execution: ExecutionConfig = ExecutionConfig()
    """What they run on, and how."""
    data: str | None = None
    """What prepare_data made, once it has."""


ADAPTER_CONFIG = "adapter_config.json"


def needs_hub(name: str) -> bool:
    """Whether a model, or the one that it is an adapter over, is no directory here."""
    directory = user_path(name)
    if not directory.is_dir():
        return True
    config = directory / ADAPTER_CONFIG
    try:
        base = json.loads(config.read_text()).get("base_model_name_or_path") if config.is_file() else None
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(base, str) and base != "" and not (directory / base).is_dir() and needs_hub(base)
