"""How a file is not the one any more of which a digest is known."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tasks.config import Source
from tasks.data.readers import format_of
from tasks.data.sources import digest_of_files, matching_paths, source_digest
from tasks.errors import DataError

OF_LINES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


def how_changed(source: Source, digest: str, *, seed: int) -> str | None:
    """In words, how a local source is not the one that had this digest; None where it is."""
    try:
        if source_digest(source, seed=seed) == digest:
            return None
        files = matching_paths(source.path or "")
    except DataError:
        return "is gone"
    if len(files) > 1:
        return "matches other files, or changed ones,"
    lines = lines_added(files[0], digest)
    return f"has {lines:,} more line{'s' * (lines > 1)} at its end" if lines else "has changed"


def lines_added(path: Path, digest: str) -> int | None:
    """How many lines were added at the end of a file whose content had this digest; None if more has changed than that, or
    where the format is none of lines."""
    kind = format_of(path)
    if kind[0] not in OF_LINES or kind[1] or not path.is_file():
        return None
    was = total = 0
    for total, content in enumerate(beginnings(path)):
        if digest in (digest_of_files([("".join(kind), own)]) for own in content):
            was = total
            break
    else:
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file) - was


def beginnings(path: Path) -> Iterator[tuple[str, ...]]:
    """The digest of the first lines of a file, of no, one, two … of them; with the last line's end and without it."""
    begun = hashlib.sha256()
    yield (begun.hexdigest(),)
    with path.open("rb") as file:
        for line in file:
            bare = line.rstrip(b"\r\n")
            begun.update(bare)
            without = begun.hexdigest()
            begun.update(line[len(bare) :])
            yield (without, begun.hexdigest())
