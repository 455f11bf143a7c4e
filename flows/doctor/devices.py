"""Accelerators, as torch sees them. Asked in a process of its own: a driver that hangs must not take us with it."""

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.doctor.finding import OK, PROBLEM, WARNING, Finding
from flows.doctor.machine import gib
from tasks import environment

PATIENCE_S = 120.0
DRIVER = Path("/proc/driver/nvidia/version")
FULL = 0.1
"""A device of which less than that share is free is used by somebody else."""
CHECK = "accelerator"


def check_devices() -> list[Finding]:
    return of_devices(seen_by_torch(), has_driver=DRIVER.exists())


def seen_by_torch() -> Mapping[str, Any]:
    """What torch says in another process; ``error`` where it cannot say anything."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "flows.doctor.devices"],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                # Not where a file of the user could stand in place of a library.
                cwd=directory,
                env=environment.worker_environment(),
            )
        except subprocess.TimeoutExpired:
            return {"error": f"torch did not answer within {PATIENCE_S:g} s"}
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode or not last.startswith("{"):
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(last)
    return found


def of_devices(seen: Mapping[str, Any], *, has_driver: bool) -> list[Finding]:
    """What of it is fit for runs."""
    if "error" in seen:
        move = "python -c 'import torch; print(torch.cuda.is_available())' shows all that it says"
        return [Finding(check=CHECK, state=PROBLEM, found=f"torch cannot be asked: {seen['error']}", next_move=move)]
    if seen["devices"]:
        return [of_device(device) for device in seen["devices"]]
    torch = f"torch {seen['torch']}"
    if has_driver and seen["built_for"] is None:
        move = "install a torch that is built for CUDA, as https://pytorch.org/get-started says; else runs use the CPU"
        found = f"an NVIDIA driver is here, but {torch} is built without CUDA"
        return [Finding(check=CHECK, state=WARNING, found=found, next_move=move)]
    if has_driver:
        why = seen["warning"] or "no device is visible to it; CUDA_VISIBLE_DEVICES may hide it"
        move = "correct that, or set execution.device: cpu"
        return [Finding(check=CHECK, state=PROBLEM, found=f"{torch} sees no GPU: {why}", next_move=move)]
    return [
        Finding(check=CHECK, state=OK, found=f"{torch}: {'Apple MPS' if seen['mps'] else 'none; runs use the CPU'}")
    ]


def of_device(device: Mapping[str, Any]) -> Finding:
    if device["error"]:
        move = "install a torch that is built for this GPU and driver, or set execution.device: cpu"
        found = f"{device['name']} cannot compute: {device['error']}"
        return Finding(check=CHECK, state=PROBLEM, found=found, next_move=move)
    found = f"{device['name']}, {gib(device['free'])} of {gib(device['total'])} free"
    if device["free"] < FULL * device["total"]:
        move = "nvidia-smi shows who uses it; end that, or choose another by execution.device"
        return Finding(check=CHECK, state=WARNING, found=found, next_move=move)
    return Finding(check=CHECK, state=OK, found=found)


def seen_here() -> dict[str, Any]:
    """What torch sees in this process; a device counts that has added two numbers."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = []
    for number in range(count):
        device: dict[str, Any] = {"name": torch.cuda.get_device_name(number), "error": ""}
        try:
            device["free"], device["total"] = torch.cuda.mem_get_info(number)
            assert torch.ones(2, device=f"cuda:{number}").sum().item() == 2.0
        except (RuntimeError, AssertionError) as error:
            device["error"] = (str(error).splitlines() or [type(error).__name__])[0]
        devices.append(device)
    return {
        "torch": torch.__version__,
        "built_for": torch.version.cuda or torch.version.hip,
        "devices": devices,
        "warning": str(told[-1].message).splitlines()[0] if told else "",
        "mps": torch.backends.mps.is_available(),
    }


if __name__ == "__main__":
    print(json.dumps(seen_here()))
