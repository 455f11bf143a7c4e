"""The engines that sample, by the names that a configuration has for them."""

from importlib.util import find_spec
from typing import Literal

from tasks.errors import ConfigError

SamplingEngine = Literal["builtin", "vllm"]


def require_available(engine: SamplingEngine, server: str | None) -> None:
    """Refuse an engine that is not installed, before a run begins that would need it hours later."""
    if engine == "vllm" and server is None and find_spec("vllm") is None:
        raise ConfigError(
            "rollouts.engine=vllm: the package vllm is not installed here; pip install 'rlhf-rounds[vllm]' where there is "
            "CUDA, or name a server in execution.engine_server"
        )
