"""What is said of ``execution.workers`` before a run: what they take together, and when some would have nothing to do."""

from collections.abc import Sequence

from flows.config import RunConfig
from flows.doctor import num_cores
from flows.preview.memory import StageMemory
from tasks.config import ExecutionConfig
from tasks.stages import STAGES

OF_SHARDS = ("generate_rollouts", "score_rollouts")
"""The stages that every worker executes; the others are the first one's."""


def doubts_about_workers(config: RunConfig) -> list[str]:
    """A sentence for each reason why there are too many, or too few. They change no result, so that none stops a run: a
    configuration for a larger machine goes on at a smaller one."""
    execution, shards, cores = config.execution, config.rollouts.shards, num_cores()
    lag = config.rollouts.lag
    own = f"execution.workers={execution.workers}"
    doubts = []
    if lag and execution.workers == 1:
        doubts.append(
            f"rollouts.lag={lag}: with {own} nothing is sampled while the policy is updated, so that nothing is gained for "
            "what is learned from older rollouts; raise execution.workers, or leave the lag out"
        )
    # With a lag, one more is busy with the update.
    if execution.workers > 1 and execution.workers > shards + (lag > 0):
        doubts.append(
            f"{own}: an iteration has {shards} shard{'s' * (shards > 1)}, so that no more workers have something to do; "
            "raise rollouts.shards, or lower it"
        )
    if execution.workers_here > max(1, cores) and execution.device != "cuda":
        doubts.append(
            f"{own}: there {'is' if cores == 1 else 'are'} {cores} core{'s' * (cores > 1)}, for which workers on the "
            "processor take turns, so that more of them are no faster; lower it"
        )
    if execution.train_processes > max(1, cores) and execution.device != "cuda":
        doubts.append(
            f"execution.train_processes={execution.train_processes}: there {'is' if cores == 1 else 'are'} {cores} "
            f"core{'s' * (cores > 1)}, for which processes take turns, so that more of them are no faster; lower it"
        )
    return doubts


def memory_of_others(stages: Sequence[StageMemory], workers: int) -> int:
    """Bytes that all workers but the first hold at most, each of which has models of its own."""
    return (workers - 1) * max((stage.total for stage in stages if stage.stage in OF_SHARDS), default=0)


def memory_of_ranks(stages: Sequence[StageMemory], execution: ExecutionConfig) -> int:
    """Bytes that all but the first of the processes hold at most that train a model together. Where it lies in parts, the
    first alone has all of it at once, when it reads it, which takes less than sampling took."""
    most = max((stage.total for stage in stages if STAGES[stage.stage].trains), default=0)
    return (execution.train_processes - 1) * most
