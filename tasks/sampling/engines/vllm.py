"""The engine vllm: the servers that the configuration names, else vLLM in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.models import POLICY, part_directory
from tasks.sampling.engines.interface import LoadedPolicy, TokenSampler
from tasks.sampling.engines.policy_files import on_disk
from tasks.sampling.engines.vllm_in_process import vllm_in_process
from tasks.sampling.engines.vllm_servers import vllm_servers


@contextmanager
def open_vllm(policy: LoadedPolicy, *, temperature: float) -> Iterator[TokenSampler]:
    models = policy.models
    servers, base = models.context.execution.engine_servers, models.context.lora_base
    with on_disk(policy) as files:
        if servers:
            with vllm_servers(servers, files, models.context.warn) as engine:
                yield engine
            return
        with vllm_in_process(
            models.context.resident,
            files,
            lora_base=None if base is None else part_directory(base, POLICY),
            dtype=models.dtype,
            temperature=temperature,
            trust_remote_code=models.access.trust_remote_code,
        ) as in_process:
            yield in_process
