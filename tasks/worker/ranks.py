"""A stage that trains, executed by several processes that hold the same model and share its micro-batches.

The processes belong to the worker: they are in its process group, so that whoever kills it kills them, and they end when
their standard input does. They find each other by a file in the stage's scratch directory, and open no port to others than
this machine. What the first one says is what all say.
"""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from tasks import environment
from tasks.config import ExecutionConfig
from tasks.contract import ElsewhereError, StageContext, StageOutput
from tasks.models import empty_cache
from tasks.store import Inputs, flat, make_empty, read_json, write_json
from tasks.worker.protocol import read_lines
from tasks.worker.supervisor import out_of_memory_kills

JOB, RESULT, FAILURE = "job.json", "result.json", "failure-{}.json"
POLL_S = 0.1
GRACE_S = 5.0
"""So long the others may take to say why they failed, once one has."""


def train_together(name: str, context: StageContext, settings: Mapping[str, Any], inputs: Inputs) -> StageOutput:
    """Execute a stage in ``execution.train_processes`` processes; what it made lies below ``context.output``.

    Raises ``ElsewhereError`` with the words of the process that failed first.
    """
    for ref in flat(inputs):
        context.resident.require_files(ref)
    # Each process has models of its own, on the same devices.
    context.resident.clear()
    empty_cache()
    directory = context.output.parent / "ranks"
    make_empty(directory)
    write_json(directory / JOB, job_of(name, context, settings, inputs))
    kills = out_of_memory_kills()
    with ExitStack() as held:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        processes = started(directory, context.execution, lines, held)
        held.callback(end, processes)
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                wait_for(processes, GRACE_S)
                break
            with suppress(queue.Empty):
                tell(context, lines.get(timeout=POLL_S))
        while not lines.empty():
            tell(context, lines.get())
        codes = [process.poll() for process in processes]
    if any(code != 0 for code in codes):
        raise failure(directory, codes, ran_out=out_of_memory_kills() > kills)
    return StageOutput(**read_json(directory / RESULT))


def job_of(name: str, context: StageContext, settings: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """All that a process needs to execute its part, as JSON."""
    return {
        "stage": name,
        "output": str(context.output),
        "place": dataclasses.asdict(context.place),
        "run_seed": context.run_seed,
        "execution": context.execution.model_dump(mode="json"),
        "health": context.health.model_dump(mode="json"),
        "keeps_recoverable": context.keeps_recoverable,
        "settings": dict(settings),
        "inputs": json.loads(json.dumps(inputs, default=dataclasses.asdict)),
    }


def started(
    directory: Path, execution: ExecutionConfig, lines: "queue.SimpleQueue[str]", held: ExitStack
) -> list["subprocess.Popen[bytes]"]:
    """The processes, of which the first writes into ``lines`` how far it is."""
    read_end, write_end = os.pipe()
    threading.Thread(target=read_lines, args=(os.fdopen(read_end, "r"), lines), daemon=True).start()
    processes = []
    try:
        for rank in range(execution.train_processes):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.worker.rank", str(directory), str(rank), str(write_end)],
                stdin=subprocess.PIPE,
                pass_fds=(write_end,) if rank == 0 else (),
                env={**environment.worker_environment(), **environment.of_rank(rank, in_parts=execution.sharded)},
            )
            processes.append(held.enter_context(process))
    finally:
        os.close(write_end)
    return processes


def tell(context: StageContext, line: str) -> None:
    if line:
        context.report(json.loads(line))


def wait_for(processes: "list[subprocess.Popen[bytes]]", patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def end(processes: "list[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()


def failure(directory: Path, codes: "list[int | None]", *, ran_out: bool) -> ElsewhereError:
    """Why processes ended: one that was killed says nothing, and those that miss it then say something that is no cause."""
    number = len(codes)
    told = [found for rank in range(number) if (found := read_json(directory / FAILURE.format(rank))) is not None]
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    of_users = [found for found in told if found["kind"] in ("user", "refused", "memory")]
    if killed and not of_users:
        rank = killed[0]
        how = f"was killed by signal {signal.Signals(-(codes[rank] or 0)).name}"
        if ran_out:
            return ElsewhereError("memory", f"process {rank + 1} of {number} {how}, since the machine's memory ran out")
        return ElsewhereError("transient", f"process {rank + 1} of {number} that train together {how}")
    if not told:
        ended = next(rank for rank, code in enumerate(codes) if code != 0)
        return ElsewhereError(
            "defect",
            f"process {ended + 1} of {number} that train together ended with exit code {codes[ended]} and said nothing; "
            f"does it see {directory}?",
        )
    first = min(told, key=lambda found: found["at"])
    return ElsewhereError(first["kind"], first["message"], is_of_users_code=first["is_of_users_code"])
