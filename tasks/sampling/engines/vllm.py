"""The engine vllm: the server that the configuration names, else vLLM in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.models import POLICY, part_directory
from tasks.sampling.engines.interface import LoadedPolicy, TokenSampler
from tasks.sampling.engines.policy_files import on_disk
from tasks.sampling.engines.vllm_in_process import vllm_in_process
from tasks.sampling.engines.vllm_server import vllm_server


@contextmanager
def open_vllm(policy: LoadedPolicy, *, temperature: float) -> Iterator[TokenSampler]:
    models = policy.models
    server, base = models.context.execution.engine_server, models.context.lora_base
    with on_disk(policy) as files:
        if server is not None:
            with vllm_server(server, files) as engine:
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
