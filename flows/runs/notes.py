"""What people wrote beside pages: notes of rollouts, searches that are worth keeping. Lines are only ever added."""

import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.errors import ConfigError
from tasks.store import append_lines, wait_in_turn

LONGEST_NOTE = 10_000
# Browsers take // and /\\ for the beginning of another host, and pass over control characters between.
OWN = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A few words about what a page shows."""

    note_id: str
    address: str
    """Path and query of the page: a search is kept with it."""
    text: str
    time: float
    is_removed: bool = False


def notes(home: Path) -> list[Note]:
    """Those that nobody removed, the newest first. A line that a crash broke off was never confirmed."""
    try:
        lines = file_of(home).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found: dict[str, Note] = {}
    for line in lines:
        try:
            note = Note(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[note.note_id] = note
    return [note for note in reversed(found.values()) if not note.is_removed]


def keep_note(home: Path, address: str, text: str) -> Note:
    """Write a note down.

    Raises:
        ConfigError: it is empty or too long, or about no page of ours.
    """
    require_own(address)
    if not text.strip() or len(text) > LONGEST_NOTE:
        raise ConfigError(f"a note has 1 to {LONGEST_NOTE:,} characters, and this one {len(text.strip()):,}; change it")
    note = Note(note_id=secrets.token_hex(8), address=address, text=text.strip(), time=time.time())
    with locked(home):
        append_lines(file_of(home), [asdict(note)])
    return note


def remove_note(home: Path, note_id: str) -> None:
    """Take a note off the pages; its line stays.

    Raises:
        ConfigError: there is no such note, or no more.
    """
    with locked(home):
        own = next((note for note in notes(home) if note.note_id == note_id), None)
        if own is None:
            raise ConfigError(
                f"{note_id}: there is no such note, or no more; the list of notes has those that there are"
            )
        append_lines(file_of(home), [{**asdict(own), "is_removed": True}])


def require_own(address: str) -> None:
    """Refuse an address that leads elsewhere.

    Raises:
        ConfigError: it is no path of these pages.
    """
    if OWN.fullmatch(address) is None:
        raise ConfigError(f"{address!r} is no address of these pages; open the page that is meant, and note it there")


def file_of(home: Path) -> Path:
    return home / "notes" / "notes.jsonl"


@contextmanager
def locked(home: Path) -> Iterator[None]:
    directory = file_of(home).parent
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        wait_in_turn(lock)
        yield
