"""The engines that sample, by the names that a configuration has for them: a row each, and nothing else asks for a name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from tasks.errors import ConfigError

SamplingEngine = Literal["builtin", "vllm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a run has to know of an engine."""

    factory: str
    """Import path of the ``EngineFactory`` that opens it for a policy; imported by the stages that sample, never before."""
    is_the_trainer: bool = False
    """Whether the trainer's own copy of the policy samples: its log-probabilities need no proof and no correction."""
    package: str | None = None
    """What has to be installed here, unless ``execution.engine_servers`` names one."""
    how_to_get_it: str = ""
    """The next move where the package is missing."""


ENGINES: Mapping[SamplingEngine, Engine] = {
    "builtin": Engine(factory="tasks.sampling.engines.builtin:open_builtin", is_the_trainer=True),
    "vllm": Engine(
        factory="tasks.sampling.engines.vllm:open_vllm",
        package="vllm",
        how_to_get_it="pip install 'rlhf-rounds[vllm]' where there is CUDA, or name one in execution.engine_servers",
    ),
}


TESTED_VLLM = "0.32"
"""The releases of a vLLM server that were tested: what a server is asked changes from one to the next."""


def untested_vllm(version: str) -> str | None:
    """Why a server of this version of vLLM is refused; None where it was tested."""
    if version.split(".")[:2] == TESTED_VLLM.split("."):
        return None
    return f"it is vLLM {version}, and only {TESTED_VLLM}.* was tested; install vllm=={TESTED_VLLM}.* there"


def server_address(url: str) -> str:
    """The address of a server by which two that are the same are seen to be."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def require_available(name: SamplingEngine, servers: Sequence[str]) -> None:
    """Refuse an engine that is not installed, before a run begins that would need it hours later."""
    engine = ENGINES[name]
    if engine.package is not None and not servers and find_spec(engine.package) is None:
        raise ConfigError(
            f"rollouts.engine={name}: the package {engine.package} is not installed here; {engine.how_to_get_it}"
        )
