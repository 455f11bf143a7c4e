"""Paths that users write, and the one sentence about each way in which the operating system refuses one.

Whether something is there is asked in one way, so that a path that cannot be is told as one that is not there.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import ConfigError, DataError

NEXT_MOVE = {
    errno.ENOSPC: "make room on that disk (rounds clean removes what no configuration uses any more)",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "allow larger files there",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make it readable and writable for this user",
    errno.EPERM: "make it readable and writable for this user",
    errno.ENOENT: "put it back, or rerun the stage that wrote it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "one of the directories in it is a file; correct the path",
    errno.EISDIR: "it is a directory; name a file",
    errno.EEXIST: "name another, or remove it",
    errno.ELOOP: "its links lead in a circle; correct them",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def os_error_sentence(error: OSError) -> str:
    """What the operating system refuses, by its number, with the path that it names."""
    assert error.errno is not None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = f" ({' to '.join(shown(name) for name in names)})" if names else ""
    return f"{os.strerror(error.errno)}{where}; {NEXT_MOVE.get(error.errno, 'make it usable again')}"


def shown(path: str | Path, width: int = 200) -> str:
    """A path for a message: the beginning and the end of a very long one."""
    text = str(path)
    return text if len(text) <= width else f"{text[: width // 2]}...{text[-width // 2 :]} ({len(text):,} characters)"


def user_path(text: str | Path, *, field: str = "") -> Path:
    """The path that somebody wrote, with ``~`` as a home directory.

    Raises:
        ConfigError: it can be no path here; begins with ``field`` where that is given.
    """
    begin = f"{field}: " if field else ""
    if not str(text).strip():
        raise ConfigError(f"{begin}{str(text)!r} is no path; write one")
    try:
        os.fsencode(text)
        path = Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{begin}{shown(text)}: there is no such user's home directory; write it out") from None
    except UnicodeEncodeError:
        raise ConfigError(f"{begin}{shown(repr(str(text)))}: holds half of a character; correct it") from None
    if "\0" in str(path):
        raise ConfigError(f"{begin}{shown(repr(str(text)))}: no path holds a NUL character; correct it")
    return path


def user_directory(text: str | Path, *, field: str) -> Path:
    """The directory that somebody wrote, wherever links lead; it may not be there yet.

    Raises:
        ConfigError: something else is there, or where a directory above it would be.
    """
    path = Path(os.path.realpath(user_path(text, field=field)))
    for place in (path, *path.parents):
        mode = _mode(place)
        if mode is not None:
            if not stat.S_ISDIR(mode):
                kind = KINDS.get(stat.S_IFMT(mode), "a file")
                raise ConfigError(f"{field}: {shown(text)}: {shown(place)} is {kind}; name a directory")
            break
    return path


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Have what the operating system refuses name this file: an error of reading, unlike one of opening, names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_there(path: Path) -> bool:
    """Whether there is something of this path; false too for one that is too long to be there."""
    return _mode(path) is not None


def require_regular(path: Path) -> Path:
    """A file whose end comes: a pipe or a device is waited for, or read, without end.

    Raises:
        DataError: it is something else.
    """
    mode = _mode(path)
    if mode is None:
        raise DataError(f"{path} does not exist; put it back, or correct the path")
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise DataError(f"{path} is {kind}; give a regular file")
    return path


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise
