"""The configuration of a run: one document, read, overridden and checked whole before anything starts."""

from flows.config.commented import commented
from flows.config.models import FROM_POLICY, FROM_REWARD_MODEL
from flows.config.reading import PRESETS, checked, dump, load_config, with_overrides
from flows.config.run_config import RunConfig, default_of

__all__ = [
    "FROM_POLICY",
    "FROM_REWARD_MODEL",
    "PRESETS",
    "RunConfig",
    "checked",
    "commented",
    "default_of",
    "dump",
    "load_config",
    "with_overrides",
]
