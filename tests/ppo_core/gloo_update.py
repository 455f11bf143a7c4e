"""Updates shared by processes: run as one of them, it writes what came out; imported, it says which updates.

    python gloo_update.py RANK NUM_PROCESSES RENDEZVOUS_FILE OUTPUT_FILE

Every group of the first processes, from two to all of them, runs each update.
"""

import datetime
import sys

import torch
from small_models import HistoryPolicy
from torch import distributed, nn
from update_world import World

from ppo_core import Optimizers

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


def run_update(name, group=None):
    """Weights and statistics after the update; in a group some processes have few rows, or none."""
    world = World()
    world.policy = WithSpare(world.policy.table.detach())
    world.optimizers = Optimizers(
        # An epsilon that large keeps a rounding of a gradient near 0 from growing to a step.
        policy=torch.optim.AdamW(world.policy.parameters(), 0.05, eps=1e-3, weight_decay=0.1),
        critic=world.optimizers.critic,
    )
    stats = world.update(batch=world.off_policy(), micro_batch_tokens=12, group=group, **UPDATES[name])
    return [*world.weights, world.policy.spare.detach()], stats.as_dict()


def main():
    rank, num_processes = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{sys.argv[3]}",
        rank=rank,
        world_size=num_processes,
        timeout=datetime.timedelta(seconds=120),
    )
    results = {}
    for size in range(2, num_processes + 1):
        group = distributed.new_group(list(range(size)))
        if rank < size:
            results[size] = {name: run_update(name, group) for name in UPDATES}
    torch.save(results, sys.argv[4])
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
