"""Responses of any policy to any prompts, drawn as a run draws them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flows.alone.chosen import Chosen
from flows.alone.in_process import Report, in_process
from flows.outcomes.outputs import find_outputs
from flows.runs import Run
from ppo_core import SamplingConfig
from tasks.config import ExecutionConfig, Source
from tasks.data import Findings, Messages, Prompt, read_rows, to_prompts
from tasks.errors import ConfigError
from tasks.models import Models, context_length, read_text_config
from tasks.models.parts import POLICY, part_directory
from tasks.sampling import Sampler
from tasks.store import Place, Table, ragged_column, read_dataset
from tasks.text import Encoder

NEW_TOKENS = 128
"""Of a response, where no run says how many."""
OF_A_RESPONSE = ["response", "finish_reason", "sample_index", "response_token_ids", "logprobs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How responses are drawn."""

    sampling: SamplingConfig
    stop_strings: tuple[str, ...]
    samples: int
    seed: int
    execution: ExecutionConfig


def asked_of(
    run: Run | None, *, samples: int, seed: int, max_new_tokens: int | None, temperature: float | None
) -> Asked:
    """A run's settings, or the defaults, with what is asked for instead.

    Raises:
        ConfigError: a setting that no sampler takes.
    """
    rollouts = None if run is None else run.config.rollouts
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS) if rollouts is None else rollouts.sampling
    if max_new_tokens is not None:
        sampling = replace(sampling, max_new_tokens=max_new_tokens)
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    return Asked(
        sampling=sampling,
        stop_strings=() if rollouts is None else rollouts.stop_strings,
        samples=samples,
        seed=seed,
        execution=ExecutionConfig() if run is None else run.config.execution,
    )


def written_prompts(texts: Sequence[str], *, run: Run | None, chat: bool | None) -> list[Prompt]:
    """Prompts that a command names, as ``written_prompt`` has them.

    Raises:
        ConfigError: one without a text.
    """
    if any(not text.strip() for text in texts):
        raise ConfigError("PROMPT: one is empty; write what the model is to answer, or to go on with")
    return [
        Prompt(prompt=written_prompt(text, run=run, chat=chat), extra={}, place=f"prompt {number}")
        for number, text in enumerate(texts, start=1)
    ]


def written_prompt(text: str, *, run: Run | None, chat: bool | None) -> str | Messages:
    """A user's message with ``chat``, else a text as it is; where it is None, as the prompts of the run are."""
    if chat is None:
        chat = run is not None and has_conversations(run)
    return [{"role": "user", "content": text}] if chat else text


def has_conversations(run: Run) -> bool:
    """Whether a run's prompts are conversations, by its first one."""
    prepared = [found for found in find_outputs(run) if found.stage == "prepare_data"]
    if not prepared:
        return False
    prompts = read_dataset(max(prepared, key=lambda found: found.place).ref.directory / "prompts")
    return prompts.num_rows > 0 and prompts.column("messages")[0].as_py() != ""


def prompts_in(file: Path) -> list[Prompt]:
    """The prompts of a file of any form that a run reads; rows that cannot be used are told all at once."""
    return to_prompts(read_rows(Source(path=str(file)), seed=0))


def sampled(
    chosen: Chosen, run: Run | None, prompts: Sequence[Prompt], asked: Asked, report: Report
) -> list[dict[str, Any]]:
    """A row for each response, those to one prompt together: the prompt's own columns, and those of a rollout. Each is a
    function of the seed, its prompt and its number."""
    context = in_process(
        run,
        place=Place(0),
        seed=asked.seed,
        execution=asked.execution,
        lora_base=chosen.lora_base,
        report=report,
    )
    with context as given:
        models = Models(given, chosen.access)
        table = encoded(models, chosen, prompts, asked.sampling.max_new_tokens)
        num_rows = table.num_rows * asked.samples
        # The trainer itself, whatever engine the run has: the responses are the policy's, and no server is needed.
        rollouts = Sampler(models, chosen.ref).sample(
            table,
            samples_per_prompt=asked.samples,
            sampling=asked.sampling,
            stop_strings=asked.stop_strings,
            seed_of=lambda prompt_id, index: given.seed("sample", prompt_id, index),
            on_rows=lambda rows, tokens: given.progress(rows, num_rows, tokens=tokens),
        )
    rows = rollouts.select(OF_A_RESPONSE).to_pylist()
    of_rows = [prompt for prompt in prompts for _ in range(asked.samples)]
    return [{**prompt.extra, "prompt": prompt.prompt, **row} for prompt, row in zip(of_rows, rows, strict=True)]


def encoded(models: Models, chosen: Chosen, prompts: Sequence[Prompt], new_tokens: int) -> Table:
    """The prompts as a run prepares them.

    Raises:
        ConfigError: one does not fit the model's context with its response.
    """
    tokenizer = models.policy_tokenizer(chosen.ref)
    findings = Findings()
    table = Encoder(tokenizer, limit=None, findings=findings).prompts(list(prompts), new_tokens)
    findings.require_no_bad_rows()
    config = read_text_config(
        part_directory(chosen.lora_base or chosen.ref, POLICY), trust_remote_code=chosen.access.trust_remote_code
    )
    limit = context_length(config)
    for prompt, length in zip(
        prompts, ragged_column(table, "prompt_token_ids", torch.int64).lengths.tolist(), strict=True
    ):
        if limit is not None and length + new_tokens > limit:
            advice = f"give --max-new-tokens {limit - length} or less" if length < limit else "shorten it"
            raise ConfigError(
                f"{prompt.place}: has {length} tokens, with a response of up to {new_tokens} more than the context of "
                f"{limit} of {chosen.called}; {advice}"
            )
    return table
