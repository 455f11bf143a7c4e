"""Files and directories of ours: made empty, listed without following links, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import Json
from tasks.errors import RunError


def make_empty(directory: Path) -> None:
    """An empty directory inside another one in scratch; where either is a link, the link alone is removed."""
    for path in (directory.parent, directory):
        if path.is_symlink():
            path.unlink()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def own_directories(directory: Path) -> list[Path]:
    """The directories in one, in order; none that a link leads to, and none where there is no such directory."""
    try:
        with os.scandir(directory) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def flush(path: Path) -> None:
    """Force a file or directory to the disk: a rename may otherwise survive a power cut that its content does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Json) -> None:
    """Write a small file at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
    flush(temporary)
    temporary.rename(path)
    flush(path.parent)


def append_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines behind those of a file, behind one that was broken off too; they are on the disk when this returns."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab+") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
        is_whole_line = not end or stream.read(1) == b"\n"
        lines = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
        stream.write((b"" if is_whole_line else b"\n") + lines.encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_json(path: Path, *, default: Any = None) -> Any:
    """A small file of ours; ``default`` where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or remove it and run again") from error
