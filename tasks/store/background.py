"""Files of a stage that are written, hashed and flushed while it goes on computing."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.store.digests import known_digest
from tasks.store.files import flush

# Hashing takes the processor, flushing waits for the disk; more at once would take both from who computes.
_WRITERS = 2


class BackgroundWriter:
    """Writes what will not change any more. Leaving the ``with`` waits until that is done, or raises what failed.

    It is on the disk then with ``flushes``; what will be removed again has no need of that.
    """

    def __init__(self, *, flushes: bool = True) -> None:
        self._flushes = flushes

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="writer")
        self._flushing = ThreadPoolExecutor(_WRITERS, thread_name_prefix="flusher")
        self._futures: list[Future[None]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        self._flushing.shutdown()
        if error is None:
            for future in self._futures:
                future.result()

    def write(self, path: Path, write: Callable[[Path], None]) -> None:
        """Have ``write`` make the file or directory ``path``, whose digests are then known to the store."""
        self._futures.append(self._pool.submit(self._write, path, write))

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        write(path)
        for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
            flushed = self._flushing.submit(flush, file) if self._flushes else None
            known_digest(file)
            if flushed is not None:
                flushed.result()
