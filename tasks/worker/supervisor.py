"""The side that supervises the worker: one child process that holds the models and executes stages.

The child reads calls as JSON lines from standard input and answers on a pipe of its own, so that whatever a library prints
goes to the log. End of input means that the supervisor is gone, and the child ends itself: no orphan keeps a GPU.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks import environment
from tasks.config import ModelChecks
from tasks.contract import Kind, PreviewConfig, StageCall, StageError
from tasks.store import Ref
from tasks.worker.protocol import END, Report, encode_call, read_lines

CLOSE_S = 5.0
POLL_S = 0.5
REPORT_S = 0.1
VMSTAT = Path("/proc/vmstat")


class Supervisor:
    """Supervises the child. One stage at a time; a dead child is replaced at the next call."""

    def __init__(
        self, log: Path, *, settings: Mapping[str, str] | None = None, command: Sequence[str] = ("tasks.worker.child",)
    ) -> None:
        """``settings`` are environment variables of this child alone; ``command`` is its module and, after the descriptor
        that it answers on, its arguments."""
        self._log = log
        self._module, *self._arguments = command
        self._settings = dict(settings or {})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._was_asked = False
        self._out_of_memory_kills = 0

    def begin(self) -> None:
        """Have the child import its libraries, which takes seconds, before there is anything to ask it."""
        with self._lock, suppress(OSError):
            # Whoever asks first is told what is wrong.
            if not self._cancelled.is_set():
                self._started()

    def run(self, call: StageCall, *, report: Report, timeout_s: float | None, is_cancelled: Callable[[], bool]) -> Ref:
        """Execute a call in the child; raise ``StageError`` with the child's own words when it fails."""
        request = {"call": encode_call(call)}
        return Ref(**self.ask(request, call.label, report=report, timeout_s=timeout_s, is_cancelled=is_cancelled))

    def check_models(self, checks: ModelChecks, *, timeout_s: float | None, is_cancelled: Callable[[], bool]) -> None:
        """Look at a run's models in the child; raise ``StageError`` that tells their mistakes, and names no stage."""
        request = {"checks": checks.model_dump(mode="json")}
        self.ask(request, "", report=lambda _: None, timeout_s=timeout_s, is_cancelled=is_cancelled)

    def preview(self, config: PreviewConfig, *, report: Report, timeout_s: float | None) -> dict[str, Any]:
        """What ``tasks.preview.look`` finds in the child, whose parts ``report`` is told of; raises ``StageError``."""
        request = {"preview": config.model_dump(mode="json")}
        found: dict[str, Any] = self.ask(request, "", report=report, timeout_s=timeout_s, is_cancelled=lambda: False)
        return found

    def ask(
        self,
        request: Mapping[str, Any],
        label: str,
        *,
        report: Report,
        timeout_s: float | None,
        is_cancelled: Callable[[], bool],
    ) -> Any:
        """What the child answers in the end; ``label`` is whose request it is, for errors."""
        with self._lock:
            if self._cancelled.is_set():
                raise StageError("cancelled", "the run was cancelled", stage=label)
            process, answers = self._started()
            assert process.stdin is not None
            self._was_asked = True
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            except OSError as error:
                raise self._died(label) from error
            heard = time.monotonic()
            while True:
                if is_cancelled():
                    self.cancel()
                    raise StageError("cancelled", "the run was cancelled", stage=label)
                line = None
                with suppress(queue.Empty):
                    line = answers.get(timeout=POLL_S)
                if line is None:
                    if timeout_s is not None and time.monotonic() - heard > timeout_s:
                        self._kill()
                        message = f"no progress for {timeout_s:g} s; the worker was killed"
                        message += " (execution.stage_timeout_s allows more)"
                        raise StageError("transient", message, stage=label)
                    continue
                if line == END:
                    raise self._died(label)
                heard = time.monotonic()
                answer = json.loads(line)
                if "progress" in answer:
                    report(answer["progress"])
                elif "error" in answer:
                    raise self._failed(label, **answer["error"])
                else:
                    return answer["done"]

    def cancel(self) -> None:
        """Kill the child and refuse further calls; safe from a signal handler and from another thread."""
        self._cancelled.set()
        self._kill()

    def close(self) -> None:
        """Let the child end by itself; kill it if it does not, or while it imports what nobody asked for."""
        if self._was_asked and self._process is not None and self._process.stdin is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.close()
                self._process.wait(CLOSE_S)
        self._kill()
        self._process = None

    def _started(self) -> tuple[subprocess.Popen[str], queue.SimpleQueue[str]]:
        if self._process is None or self._process.poll() is not None:
            read_end, write_end = os.pipe()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    # -P: a file of the user named like a library, in the current directory, must not replace it.
                    [sys.executable, "-P", "-m", self._module, str(write_end), *self._arguments],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_end,),
                    start_new_session=True,
                    text=True,
                    env={**environment.worker_environment(), **self._settings},
                )
            os.close(write_end)
            self._was_asked = False
            self._out_of_memory_kills = out_of_memory_kills()
            self._answers = queue.SimpleQueue()
            reader = os.fdopen(read_end, "r")
            threading.Thread(target=read_lines, args=(reader, self._answers), daemon=True).start()
        return self._process, self._answers

    def _failed(
        self, label: str, *, kind: Kind, message: str, is_of_users_code: bool, log: str | None = None
    ) -> StageError:
        if is_of_users_code:
            message = f"{message}; the whole traceback is in {self._log}"
        return StageError(kind, message, stage=label, log=log or str(self._log))

    def _died(self, label: str) -> StageError:
        assert self._process is not None
        code = self._process.wait()
        self._kill()
        if self._cancelled.is_set():
            return StageError("cancelled", "the run was cancelled", stage=label)
        how = f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        kind: Kind = "transient"
        if code == -signal.SIGKILL and out_of_memory_kills() > self._out_of_memory_kills:
            kind, how = "memory", f"{how}, since the machine's memory ran out"
        return StageError(kind, f"the worker {how}; its log is {self._log}", stage=label, log=str(self._log))

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process is not None and process.stdin is not None:
            # A call that the child never read is still in the buffer and has nowhere to go.
            with suppress(OSError):
                process.stdin.close()


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for their memory since it started; 0 where it does not say."""
    with suppress(OSError):
        for line in VMSTAT.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
