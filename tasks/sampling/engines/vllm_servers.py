"""vLLM servers as the engine: one policy pushed to all, and rows dealt to them.

Which server a row goes to is a function of the row's seed, so of its ``rollout_id``, and of nothing that a clock decides: a
run that is repeated asks each server for the same rows. Only where a server dies do its rows go to others, each row in an
order of its own, so that all others share them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from ppo_core import Ragged, RolloutBatch, SamplingConfig
from tasks.errors import TransientError, UnreachableError
from tasks.sampling.engines.policy_files import PolicyFiles
from tasks.sampling.engines.vllm_push import Loaded, push
from tasks.sampling.engines.vllm_rows import Ended, as_batch, ended, sampling_parameters
from tasks.sampling.engines.vllm_server import CONCURRENT_REQUESTS, Server

Warn = Callable[[str], None]


@contextmanager
def vllm_servers(urls: Sequence[str], policy: PolicyFiles, warn: Warn) -> Iterator["VLLMServers"]:
    """The servers once they hold the policy; those that do not answer are left out and told, if others do."""
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(url)) for url in urls]
        yield VLLMServers(push_to_all(servers, policy, warn), warn)


def push_to_all(servers: Sequence[Server], policy: PolicyFiles, warn: Warn) -> list[Loaded | None]:
    """The servers, each with the policy; None for one that does not answer. Raises what else went wrong with any."""
    files = nullcontext(policy.directory) if policy.is_adapter else policy.with_tied_weights()
    with files as directory, ThreadPoolExecutor(len(servers)) as pool:
        pushes = [pool.submit(push, server, policy, directory) for server in servers]
    errors = [future.exception() for future in pushes]
    for error in errors:
        if error is not None and not isinstance(error, UnreachableError):
            raise error
    away = [error for error in errors if error is not None]
    if len(away) == len(servers):
        raise away[0]
    for error in away:
        warn(others_take_over(error))
    return [None if error is not None else push.result() for error, push in zip(errors, pushes, strict=True)]


def others_take_over(error: BaseException) -> str:
    return f"{error}; until then the other servers sample its rows"


class VLLMServers:
    """Samples by servers that all hold one policy; None stands for one that is away."""

    def __init__(self, servers: Sequence[Loaded | None], warn: Warn) -> None:
        self._servers = servers
        self._warn = warn

    @property
    def replicas(self) -> dict[str, "VLLMServers"]:
        there = [loaded for loaded in self._servers if loaded is not None]
        return {f"the engine at {loaded.server.url}": VLLMServers([loaded], self._warn) for loaded in there}

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
        prompts = prompts.select(torch.arange(len(seeds)) // samples_per_prompt)
        rows: dict[int, Ended] = {}
        dead: dict[int, TransientError] = {}
        tokens = 0

        def draw_row(i: int) -> Ended:
            parameters = sampling_parameters(sampling, stop_strings, seeds[i])
            for position in order_of_servers(seeds[i], len(self._servers)):
                loaded = self._servers[position]
                if loaded is None or position in dead:
                    continue
                try:
                    row = loaded.complete(prompts.row(i).tolist(), parameters)
                    return ended(row, sampling, should_stop, engine=str(loaded.server))
                except TransientError as error:
                    dead.setdefault(position, error)
            raise next(iter(dead.values()))

        with ThreadPoolExecutor(min(CONCURRENT_REQUESTS * len(self._servers), len(seeds))) as pool:
            futures = {pool.submit(draw_row, i): i for i in range(len(seeds))}
            try:
                for future in as_completed(futures):
                    row = rows[futures[future]] = future.result()
                    tokens += len(row.token_ids)
                    on_rows(len(rows), tokens)
            finally:
                # After an error, what was not asked yet is not asked any more.
                pool.shutdown(cancel_futures=True)
        for error in dead.values():
            self._warn(others_take_over(error))
        return as_batch([rows[i] for i in range(len(seeds))], prompts)


def order_of_servers(seed: int, num_servers: int) -> list[int]:
    """Whom a row is asked of: the first server, if that one is dead the second, and so on.

    The digits of the seed in the factorial number system, so that each order is the order of as many rows as any other.
    """
    order, left = [], list(range(num_servers))
    while left:
        seed, digit = divmod(seed, len(left))
        order.append(left.pop(digit))
    return order
