"""Files of a stage that are written, hashed and flushed while it goes on computing."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.store import flush, known_digest

# Writing waits for the disk, hashing for the processor; more at once would take it from who computes.
_WRITERS = 2


class BackgroundWriter:
    """Writes what will not change any more. Leaving the ``with`` waits until all is on the disk, or raises what failed."""

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="writer")
        self._futures: list[Future[None]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            for future in self._futures:
                future.result()

    def write(self, path: Path, write: Callable[[Path], None]) -> None:
        """Have ``write`` make the file or directory ``path``, whose digests are then known to the store."""
        self._futures.append(self._pool.submit(_write, path, write))


def _write(path: Path, write: Callable[[Path], None]) -> None:
    write(path)
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        known_digest(file)
        flush(file)
