"""Updates shared by processes: imported, it says which updates; run, it has them done and writes what came out.

    python gloo_update.py FOLDER

Three processes; every group of the first of them, of two and of three, runs each update.
"""

import datetime
import sys
from pathlib import Path

# Imported on the first use of an optimizer: better once than in each process.
import torch._dynamo
from small_models import HistoryPolicy
from torch import distributed, multiprocessing, nn
from update_world import World

from ppo_core import ALONE, Optimizers, Sharing

NUM_PROCESSES = 3
UPDATES = {
    "clipped surrogate": {"epochs": 2, "num_minibatches": 2},
    "one row per minibatch": {"epochs": 2, "num_minibatches": 6, "critic_epochs": 1},
    "every term": {
        "epochs": 2,
        "num_minibatches": 3,
        "aggregation": "seq_mean",
        "kl_loss_coef": 0.3,
        "entropy_coef": 0.1,
        "cliprange": (0.1, 0.2),
        "dual_clip": 2.0,
    },
    "exact divergence": {
        "num_minibatches": 2,
        "loss": "pg",
        "kl_loss_coef": 0.3,
        "kl_loss_estimator": "exact",
        "kl_loss_direction": "forward",
        "target_kl": 0.001,
    },
}


class WithSpare(HistoryPolicy):
    """A policy with a parameter that no token ever reaches."""

    def __init__(self, table):
        super().__init__(table)
        self.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))


SHARES = {1: (2, 3, 4), 2: (2, 4), 3: (3,)}
"""Numbers of shares, by the number of processes that work on them."""


def run_update(name, sharing=ALONE, *, micro_batch_tokens=8192):
    """Weights and statistics after the update; in a group some processes have few rows, or none."""
    world = World()
    world.policy = WithSpare(world.policy.table.detach())
    world.optimizers = Optimizers(
        # An epsilon that large keeps a rounding of a gradient near 0 from growing to a step.
        policy=torch.optim.AdamW(world.policy.parameters(), 0.05, eps=1e-3, weight_decay=0.1),
        critic=world.optimizers.critic,
    )
    stats = world.update(
        batch=world.off_policy(), micro_batch_tokens=micro_batch_tokens, sharing=sharing, **UPDATES[name]
    )
    return [*world.weights, world.policy.spare.detach()], stats.as_dict()


def join(rank: int, folder: Path, processes: int) -> None:
    """Be one of so many processes that find each other by a file in this folder."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=100),
    )


def take_part(rank, folder):
    join(rank, folder, NUM_PROCESSES)
    results = {}
    for size in range(1, NUM_PROCESSES + 1):
        group = distributed.new_group(list(range(size))) if size > 1 else None
        if rank >= size:
            continue
        # A process works through its rows one by one, a single one through all at once.
        results[size] = {name: run_update(name, Sharing(group), micro_batch_tokens=12) for name in UPDATES}
        for shares in SHARES[size]:
            results[size, shares] = {
                name: run_update(name, Sharing(group, shares), micro_batch_tokens=12) for name in UPDATES
            }
    torch.save(results, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked processes share the imports, most of the time that this takes. Here nothing has started a thread yet.
    method = "fork" if sys.platform == "linux" else "spawn"
    multiprocessing.start_processes(take_part, (Path(sys.argv[1]),), NUM_PROCESSES, start_method=method)
