"""Cores and memory, as far as this process may use them."""

import os
from pathlib import Path

from flows.doctor.finding import OK, WARNING, Finding

LITTLE_MEMORY = 2 * 2**30
"""Bytes; the worker alone, with a model of a few parameters, needs half of it."""
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container says how much memory it may use."""


def check_machine() -> list[Finding]:
    cores = num_cores()
    found = [Finding(check="cores", state=OK, found=f"{cores} core{'s' * (cores > 1)}")]
    free = free_memory()
    if free is None:
        found.append(Finding(check="memory", state=OK, found="the system does not say how much is free"))
    elif free < LITTLE_MEMORY:
        move = "end other programs, or lower execution.micro_batch_tokens and use model.lora"
        found.append(Finding(check="memory", state=WARNING, found=f"{gib(free)} free", next_move=move))
    else:
        found.append(Finding(check="memory", state=OK, found=f"{gib(free)} free"))
    return found


def num_cores() -> int:
    """Those that this process may use, which a batch system or a container can have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(meminfo: Path = Path("/proc/meminfo"), limits: tuple[Path, ...] = CGROUPS) -> int | None:
    """Bytes that a new process could have, at most those that a container allows in all."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
    allowed = [int(text) for path in limits if path.exists() and (text := path.read_text().strip()).isdigit()]
    return min([free, *allowed])


def gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
