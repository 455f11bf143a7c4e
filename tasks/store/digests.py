"""Digests: one text for one value, one for one file, one for a set of files; each file read once."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tasks.config import Json

DIGEST_LENGTH = 32
"""Hex digits of every digest; also the longest that MLflow's data set digests may have."""


def canonical_json(value: Json) -> str:
    """One text for one value: sorted keys, no white space, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_files(digests: Mapping[str, str]) -> str:
    """The digest of a set of files from their relative names and digests."""
    return digest_text(canonical_json(dict(digests)))


# Digests of files that this process has read or written, for as long as the file system shows no change of them.
_known_digests: dict[tuple[int, int, int, int], str] = {}


def known_digest(path: Path) -> str:
    """The digest of a file, computed once for as long as inode, size and time of change stay."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _known_digests:
        _known_digests[key] = digest_file(path)
    return _known_digests[key]


def remember_digests(directory: Path, digests: Mapping[str, str]) -> None:
    """Note digests of files that were just computed."""
    for name, digest in digests.items():
        with suppress(FileNotFoundError):
            stat = (directory / name).stat()
            _known_digests[(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)] = digest
