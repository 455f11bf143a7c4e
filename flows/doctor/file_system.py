"""Room on the home's disk, and whether its file system does what a stage store needs."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from flows.doctor.finding import OK, PROBLEM, WARNING, Finding
from flows.doctor.machine import gib
from tasks.paths import os_error_sentence, shown
from tasks.store import exclusive, is_locked

FULL, LITTLE_ROOM = 2**28, 5 * 2**30
"""Bytes on the disk of the home: nothing can be committed, and a checkpoint of a small model is about as large."""
OTHER_MACHINES = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "gpfs", "ceph", "glusterfs", "beegfs")
"""How the kinds of file systems begin that several machines may share."""


def check_file_system(home: Path) -> list[Finding]:
    """Of the nearest directory that exists, where the home does not yet."""
    place = next(path for path in (home, *home.parents) if path.is_dir())
    return [check_room(place), check_abilities(place)]


def check_room(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    found = f"{gib(free)} free in {shown(place)}"
    if free >= LITTLE_ROOM:
        return Finding(check="disk", state=OK, found=found)
    move = "rounds clean removes what no configuration uses any more; --home names another disk"
    return Finding(check="disk", state=PROBLEM if free < FULL else WARNING, found=found, next_move=move)


def check_abilities(place: Path) -> Finding:
    """Try in a directory of our own what the store does: lock, flush, rename a directory, replace a file."""
    kind = kind_of(place)
    named = f"{shown(place)}{f' ({kind})' if kind else ''}"
    move = "put the home on a disk of this machine: rounds --home DIR"
    check = "file system"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as trial:
            failed = next((what for what, does in ABILITIES if not does(Path(trial))), None)
    except OSError as error:
        return Finding(check=check, state=PROBLEM, found=f"{named}: {os_error_sentence(error)}", next_move=move)
    if failed is not None:
        return Finding(check=check, state=PROBLEM, found=f"{named} {failed}", next_move=move)
    found = f"{named}: locks, renames and flushes work"
    if kind.startswith(OTHER_MACHINES):
        move = "work on a run from one machine at a time; whether locks reach the others was not tried"
        return Finding(check=check, state=WARNING, found=f"{found} on this machine", next_move=move)
    return Finding(check=check, state=OK, found=found)


def locks(trial: Path) -> bool:
    with (trial / "lock").open("a+") as stream:
        try:
            return exclusive(stream) and is_locked(trial / "lock")
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)


def commits(trial: Path) -> bool:
    """A stage's output is flushed and moved into place as a whole."""
    (trial / "scratch").mkdir()
    (trial / "scratch" / "rows").write_text("1")
    for name in ("scratch/rows", "scratch"):
        handle = os.open(trial / name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    (trial / "scratch").rename(trial / "output")
    return (trial / "output" / "rows").read_text() == "1" and not (trial / "scratch").exists()


def replaces(trial: Path) -> bool:
    for text in ("old", "new"):
        (trial / "half").write_text(text)
        (trial / "half").replace(trial / "whole")
    return (trial / "whole").read_text() == "new"


ABILITIES: tuple[tuple[str, Callable[[Path], bool]], ...] = (
    ("has no locks, so that a run could be started twice", locks),
    ("does not move a directory as a whole, so that half an output could count", commits),
    ("does not replace a file as a whole", replaces),
)


def kind_of(place: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of the file system, such as ext4; empty where the system does not tell."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    # A blank in a path is written as an octal number.
    entries = [(Path(where.replace("\\040", " ")), kind) for _, where, kind, *_ in lines]
    above = [(where, kind) for where, kind in entries if place.resolve().is_relative_to(where)]
    return max(above, key=lambda entry: len(entry[0].parts), default=(place, ""))[1]
