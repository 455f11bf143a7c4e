"""The engines that responses are sampled by, behind one interface, a file each: our own, a vLLM server, vLLM in process.

Rollouts and evaluation sample by the engine that
``rollouts.engine`` names; the few responses that calibrate a reward model are always the builtin engine's.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ppo_core import Ragged, RolloutBatch, SamplingConfig


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
