"""One of several processes that train together: ``python -m tasks.worker.rank DIRECTORY RANK FD``."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tasks.config import ExecutionConfig, HealthConfig
from tasks.contract import (
    ResidentModels,
    StageContext,
    StageOutput,
    classify,
    describe,
    is_of_users_code,
    run_stage,
)
from tasks.models import pick_device, prefer_determinism
from tasks.store import Place, make_empty, read_json, write_json
from tasks.worker.protocol import decode_inputs
from tasks.worker.ranks import FAILURE, JOB, RESULT
from tasks.worker.supervisor import REPORT_S


def end_with_input() -> None:
    """End when the worker does, whatever this process does at the time."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


def reporter(rank: int, descriptor: int) -> Any:
    """Tells the worker of progress and warnings, in the first process alone."""
    if rank > 0:
        return lambda _: None
    stream = os.fdopen(descriptor, "w", buffering=1)
    told = 0.0

    def report(event: Mapping[str, Any]) -> None:
        nonlocal told
        if "done" not in event or event["done"] == event["total"] or time.monotonic() - told > REPORT_S:
            told = time.monotonic()
            stream.write(json.dumps(dict(event)) + "\n")

    return report


def context_of(job: Mapping[str, Any], directory: Path, rank: int, descriptor: int) -> StageContext:
    """What the stage may know. All but the first process write into a directory that nobody reads."""
    output = Path(job["output"]) if rank == 0 else directory / f"output-{rank}"
    if rank > 0:
        make_empty(output)
    return StageContext(
        output=output,
        place=Place(**job["place"]),
        run_seed=job["run_seed"],
        execution=ExecutionConfig(**job["execution"]),
        health=HealthConfig(**job["health"]),
        resident=ResidentModels(),
        report=reporter(rank, descriptor),
        keeps_recoverable=job["keeps_recoverable"],
        rank=rank,
    )


def part(job: Mapping[str, Any], directory: Path, rank: int, descriptor: int) -> StageOutput:
    """Join the others, and execute the stage with them."""
    context = context_of(job, directory, rank, descriptor)
    is_on_gpu = pick_device(context.execution).type == "cuda"
    if is_on_gpu:
        torch.cuda.set_device(0)
    number = context.execution.train_processes
    distributed.init_process_group(
        "nccl" if is_on_gpu else "gloo",
        store=distributed.FileStore(str(directory / "rendezvous"), number),
        rank=rank,
        world_size=number,
    )
    try:
        return run_stage(job["stage"], context, job["settings"], decode_inputs(job["inputs"]))
    finally:
        distributed.destroy_process_group()


def main() -> None:
    directory, rank, descriptor = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_input, daemon=True).start()
    prefer_determinism()
    job = read_json(directory / JOB)
    if job is None:
        raise SystemExit(f"process {rank + 1} does not see {directory / JOB}")
    try:
        output = part(job, directory, rank, descriptor)
    except Exception as error:
        traceback.print_exc()
        failure: dict[str, Any] = {
            "kind": classify(error),
            "message": describe(error),
            "is_of_users_code": is_of_users_code(error),
            "at": time.time(),
        }
        write_json(directory / FAILURE.format(rank), failure)
        sys.stderr.flush()
        # The others may wait for this one in a collective call that can no more end.
        os._exit(1)
    if rank == 0:
        # Models stay in files: the worker may have no room for them.
        files: dict[str, Any] = {
            "rows": output.rows,
            "metrics": dict(output.metrics),
            "recoverable": output.recoverable,
        }
        write_json(directory / RESULT, files)
    # The thread that waits for the end of the input would be in the interpreter's way.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
