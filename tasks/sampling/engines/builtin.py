"""The builtin engine: ``ppo_core.sample`` over the policy in memory, in groups that fit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from ppo_core import AS_FEW_AS_POSSIBLE, InPrecision, Ragged, RolloutBatch, SamplingConfig, micro_batches, sample
from tasks.sampling.engines.interface import LoadedPolicy


@contextmanager
def open_builtin(policy: LoadedPolicy, *, temperature: float) -> Iterator["BuiltinSampler"]:  # noqa: ARG001  it takes any
    models = policy.models
    in_precision = InPrecision(policy.model, models.dtype, models.head_dtype)
    yield BuiltinSampler(in_precision, token_budget=models.context.execution.micro_batch_tokens)


class BuiltinSampler:
    """The trainer itself samples, so its log-probabilities are those of training up to rounding."""

    def __init__(self, policy: InPrecision, *, token_budget: int) -> None:
        self._policy = policy
        self._token_budget = token_budget

    @property
    def replicas(self) -> dict[str, "BuiltinSampler"]:
        return {"the engine": self}

    def draw(
        self,
        prompts: Ragged,
        *,
        samples_per_prompt: int,
        sampling: SamplingConfig,
        stop_strings: tuple[str, ...],  # noqa: ARG002  should_stop looks for them
        should_stop: Callable[[list[int]], bool] | None,
        seeds: Sequence[int],
        on_rows: Callable[[int, int], None],
    ) -> RolloutBatch:
        batches: list[RolloutBatch] = []
        order: list[torch.Tensor] = []
        done = tokens = 0

        def on_tokens(new: int) -> None:
            nonlocal tokens
            tokens += new
            on_rows(done, tokens)

        for chosen, samples in sampling_groups(
            prompts.lengths + sampling.max_new_tokens, samples_per_prompt, self._token_budget
        ):
            of_group = (chosen[:, None] * samples_per_prompt + torch.tensor(samples)).flatten()
            batch = sample(
                self._policy,
                prompts.select(chosen),
                sampling=sampling,
                seeds=[seeds[i] for i in of_group.tolist()],
                samples_per_prompt=len(samples),
                should_stop=should_stop,
                on_tokens=on_tokens,
            )
            batches.append(batch)
            order.append(of_group)
            done += len(batch)
            on_rows(done, tokens)
        return RolloutBatch.concatenate(batches).select(torch.argsort(torch.cat(order)))


def sampling_groups(
    lengths: torch.Tensor, samples_per_prompt: int, token_budget: int
) -> list[tuple[torch.Tensor, range]]:
    """Prompts of like length and the samples of each to draw together: all, unless those of one prompt exceed the budget."""
    together = max(1, min(samples_per_prompt, token_budget // int(lengths.max())))
    groups = micro_batches(lengths * together, token_budget, group_cost=AS_FEW_AS_POSSIBLE)
    parts = [range(i, min(i + together, samples_per_prompt)) for i in range(0, samples_per_prompt, together)]
    return [(group, samples) for group in groups for samples in parts]
