"""The configuration of a run: one document, read, overridden and checked whole before anything starts."""

from flows.config.commented import commented
from flows.config.every_mistake import STAND_IN, STAND_IN_FUNCTION, every_mistake
from flows.config.models import FROM_POLICY, FROM_REWARD_MODEL
from flows.config.reading import PRESETS, checked, dump, load_config, read_document, with_overrides
from flows.config.run_config import RunConfig, default_of

__all__ = [
    "FROM_POLICY",
    "FROM_REWARD_MODEL",
    "PRESETS",
    "STAND_IN",
    "STAND_IN_FUNCTION",
    "RunConfig",
    "checked",
    "commented",
    "default_of",
    "dump",
    "every_mistake",
    "load_config",
    "read_document",
    "with_overrides",
]
