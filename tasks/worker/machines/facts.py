"""What must be the same on all nodes of a cluster, or a shard would have other bytes on one than on another."""

import hashlib
import os
import platform
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import tasks
from tasks import environment
from tasks.data import code_digest
from tasks.errors import UserError

PACKAGES = ("rlhf-rounds", "torch", "transformers", "tokenizers", "numpy")
GPUS = Path("/proc/driver/nvidia/gpus")
CPUS = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One node, as one of its processes sees it."""

    node: str
    directory: str | None
    """Where it works; None where the directory is not there."""
    software: dict[str, str]
    """Versions and digests of code, which the machine where the command was given has too."""
    hardware: dict[str, str] = field(default_factory=dict)
    """By which results round, which all workers have alike."""


def facts_of_node(functions: Sequence[str], directory: str | None) -> Facts:
    """What this process has. ``functions`` are the import paths that the configuration names."""
    software = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            software[package] = metadata.version(package)
    software["the code of rlhf-rounds"] = own_code()
    for function in functions:
        try:
            software[f"the code of {function}"] = code_digest(function)[:12]
        except UserError as error:
            software[f"the code of {function}"] = f"none ({error})"
    hardware = {"the processor": processor()}
    if not environment.names_threads():
        hardware["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    gpus = gpu_names()
    if gpus:
        hardware["GPUs"] = ", ".join(gpus)
    return Facts(node=socket.gethostname(), directory=directory, software=software, hardware=hardware)


def own_code() -> str:
    """A digest of the files that stages are made of, since a checkout keeps its version while it changes."""
    root = Path(tasks.__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("tasks/**/*.py"), *root.glob("ppo_core/**/*.py")]):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def processor() -> str:
    """The name of the processor, where the system says it."""
    with suppress(OSError):
        for line in CPUS.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def gpu_names() -> list[str]:
    """The different names of NVIDIA's GPUs in this machine, where its driver says them."""
    names = set()
    with suppress(OSError):
        for path in GPUS.glob("*/information"):
            names |= {
                line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("Model")
            }
    return sorted(names)


def changed_to(directory: str) -> bool:
    """Whether this process could make the directory its own, from which functions and relative paths are looked for."""
    try:
        os.chdir(directory)
    except OSError:
        return False
    return True


def what_it_reads(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def mistake_of_node(here: Facts, there: Facts, *, probe: Path, written: str, read: str | None) -> str | None:
    """Why a worker on a node cannot do what one here does, in a sentence."""
    if read != written:
        return (
            f"execution.ray: node {there.node} does not see {probe.parent} as this machine does; put the home on a file "
            "system that all nodes share under the same path"
        )
    if there.directory is None:
        return (
            f"execution.ray: node {there.node} has no directory {here.directory}, where the command is given and functions "
            "are looked for; give it in a directory that all nodes share"
        )
    for name, own in here.software.items():
        other = there.software.get(name, "none")
        if other != own:
            return (
                f"execution.ray: node {there.node} has {name} {other}, and this machine {own}; install the same on both"
            )
    return None


def unlike(all_facts: Iterable[Facts]) -> str | None:
    """Where the hardware of two workers differs by which results round, in a sentence."""
    first, *others = all_facts
    for other in others:
        for name in ("GPUs",) if "GPUs" in first.hardware else ("GPUs", "the processor", "cores"):
            own, theirs = first.hardware.get(name, "none"), other.hardware.get(name, "none")
            if own != theirs:
                remedy = "set OMP_NUM_THREADS" if name == "cores" else "take one of them out of the cluster"
                return (
                    f"execution.ray: for {name}, node {first.node} has {own} and node {other.node} has {theirs}, which "
                    f"round otherwise; {remedy}"
                )
    return None
