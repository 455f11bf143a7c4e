"""One stage at a time on one accelerator, whatever runs and processes want it.

A lock of the kernel, so that a process that dies lets go of the device at once. Prefect's own concurrency limits would hold
it for a minute after a kill, and end a training whose lease a restarted server has forgotten.
"""

import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tasks.errors import RunError
from tasks.store import exclusive, wait_in_turn

TELL_S = 1.0
Report = Callable[[Mapping[str, Any]], None]


def device_key(device: torch.device) -> str | None:
    """What tells this accelerator from the others of the machine, however a process numbers them; None for the CPU."""
    if device.type == "cuda":
        return f"cuda-{torch.cuda.get_device_properties(device).uuid}"
    return None if device.type == "cpu" else device.type


@contextmanager
def alone_on(key: str | None, report: Report, *, user: str, directory: Path | None = None) -> Iterator[None]:
    """Be the only stage on the device of this key; while another one is, say so to ``report``.

    ``user`` is what those who wait are told. Waiting counts as progress: a stage that waits its turn does not hang.
    """
    if key is None:
        yield
        return
    path = (lock_directory() if directory is None else directory) / f"{key}.lock"
    with path.open("a+") as stream:
        if not exclusive(stream, patience_s=0):
            with telling(report, path, holder=path.read_text().strip()):
                wait_in_turn(stream)
        stream.truncate(0)
        stream.write(f"{user} (process {os.getpid()})")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


@contextmanager
def telling(report: Report, path: Path, *, holder: str) -> Iterator[None]:
    """Report every second that this stage waits."""
    ended = threading.Event()
    began = time.monotonic()
    report({"warning": f"waits for {path.stem}, which {holder or 'another stage'} uses"})

    def tell() -> None:
        while not ended.wait(TELL_S):
            waited = round(time.monotonic() - began)
            report({"done": waited, "total": waited, "unit": f"s of waiting for {path.stem}", "tokens": 0})

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def lock_directory() -> Path:
    """A directory of this user's on this machine alone: locks on a shared file system would reach other machines."""
    directory = Path(tempfile.gettempdir()) / f"rounds-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise RunError(
            f"{directory} belongs to somebody else; have it removed, or set TMPDIR to a directory of your own"
        )
    return directory
