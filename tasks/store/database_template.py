"""Databases whose migration takes seconds: migrated once on this machine, copied into every home after that.

A template lies in the user's cache. Its name says for which versions it was migrated, and ends with the digest of what it
holds, so that one that is damaged or of another version is never taken. Where there is no cache to write to, each home
migrates its own.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks import environment
from tasks.config import Json
from tasks.store.digests import canonical_json, digest_text
from tasks.store.files import flush
from tasks.store.locks import exclusive

DIRECTORY = "databases"
SIDE_FILES = ("-wal", "-shm", "-journal")
DIGEST_LENGTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseTemplate:
    """What a library's SQLite database is when it has been migrated and never used."""

    library: str
    migrations: str
    """Where its migrations lie, below the library's package."""
    made_with: tuple[str, ...]
    """Distributions whose versions decide, beside the library's own."""
    filled: frozenset[str]
    """Tables that have rows when it has been migrated; all others are empty."""
    emptied: tuple[str, ...] = ()
    """Tables whose rows say something of the home where it was migrated, and are made anew at the first use."""

    def place(self, database: Path) -> bool:
        """Copy the template to where there is no database yet; False where there is one, or no template that is sound."""
        # SQLite would apply what an earlier database left beside it to the new one.
        if any(path.exists() for path in (database, *(Path(f"{database}{end}") for end in SIDE_FILES))):
            return False
        temporary = database.with_name(f".{database.name}.{os.getpid()}")
        try:
            for content in self._sound(private_directory()):
                temporary.write_bytes(content)
                flush(temporary)
                temporary.rename(database)
                flush(database.parent)
                return True
        except (OSError, importlib.metadata.PackageNotFoundError):
            temporary.unlink(missing_ok=True)
        return False

    def keep(self, database: Path) -> None:
        """Make a template of a database that was migrated just now and not used yet, unless there is one."""
        with suppress(OSError, sqlite3.Error, importlib.metadata.PackageNotFoundError):
            directory = private_directory()
            with (directory / "lock").open("a+") as lock:
                if not exclusive(lock) or any(self._sound(directory)):
                    return
                for left in directory.glob(f".{self._key()}*"):
                    left.unlink()
                temporary = directory / f".{self._key()}"
                if self._copy(database, temporary):
                    flush(temporary)
                    temporary.rename(directory / f"{self._key()}.{digest_of(temporary.read_bytes())}.db")
                    flush(directory)
                temporary.unlink(missing_ok=True)

    def _sound(self, directory: Path) -> Iterator[bytes]:
        """The contents of those templates that are what their names say."""
        for path in sorted(directory.glob(f"{self._key()}.*.db")):
            content = path.read_bytes()
            if path.name == f"{self._key()}.{digest_of(content)}.db":
                yield content

    def _copy(self, database: Path, target: Path) -> bool:
        """Copy a database as one file, without what is of its home; whether there is nothing else in it."""
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM INTO ?", [str(target)])
        with closing(sqlite3.connect(target)) as connection:
            with connection:
                for table in self.emptied:
                    connection.execute(f"DELETE FROM {table}")
            connection.execute("VACUUM")
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            has_rows = {name for name in names if connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()}
        return has_rows == self.filled

    def _key(self) -> str:
        """The library's version, and a digest of all that decides what its migrations make."""
        spec = importlib.util.find_spec(self.library)
        package = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
        migrations = sorted((path.name, path.stat().st_size) for path in (package / self.migrations).glob("*.py"))
        versions = {name: importlib.metadata.version(name) for name in (self.library, *self.made_with)}
        decided_by: list[Json] = [versions, sqlite3.sqlite_version, migrations]
        return f"{self.library}-{versions[self.library]}-{digest_text(canonical_json(decided_by))[:16]}"


def private_directory() -> Path:
    """Where templates lie: a directory that nobody else may write to. Raises ``OSError`` where there can be none."""
    directory = environment.cache_directory() / DIRECTORY
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{directory} may be written to by others")
    return directory


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
