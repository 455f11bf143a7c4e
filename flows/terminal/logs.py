"""What a run has committed, with the time, and its log files, without anything in them that acts on a terminal."""

import time
from collections.abc import Iterator
from pathlib import Path

from flows.runs import Run
from flows.server import log_of
from flows.terminal.display import headline
from flows.text import duration, printable_lines, stage_label
from tasks.store import Manifest

LONGEST_TAIL = 1024 * 1024
"""Bytes at the end of a file that are looked at: logs of months are long."""
PAUSE_S = 1.0


def log_files(run: Run) -> list[Path]:
    """Those of the run, then that of the Prefect server of its home."""
    found = sorted(run.root.glob("*.log"))
    return [*found, *(path for path in [log_of(run.home)] if path.exists())]


def last_lines(file: Path, most: int) -> list[str]:
    """The last lines of a file."""
    text, _ = _read_on(file, tail_of(file), to_the_end=True)
    return shown(text).splitlines()[-most:]


def tail_of(file: Path) -> int:
    """Where the end of a file begins that is looked at."""
    return max(0, file.stat().st_size - LONGEST_TAIL)


def stage_lines(run: Run, most: int, seen: set[Path]) -> list[str]:
    """A line for each of the last outputs that are not in ``seen``, in the order in which they were committed."""
    fresh = [path for path in run.store.outputs() if path not in seen]
    seen.update(fresh)
    # By the directory's time, so that no more manifests are read than are told of.
    fresh = sorted(fresh, key=lambda path: path.stat().st_mtime)[-most:]
    manifests = [manifest for path in fresh if (manifest := Manifest.read_if_sound(path)) is not None]
    return [stage_line(manifest) for manifest in sorted(manifests, key=lambda manifest: manifest.committed_at)]


def stage_line(manifest: Manifest) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.committed_at))
    numbers = headline(manifest.stage, manifest.metrics)
    told = [f"{manifest.rows:,} rows", duration(manifest.seconds), *([numbers] if numbers else [])]
    return f"{at}  {stage_label(manifest.stage, manifest.place)}: {', '.join(told)}"


def shown_logs(run: Run, most: int) -> Iterator[str]:
    """The last lines of all that is told, each file below its name."""
    yield from stage_lines(run, most, set()) or [f"{run.name} has committed nothing yet"]
    for file in log_files(run):
        found = last_lines(file, most)
        yield head_of(file) if found else f"{head_of(file)} (empty)"
        yield from found


def followed(run: Run, most: int) -> Iterator[str]:
    """The last lines of all that is told, then what comes to it until the run is no longer in progress."""
    positions: dict[Path, int] = {}
    seen: set[Path] = set()
    last: Path | None = None
    yield from stage_lines(run, most, seen)
    for file in log_files(run):
        # Read once: what comes in between is neither lost nor told twice.
        text, positions[file] = _read_on(file, tail_of(file), to_the_end=False)
        yield head_of(file)
        yield from shown(text).splitlines()[-most:]
        last = file
    is_over = False
    while not is_over:
        is_over = not run.is_in_progress()
        if fresh := stage_lines(run, most, seen):
            last = None
            yield from fresh
        for file in log_files(run):
            text, positions[file] = _read_on(file, positions.get(file, 0), to_the_end=is_over)
            if text:
                if file != last:
                    yield head_of(file)
                last = file
                yield from shown(text).splitlines()
        if not is_over:
            time.sleep(PAUSE_S)


def _read_on(file: Path, position: int, *, to_the_end: bool) -> tuple[bytes, int]:
    """What a file has behind a position, and where it is read to; half of a line is left for the next time."""
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        # A file that is begun anew is read from its beginning.
        begin = stream.seek(position if position <= size else 0)
        text = stream.read()
    end = len(text) if to_the_end else text.rfind(b"\n") + 1
    return text[:end], begin + end


def head_of(file: Path) -> str:
    return f"==> {printable_lines(file)} <=="


def shown(text: bytes) -> str:
    return printable_lines(text.decode(errors="backslashreplace"))
