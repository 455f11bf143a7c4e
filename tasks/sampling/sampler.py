"""Responses of a policy to prompts: sampling as the stages that sample share it, and their rows as Arrow tables."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ppo_core import InPrecision, Ragged, RolloutBatch, SamplingConfig
from tasks.config import SamplingEngine
from tasks.errors import ModelError
from tasks.models import POLICY, Models, context_length, part_directory
from tasks.sampling.engines import (
    PROOF_PROMPTS,
    BuiltinSampler,
    PolicyFiles,
    TokenSampler,
    require_same_policy,
    tied_weights,
)
from tasks.sampling.passes import batch_logprobs
from tasks.store import SAMPLING_LOGPROBS, Ref, Table, ragged_column, rollouts_schema, with_columns
from tasks.text import copy_tokenizer, decode_response, ending_of, stop_checker, terminators


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
        """``proof_prompts``, the same all through a run, are what another engine than the builtin one is tried on first."""
        self._models = models
        self._context = models.context
        self._tokenizer = models.policy_tokenizer(policy)
        self._policy = models.policy(policy)
        self._ref = policy
        self._engine = engine
        self._proof_prompts = None if engine == "builtin" else proof_prompts

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
        with self._opened_engine(sampling.temperature) as engine:
            if self._proof_prompts is not None:
                self._prove(engine, sampling)
            batch = engine.draw(
                prompt_tokens,
                samples_per_prompt=samples_per_prompt,
                sampling=sampling,
                stop_strings=stop_strings,
                should_stop=stop_checker(self._tokenizer, stop_strings),
                seeds=seeds,
                on_rows=on_rows,
            )
        if self._engine != "builtin":
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

    @contextmanager
    def _opened_engine(self, temperature: float) -> Iterator[TokenSampler]:
        execution = self._context.execution
        if self._engine == "builtin":
            policy = InPrecision(self._policy, self._models.dtype, self._models.head_dtype)
            yield BuiltinSampler(policy, token_budget=execution.micro_batch_tokens)
            return
        with self._weights_on_disk() as directory, ExitStack() as opened:
            base = self._context.lora_base
            files = PolicyFiles(
                directory=directory.resolve(),
                digest=self._ref.digest,
                tied=tied_weights(self._policy if base is None else self._policy.model),
                scratch=self._context.output.parent,
            )
            if execution.engine_server is not None:
                from tasks.sampling.engines.vllm_server import vllm_server

                yield opened.enter_context(vllm_server(execution.engine_server, files))
            else:
                from tasks.sampling.engines.vllm_in_process import vllm_in_process

                yield opened.enter_context(
                    vllm_in_process(
                        self._context.resident,
                        files,
                        lora_base=None if base is None else part_directory(base, POLICY),
                        dtype=self._models.dtype,
                        temperature=temperature,
                        trust_remote_code=self._models.access.trust_remote_code,
                    )
                )

    def _prove(self, engine: TokenSampler, sampling: SamplingConfig) -> None:
        """Refuse an engine that does not sample from this policy, before anything is drawn for the run."""
        assert self._proof_prompts is not None
        prompts = ragged_column(self._proof_prompts, "prompt_token_ids", torch.int64)
        require_same_policy(
            engine,
            prompts.select(torch.arange(min(len(prompts), PROOF_PROMPTS))),
            self._logprobs,
            sampling=sampling,
            context=self._context,
            dtype=self._models.dtype,
        )

    def _logprobs(self, batch: RolloutBatch, temperature: float) -> torch.Tensor:
        return batch_logprobs(self._models, self._policy, batch, temperature=temperature)

    @contextmanager
    def _weights_on_disk(self) -> Iterator[Path]:
        """The policy's directory; a copy for a while where its weights were not kept, since other engines read files."""
        directory = part_directory(self._ref, POLICY)
        if any(directory.glob("*.safetensors")):
            yield directory
            return
        copy = self._context.output.parent / f"policy-{self._ref.digest}"
        try:
            self._models.write_policy(self._ref, copy)
            copy_tokenizer(directory, copy)
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def with_terminators(
    sampling: SamplingConfig, stop_strings: tuple[str, ...], tokenizer: Any
) -> tuple[SamplingConfig, tuple[str, ...]]:
    """The user's settings, and all that ends a response of this model beside them."""
    ending = ending_of(tokenizer)
    spelt_out = ending.stop_string if ending is not None else None
    if spelt_out is not None and spelt_out not in stop_strings:
        stop_strings = (*stop_strings, spelt_out)
    ids = {*sampling.stop_token_ids, *terminators(tokenizer)}
    return replace(sampling, stop_token_ids=tuple(sorted(ids))), stop_strings


def without_unknown_tokens(sampling: SamplingConfig, tokenizer: Any, vocab_size: int) -> SamplingConfig:
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
