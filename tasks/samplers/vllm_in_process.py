"""vLLM in this process, on the GPU of the trainer: asleep while the trainer works, with the weights it is then given.

This file needs CUDA and the extra ``vllm``; the test suite runs it against a stand-in that records its calls.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ppo_core import Ragged, RolloutBatch, SamplingConfig
from tasks.models import ResidentModels
from tasks.samplers import require_available
from tasks.samplers.vllm_rows import ADAPTER_FILE, Row, as_batch, ended, sampling_parameters

MEMORY_SHARE = 0.4
"""Of the GPU's memory, while it samples; the trainer's models stay beside it."""
MAX_LORA_RANK = 128
"""vLLM sets aside memory for adapters of this rank before it has seen one."""


class InProcessVLLM:
    """Samples from the checkpoint in ``directory``, whose content has this digest."""

    def __init__(
        self,
        models: ResidentModels,
        directory: Path,
        digest: str,
        *,
        lora_base: Path | None,
        dtype: torch.dtype,
        trust_remote_code: bool,
    ) -> None:
        require_available("vllm", None)
        self._models = models
        self._directory = directory
        self._digest = digest
        self._lora_base = lora_base
        self._options = {
            "dtype": str(dtype).removeprefix("torch."),
            "trust_remote_code": trust_remote_code,
            **({} if lora_base is None else {"enable_lora": True, "max_lora_rank": MAX_LORA_RANK}),
            "load_format": "safetensors",
            "gpu_memory_utilization": MEMORY_SHARE,
            "enable_sleep_mode": True,
        }

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
        if (self._directory / ADAPTER_FILE).exists():
            adapter = LoRARequest(self._digest, 1 + int(self._digest[:7], 16), str(self._directory))
        llm = self._awake(sampling)
        outputs = llm.generate(
            [{"prompt_token_ids": prompts.row(i).tolist()} for i in range(len(prompts))],
            [SamplingParams(**sampling_parameters(sampling, stop_strings, seed)) for seed in seeds],
            lora_request=adapter,
            use_tqdm=False,
        )
        llm.sleep(level=1)
        rows = [ended(row_of(output.outputs[0]), sampling, should_stop, engine="vllm") for output in outputs]
        on_rows(len(rows), sum(len(row.token_ids) for row in rows))
        return as_batch(rows, prompts)

    def _awake(self, sampling: SamplingConfig) -> Any:
        """The engine, with the weights of this checkpoint."""
        from vllm import LLM

        # Those of the full distribution: before temperature where there is none, else after it.
        mode = "raw_logprobs" if sampling.temperature == 1 else "processed_logprobs"
        options = {**self._options, "logprobs_mode": mode}
        kept = json.dumps(["vllm", str(self._lora_base), options], sort_keys=True)
        model = str(self._lora_base or self._directory)
        return self._models.shared(kept, lambda: LLM(model=model, **options), renew=self._renew)

    def _renew(self, llm: Any) -> None:
        llm.wake_up()
        if self._lora_base is None:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self._directory)})
            llm.reset_prefix_cache()


def row_of(output: Any) -> Row:
    """A completion of vLLM: at each position, log-probabilities by token."""
    ids = list(output.token_ids)
    return Row(
        ids, [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)], output.finish_reason
    )
