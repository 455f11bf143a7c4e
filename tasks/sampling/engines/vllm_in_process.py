"""vLLM in this process, beside the trainer: on a GPU asleep while the trainer works, with the weights it is then given.

The test suite runs this file against a stand-in that records its calls, and ``tests/engines`` against vLLM on a CPU, where
it has no sleep.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ppo_core import Ragged, RolloutBatch, SamplingConfig
from tasks.config import require_available
from tasks.contract import ResidentModels
from tasks.errors import TransientError
from tasks.sampling.engines.policy_files import PolicyFiles
from tasks.sampling.engines.vllm_rows import Row, as_batch, ended, sampling_parameters

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput

MEMORY_SHARE = 0.4
"""Of the GPU's memory, while it samples; the trainer's models stay beside it."""
MAX_LORA_RANK = 128
"""vLLM sets aside memory for adapters of this rank before it has seen one."""


@contextmanager
def vllm_in_process(
    models: ResidentModels,
    policy: PolicyFiles,
    *,
    lora_base: Path | None,
    dtype: torch.dtype,
    temperature: float,
    trust_remote_code: bool,
) -> Iterator["InProcessVLLM"]:
    """The one engine of this process, awake and with this policy; made where there is none yet."""
    require_available("vllm", ())
    from vllm import LLM
    from vllm.platforms import current_platform

    sleeps = bool(current_platform.is_sleep_mode_available())
    options = {
        "dtype": str(dtype).removeprefix("torch."),
        "trust_remote_code": trust_remote_code,
        **({} if lora_base is None else {"enable_lora": True, "max_lora_rank": MAX_LORA_RANK}),
        "load_format": "safetensors",
        "gpu_memory_utilization": MEMORY_SHARE,
        "enable_sleep_mode": sleeps,
        # Those of the full distribution: before temperature where there is none, else after it.
        "logprobs_mode": "raw_logprobs" if temperature == 1 else "processed_logprobs",
    }

    def renew(llm: LLM) -> None:
        if sleeps:
            llm.wake_up()
        if lora_base is None:
            reload(llm, policy)

    kept = json.dumps(["vllm", str(lora_base), options], sort_keys=True)
    model = str(lora_base or policy.directory)
    llm = models.shared(kept, lambda: LLM(model=model, **options), renew=renew)
    yield InProcessVLLM(llm, policy)
    if sleeps:
        llm.sleep(level=1)


def reload(llm: "LLM", policy: PolicyFiles) -> None:
    """Give an engine the weights of a policy in place of those that it has."""
    try:
        with policy.with_tied_weights() as directory:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
    except Exception:
        # Some of its models read the embedding where they need a head, and refuse one.
        if not policy.tied:
            raise
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(policy.directory)})
    if llm.reset_prefix_cache() is False:
        raise TransientError("vllm: it keeps its prefix cache, which holds prompts under the weights before")


class InProcessVLLM:
    """Samples by an engine that has the policy's weights, or those that its adapter goes over."""

    def __init__(self, llm: "LLM", policy: PolicyFiles) -> None:
        self._llm = llm
        self._policy = policy

    @property
    def replicas(self) -> dict[str, "InProcessVLLM"]:
        return {"the engine": self}

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
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        prompts = prompts.select(torch.arange(len(seeds)) // samples_per_prompt)
        adapter = None
        if self._policy.is_adapter:
            digest = self._policy.digest
            adapter = LoRARequest(digest, 1 + int(digest[:7], 16), str(self._policy.directory))
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompts.row(i).tolist()} for i in range(len(prompts))],
            [SamplingParams(**sampling_parameters(sampling, stop_strings, seed)) for seed in seeds],
            lora_request=adapter,
            use_tqdm=False,
        )
        rows = [ended(row_of(output.outputs[0]), sampling, should_stop, engine="vllm") for output in outputs]
        on_rows(len(rows), sum(len(row.token_ids) for row in rows))
        return as_batch(rows, prompts)


def row_of(output: "CompletionOutput") -> Row:
    """A completion of vLLM: at each position, log-probabilities by token."""
    ids = list(output.token_ids)
    return Row(
        ids, [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)], output.finish_reason
    )
