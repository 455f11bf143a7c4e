"""The engines that responses are sampled by, behind one interface, a file each: our own, a vLLM server, vLLM in process.

(``tasks.engine`` is another thing: the process that executes stages.) Rollouts and evaluation sample by the engine that
``rollouts.engine`` names; the few responses that calibrate a reward model are always the builtin engine's.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Protocol

from tasks.errors import ConfigError

if TYPE_CHECKING:
    from ppo_core import Ragged, RolloutBatch, SamplingConfig

SamplingEngine = Literal["builtin", "vllm"]


class TokenSampler(Protocol):
    """Draws responses from the one policy that it was made for."""

    def draw(
        self,
        prompts: "Ragged",
        *,
        samples_per_prompt: int,
        sampling: "SamplingConfig",
        stop_strings: tuple[str, ...],
        should_stop: Callable[[list[int]], bool] | None,
        seeds: Sequence[int],
        on_rows: Callable[[int, int], None],
    ) -> "RolloutBatch":
        """``samples_per_prompt`` responses to each prompt, in their order, with the engine's own ``logprobs``.

        ``logprobs`` are those of the full distribution at ``sampling.temperature``. A row is drawn with ``seeds[row]`` and
        ends after a token of ``sampling.stop_token_ids``, or the first one of which ``should_stop`` says so: it looks for
        ``stop_strings``. ``on_rows`` is told (rows done, tokens done).
        """
        ...


def require_available(engine: SamplingEngine, server: str | None) -> None:
    """Refuse an engine that is not installed, before a run begins that would need it hours later."""
    if engine == "vllm" and server is None and find_spec("vllm") is None:
        raise ConfigError(
            "rollouts.engine=vllm: the package vllm is not installed here; pip install 'rlhf-rounds[vllm]' where there is "
            "CUDA, or name a server in execution.engine_server"
        )
