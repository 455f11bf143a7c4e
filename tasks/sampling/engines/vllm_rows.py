"""What vLLM is asked for and how its answer becomes a row: the same in process and over a server's protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ppo_core import Ragged, RolloutBatch, SamplingConfig
from tasks.errors import ServerError, TransientError


def sampling_parameters(sampling: SamplingConfig, stop_strings: tuple[str, ...], seed: int) -> dict[str, Any]:
    """``vllm.SamplingParams`` of one row, which are fields of a request to its server too.

    Every field that changes the distribution is given: what is left out, vLLM takes from the model's
    ``generation_config.json``. The response ends where we say, not at what vLLM takes for the model's EOS.
    """
    # The largest bias that it takes; it is part of the log-probabilities that are given after temperature.
    never = {"logit_bias": dict.fromkeys(sampling.suppress_token_ids, -100.0)} if sampling.suppress_token_ids else {}
    return {
        **never,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop": list(stop_strings),
        "stop_token_ids": list(sampling.stop_token_ids),
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        # Of the sampled token alone; 1 would add the most likely one.
        "logprobs": 0,
    }


@dataclass(frozen=True, slots=True)
class Row:
    """One response as an engine gave it."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """One response up to its end."""

    token_ids: list[int]
    logprobs: list[float]
    stopped: bool


def ended(row: Row, sampling: SamplingConfig, should_stop: Callable[[list[int]], bool] | None, *, engine: str) -> Ended:
    """The row up to where our own rules end it: vLLM's idea of the text around a stop string may be another by a token."""
    if len(row.token_ids) != len(row.logprobs) or not 0 < len(row.token_ids) <= sampling.max_new_tokens:
        raise ServerError(
            f"{engine} gave {len(row.token_ids)} token ids and {len(row.logprobs)} log-probabilities for a response of at "
            f"most {sampling.max_new_tokens} tokens; each token needs both"
        )
    for length, token in enumerate(row.token_ids, start=1):
        if token in sampling.stop_token_ids or (should_stop is not None and should_stop(row.token_ids[:length])):
            return Ended(row.token_ids[:length], row.logprobs[:length], True)
    if row.finish_reason == "abort":
        raise TransientError(f"{engine} gave up a response after {len(row.token_ids)} tokens")
    if row.finish_reason == "length" and len(row.token_ids) < sampling.max_new_tokens:
        raise ServerError(
            f"{engine} cut a response off after {len(row.token_ids)} tokens, before "
            f"rollouts.sampling.max_new_tokens={sampling.max_new_tokens}; give it a longer context (--max-model-len)"
        )
    return Ended(row.token_ids, row.logprobs, row.finish_reason == "stop")


def as_batch(rows: Sequence[Ended], prompts: Ragged) -> RolloutBatch:
    """The rows as a batch; ``prompts`` has one for each."""
    return RolloutBatch(
        prompts=prompts,
        responses=Ragged.from_rows([row.token_ids for row in rows], torch.int64),
        stopped=torch.tensor([row.stopped for row in rows], dtype=torch.bool),
        token_columns={"logprobs": torch.tensor([x for row in rows for x in row.logprobs], dtype=torch.float32)},
    )
