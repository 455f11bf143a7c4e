"""Other people's programs, run within limits of time and memory: chat templates are programs of a model's author.

The time is what the calling thread computes, so that a busy or stopped machine does not count. What is interrupted is
Python: one operation in C goes on to its end, so the memory it may ask for is limited too.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

POLL_S = 0.1
STATM = Path("/proc/self/statm")
Result = TypeVar("Result")


class LimitError(Exception):
    """A program passed a limit; the text says which, as what it did."""


def run_limited(program: Callable[[], Result], *, seconds: float, more_bytes: int) -> Result:
    """What ``program`` returns. Raises ``LimitError`` where it computes for too long or asks for too much memory."""
    try:
        with _limited_memory(more_bytes), _limited_time(seconds):
            return program()
    except MemoryError:
        raise LimitError(f"needs more than {more_bytes // 2**20:,} MiB of memory") from None
    except _OverTimeError:
        raise LimitError(f"computes for more than {seconds:g} s") from None


class _OverTimeError(BaseException):
    """Not caught by what the program catches."""


class _Watchdog:
    """One thread for all calls; starts with the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, tuple[Callable[[], float], float]] = {}
        self._thread: threading.Thread | None = None
        self._is_wanted = threading.Event()

    def watch(self, thread: int, seconds: float) -> None:
        clock = _clock_of(thread)
        with self._lock:
            self._ends[thread] = (clock, clock() + seconds)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, daemon=True, name="limits")
                self._thread.start()
        self._is_wanted.set()

    def forget(self, thread: int) -> None:
        with self._lock:
            if self._ends.pop(thread, None) is None:
                # The error that was sent may not have arrived yet, and must not arrive in what comes after.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)

    def _look(self) -> None:
        while True:
            self._is_wanted.wait()
            time.sleep(POLL_S)
            with self._lock:
                for thread, (clock, end) in list(self._ends.items()):
                    if clock() > end:
                        del self._ends[thread]
                        sent = ctypes.py_object(_OverTimeError)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), sent)
                if not self._ends:
                    self._is_wanted.clear()


_WATCHDOG = _Watchdog()


def _clock_of(thread: int) -> Callable[[], float]:
    """The processor time of a thread; where the system does not tell, that of the process."""
    find: Any = getattr(time, "pthread_getcpuclockid", None)
    if find is None:
        return time.process_time
    clock = find(thread)
    return lambda: time.clock_gettime(clock)


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    thread = threading.get_ident()
    _WATCHDOG.watch(thread, seconds)
    try:
        yield
    finally:
        _WATCHDOG.forget(thread)


class _MemoryLimit:
    """The process may grow by so much. A process has one limit: calls of several threads at once share the widest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._before = self._now = (0, 0)

    @contextmanager
    def __call__(self, more_bytes: int) -> Iterator[None]:
        try:
            import resource

            size = int(STATM.read_text().split()[0]) * resource.getpagesize()
        except (ImportError, OSError):  # where the system does not say how large the process is, there is no limit
            yield
            return
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._before = resource.getrlimit(resource.RLIMIT_AS)
                self._now = (0, self._before[1])
            wanted = [size + more_bytes, *(own for own in self._before if own != resource.RLIM_INFINITY)]
            self._now = (max(self._now[0], min(wanted)), self._before[1])
            resource.setrlimit(resource.RLIMIT_AS, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    with suppress(ValueError, OSError):
                        resource.setrlimit(resource.RLIMIT_AS, self._before)


_limited_memory = _MemoryLimit()
