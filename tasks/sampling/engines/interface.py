"""What an engine is: opened for one policy, it draws responses from it.

Rollouts and evaluation sample by the engine that ``rollouts.engine`` names; the few responses that calibrate a reward model
are always the builtin engine's.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from transformers import PreTrainedModel

from ppo_core import Ragged, RolloutBatch, SamplingConfig
from tasks.config import Engine
from tasks.models import Models
from tasks.store import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """The policy that an engine is opened for, as the trainer has it."""

    models: Models
    model: PreTrainedModel
    ref: Ref


class TokenSampler(Protocol):
    """Draws responses from the one policy that it was made for."""

    @property
    def replicas(self) -> "Mapping[str, TokenSampler]":
        """Each copy of the policy that rows are drawn from as an engine of its own, by what it is called in a sentence."""
        ...

    def draw(
        self,
        prompts: Ragged,
        *,
        samples_per_prompt: int,
        sampling: SamplingConfig,
        stop_strings: tuple[str, ...],
        should_stop: Callable[[list[int]], bool] | None,
        seeds: Sequence[int],
        on_rows: Callable[[int, int], None],
    ) -> RolloutBatch:
        """``samples_per_prompt`` responses to each prompt, in their order, with the engine's own ``logprobs``.

        ``logprobs`` are those of the full distribution at ``sampling.temperature``. A row is drawn with ``seeds[row]`` and
        ends after a token of ``sampling.stop_token_ids``, or the first one of which ``should_stop`` says so: it looks for
        ``stop_strings``. ``on_rows`` is told (rows done, tokens done).
        """
        ...


class EngineFactory(Protocol):
    """Opens an engine."""

    def __call__(self, policy: LoadedPolicy, *, temperature: float) -> AbstractContextManager[TokenSampler]:
        """The engine, holding this policy, for as long as the context lasts; it will be asked for this temperature alone."""
        ...


def open_engine(engine: Engine, policy: LoadedPolicy, *, temperature: float) -> AbstractContextManager[TokenSampler]:
    """The engine of a row of the table, by its factory."""
    module, _, name = engine.factory.partition(":")
    factory: EngineFactory = getattr(import_module(module), name)
    return factory(policy, temperature=temperature)
