"""Responses of a policy to prompts: sampling as the stages that sample share it, and their rows as Arrow tables."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_core import Ragged, RolloutBatch, SamplingConfig
from tasks.config import ENGINES, SamplingEngine
from tasks.errors import ModelError
from tasks.models import Models, context_length
from tasks.sampling.engines import (
    PROOF_PROMPTS,
    LoadedPolicy,
    TokenSampler,
    open_engine,
    require_same_policy,
)
from tasks.sampling.passes import batch_logprobs
from tasks.store import SAMPLING_LOGPROBS, Ref, Table, ragged_column, rollouts_schema, with_columns
from tasks.text import decode_response, ending_of, stop_checker, terminators


class Sampler:
    """A policy with its tokenizer, ready to sample by an engine; the trainer's own copy of it says the log-probabilities."""

    def __init__(
        self,
        models: Models,
        policy: Ref,
        *,
        engine: SamplingEngine = "builtin",
        proof_prompts: Table | None = None,
    ) -> None:
        """``proof_prompts``, the same all through a run, are what an engine other than the trainer is tried on first."""
        self._models = models
        self._context = models.context
        self._tokenizer = models.policy_tokenizer(policy)
        self._policy = models.policy(policy)
        self._ref = policy
        self._engine = ENGINES[engine]
        self._proof_prompts = None if self._engine.is_the_trainer else proof_prompts

    def sample(
        self,
        prompts: Table,
        *,
        samples_per_prompt: int,
        occurrences: Sequence[int] | None = None,
        sampling: SamplingConfig,
        stop_strings: tuple[str, ...],
        seed_of: Callable[[str, int], int],
        on_rows: Callable[[int, int], None],
    ) -> Table:
        """``samples_per_prompt`` responses to each prompt, as rollouts, in the order of the prompts.

        ``seed_of(prompt_id, sample_index)`` is all the randomness of a row. ``occurrences`` says how often each prompt
        stands before among those that are sampled together, other shards included: its samples then count on, so that no
        two rows are the same, and all samples of a prompt are one group. ``on_rows`` is told (rows done, tokens done).
        """
        sampling, stop_strings = with_terminators(sampling, stop_strings, self._tokenizer)
        sampling = without_unknown_tokens(sampling, self._tokenizer, self._policy.config.get_text_config().vocab_size)
        num_rows = prompts.num_rows * samples_per_prompt
        rows = prompts.take(np.arange(num_rows) // samples_per_prompt)
        before = [0] * prompts.num_rows if occurrences is None else occurrences
        sample_index = [
            before[i // samples_per_prompt] * samples_per_prompt + i % samples_per_prompt for i in range(num_rows)
        ]
        prompt_ids = rows.column("prompt_id").to_pylist()
        seeds = [seed_of(prompt_id, index) for prompt_id, index in zip(prompt_ids, sample_index, strict=True)]
        prompt_tokens = ragged_column(prompts, "prompt_token_ids", torch.int64)
        check_context(self._policy, prompt_tokens, sampling, prompts.column("prompt_id").to_pylist())
        policy = LoadedPolicy(models=self._models, model=self._policy, ref=self._ref)
        with open_engine(self._engine, policy, temperature=sampling.temperature) as engine:
            if self._proof_prompts is not None:
                for name, replica in engine.replicas.items():
                    self._prove(name, replica, sampling)
            batch = engine.draw(
                prompt_tokens,
                samples_per_prompt=samples_per_prompt,
                sampling=sampling,
                stop_strings=stop_strings,
                should_stop=stop_checker(self._tokenizer, stop_strings),
                seeds=seeds,
                on_rows=on_rows,
            )
        if not self._engine.is_the_trainer:
            # The trainer's, and the engine's own beside them.
            ours = self._logprobs(batch, sampling.temperature)
            batch = batch.with_columns(logprobs=ours, **{SAMPLING_LOGPROBS: batch.token_columns["logprobs"]})
        elif self._models.dtype != torch.float32:
            batch = batch.with_columns(logprobs=self._logprobs(batch, sampling.temperature))
        return self._as_rollouts(rows, batch, sample_index)

    def _as_rollouts(self, prompts: Table, batch: RolloutBatch, sample_index: list[int]) -> Table:
        """Rows of prompts with the responses to them."""
        responses = [
            decode_response(self._tokenizer, batch.responses.row(i).tolist(), finished=stopped)
            for i, stopped in enumerate(batch.stopped.tolist())
        ]
        place = self._context.place.label
        columns: dict[str, Any] = {
            "rollout_id": [
                f"{place}.{p}.{s}" for p, s in zip(prompts.column("prompt_id").to_pylist(), sample_index, strict=True)
            ],
            "sample_index": sample_index,
            "policy_version": [self._ref.digest] * prompts.num_rows,
            "response": responses,
            "response_token_ids": batch.responses,
            "finish_reason": ["stop" if stopped else "length" for stopped in batch.stopped.tolist()],
            **{name: batch.column(name) for name in batch.token_columns},
        }
        return with_columns(prompts, columns, rollouts_schema(has_sampling_logprobs=SAMPLING_LOGPROBS in columns))

    def _prove(self, name: str, engine: TokenSampler, sampling: SamplingConfig) -> None:
        """Refuse an engine that does not sample from this policy, before anything is drawn for the run."""
        assert self._proof_prompts is not None
        prompts = ragged_column(self._proof_prompts, "prompt_token_ids", torch.int64)
        require_same_policy(
            engine,
            name,
            prompts.select(torch.arange(min(len(prompts), PROOF_PROMPTS))),
            self._logprobs,
            sampling=sampling,
            context=self._context,
            dtype=self._models.dtype,
        )

    def _logprobs(self, batch: RolloutBatch, temperature: float) -> torch.Tensor:
        return batch_logprobs(self._models, self._policy, batch, temperature=temperature)


def with_terminators(
    sampling: SamplingConfig, stop_strings: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> tuple[SamplingConfig, tuple[str, ...]]:
    """The user's settings, and all that ends a response of this model beside them."""
    ending = ending_of(tokenizer)
    spelt_out = ending.stop_string if ending is not None else None
    if spelt_out is not None and spelt_out not in stop_strings:
        stop_strings = (*stop_strings, spelt_out)
    ids = {*sampling.stop_token_ids, *terminators(tokenizer)}
    return replace(sampling, stop_token_ids=tuple(sorted(ids))), stop_strings


def without_unknown_tokens(
    sampling: SamplingConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> SamplingConfig:
    """The settings without the ids of a padded vocabulary, which stand for no token: nobody could read them."""
    unknown = set(range(vocab_size)) - set(tokenizer.get_vocab().values()) - set(sampling.stop_token_ids)
    return replace(sampling, suppress_token_ids=tuple(sorted({*sampling.suppress_token_ids, *unknown})))


def check_context(policy: PreTrainedModel, prompts: Ragged, sampling: SamplingConfig, prompt_ids: list[str]) -> None:
    """Refuse a prompt that with its response does not fit the model's context."""
    limit = context_length(policy.config.get_text_config())
    longest = int(prompts.lengths.argmax())
    needed = int(prompts.lengths[longest]) + sampling.max_new_tokens
    if limit is not None and needed > limit:
        raise ModelError(
            f"prompt {prompt_ids[longest]} has {int(prompts.lengths[longest])} tokens and max_new_tokens is "
            f"{sampling.max_new_tokens}, together more than the model's context of {limit}; lower "
            "rollouts.sampling.max_new_tokens or shorten the prompt"
        )
