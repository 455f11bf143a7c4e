"""Which room a run takes on its disk, and how often a checkpoint is worth its cost."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.preview.duration import checkpoint_bytes

WRITTEN = 32 * 2**20
"""Bytes that are written to see how fast the disk is."""
FAILURE_S = 86400.0
"""Seconds from one failure to the next that a proposal counts with: a day."""
USED = 0.5
"""Share of what is free that a run may take before fewer checkpoints are proposed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes, and what follows from them."""

    checkpoint: int
    kept: int
    """Checkpoints whose weights stay."""
    passed_on: int
    """Checkpoints that do not stay, but are there for other workers until the next one is."""
    models: int
    """Of models beside checkpoints: warmed up, reward models, pre-trained critics."""
    free: int
    checkpoint_every: int
    """The proposal."""

    @property
    def total(self) -> int:
        return self.checkpoint * (self.kept + self.passed_on) + self.models

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def disk_of(
    config: RunConfig, sizes: Mapping[str, Any], home: Path, *, seconds: Mapping[str, float] | None, write_speed: float
) -> Disk:
    """``seconds`` are those of stages, where they are known."""
    size = checkpoint_bytes(config, sizes)
    models = 0
    if config.warm_up is not None or config.model.from_scratch is not None:
        models += sizes["parameters"] * 4
    if config.reward_model is not None:
        known = {source.from_round for source in config.data.preferences if source.from_round <= config.rounds}
        models += len(known) * sizes["others"].get("reward_model.base", sizes["parameters"]) * 4
    if config.has_critic and config.critic_pretraining is not None and not config.model.critic_is_on_policy:
        models += sizes["parameters"] * 4
    place = next(path for path in (home, *home.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    return Disk(
        checkpoint=size,
        kept=num_kept(config, config.checkpoint_every),
        passed_on=int(config.execution.workers > 1 and config.checkpoint_every > 1),
        models=models,
        free=free,
        checkpoint_every=proposed(config, size, models, free, seconds, write_speed),
    )


def num_kept(config: RunConfig, every: int) -> int:
    """Checkpoints that stay with so many iterations from one to the next: each round's last is one."""
    of_round = math.ceil(config.iterations / every)
    return min(config.rounds * of_round, config.keep_checkpoints or config.rounds * of_round)


def proposed(
    config: RunConfig,
    size: int,
    models: int,
    free: int,
    seconds: Mapping[str, float] | None,
    write_speed: float,
) -> int:
    """The least that leaves half of the disk free, or what costs least in time, whichever is more.

    With C seconds for a checkpoint, u for an update, t for an iteration and a failure every F seconds, writing costs C/m an
    iteration, and making the updates since the last one again (m/2)·u every F/t iterations: m = √(2·C·F / (t·u)).
    """
    every = 1
    if config.rollouts.lag:
        # Each of them is sampled from after the next one was made.
        return every
    if seconds is not None:
        written = size / write_speed
        update = max(seconds["update_policy"] - written, 1e-3)
        iteration = update + config.rollouts.shards * (seconds["generate_rollouts"] + seconds["score_rollouts"])
        # A checkpoint that costs a hundredth of its iteration is not worth a setting.
        if written > 0.01 * iteration:
            every = round(math.sqrt(2 * written * FAILURE_S / (iteration * update)))
    every = max(1, min(every, config.iterations))
    while every < config.iterations and size * num_kept(config, every) + models > USED * free:
        every += 1
    return every


def write_speed(home: Path) -> float:
    """Bytes a second that are on the disk of the home, flushed."""
    place = next(path for path in (home, *home.parents) if path.is_dir())
    with tempfile.NamedTemporaryFile(dir=place, prefix=".check-") as file:
        began = time.monotonic()
        file.write(bytes(WRITTEN))
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / max(time.monotonic() - began, 1e-6)
