"""Where data comes from: ``Source`` says it, ``read_rows`` reads it, ``source_digest`` identifies its content.

A row keeps the place it was read from, so that every later complaint can name it. What the columns mean is the business
of ``tasks.records``. Local files are read without ``datasets.load_dataset``, which waits for the network even for them.
"""

import difflib
import glob
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.config import Json, Source
from tasks.data.bad_rows import BadRow, Row
from tasks.data.functions import code_digest, import_function
from tasks.data.plain_values import Problem, Values, as_values
from tasks.data.readers import format_of, load_hub, read_path, require_readable, saved_files
from tasks.errors import DataError, shorten
from tasks.paths import is_there, naming, require_regular, shown, user_path
from tasks.store import found_or_known


def read_rows(source: Source, *, seed: int, position: int = 0) -> list[Row]:
    """All rows of ``source``, in order; relative paths start at the current directory.

    A row that cannot be read has no values, but says why. ``seed`` reaches only a function source; ``position`` is that of
    the source among those of its kind.

    Raises:
        DataError: nothing is there, it cannot be read, no row has a column of ``columns``, one of them would hide a
            column of the data, or there is no row at all.
        ConfigError: ``function`` cannot be imported.
    """
    rows: list[Row] = []
    columns: dict[str, None] = {}
    for place, values in itertools.islice(_numbered_rows(source, seed), source.limit):
        if isinstance(values, Problem):
            unread = BadRow(f"{place}: {values.what}; {values.move}", reason=values.reason)
            rows.append(Row(place, {}, unread, position))
            continue
        columns |= dict.fromkeys(values)
        rows.append(Row(place, _renamed(values, source, place), source=position))
    if not rows:
        raise DataError(f"{source.name} holds no rows; give a source with at least one")
    for ours, theirs in source.columns.items():
        if columns and theirs not in columns:
            raise DataError(
                f"{source.name}: there is no column {theirs!r} to use as {ours!r}; "
                f"the columns are {', '.join(columns)}; correct columns.{ours}"
            )
    return rows


def source_digest(source: Source, *, seed: int) -> str:
    """32 hex digits that change with the content: same digest, same rows before ``columns`` and ``limit``.

    Of files, their bytes (not their names or times); of a hub data set, name, subset, split and revision; of a
    function, import path, arguments, seed and its code, as far as it lies in the user's own files.
    """
    what = [source.model_dump(mode="json"), seed]
    digest: str = found_or_known("data", what, lambda: _source_digest(source, seed))
    return digest


def require_there(source: Source) -> None:
    """Refuse a source that does not exist, without reading it; one of the hub is not looked for.

    Raises:
        DataError: there is no such file, or it is of no kind that can be read.
        ConfigError: there is no such function.
    """
    if source.function is not None:
        code_digest(source.function)
    if source.path is not None:
        for path in matching_paths(source.path):
            require_readable(path, source.split)
        _files_of(source.path, source.split)


def _files_of(path: str, split: str | None) -> list[Path]:
    return [
        file
        for found in matching_paths(path)
        for file in (saved_files(found, split) if found.is_dir() else [require_regular(found)])
    ]


def _source_digest(source: Source, seed: int) -> str:
    if source.path is not None:
        return digest_of_files(
            [("".join(format_of(file)), _file_digest(file)) for file in _files_of(source.path, source.split)]
        )
    if source.dataset is not None:
        identity: list[Json] = ["hub", source.dataset, source.subset, source.split, source.revision]
    else:
        assert source.function is not None
        identity = ["function", source.function, source.arguments, seed, code_digest(source.function)]
    return _digest(identity)


def digest_of_files(files: Sequence[tuple[str, str]]) -> str:
    """The digest of a source of files, each of which is given by its ending and its own digest."""
    return _digest(["files", list(files)])


def _digest(identity: list[Json]) -> str:
    canonical = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _numbered_rows(source: Source, seed: int) -> Iterator[tuple[str, Values | Problem]]:
    if source.path is not None:
        for path in matching_paths(source.path):
            for number, values in read_path(path, source.split):
                yield f"{path}, row {number}", values
    elif source.dataset is not None:
        data = load_hub(source.dataset, source.subset, source.split, source.revision)
        for number, values in enumerate(data, start=1):
            yield f"{source.dataset}, row {number}", values
    else:
        assert source.function is not None
        yield from _rows_of_function(source.function, source.arguments, seed)


def _rows_of_function(function: str, arguments: dict[str, Any], seed: int) -> Iterator[tuple[str, Values | Problem]]:
    call = import_function(function, field="function")
    number = 0
    try:
        rows = call(seed=seed, **arguments)
        if not isinstance(rows, Iterable):
            raise DataError(f"{function} returned {shorten(rows)}; it must yield one dict per row")
        for number, values in enumerate(rows, start=1):
            place = f"{function}, row {number}"
            if not isinstance(values, dict):
                raise DataError(f"{place}: {shorten(values)} is not a dict; yield one dict per row")
            yield place, as_values(values)
    except DataError:
        raise
    except Exception as error:
        # Their code may raise anything; with the cause kept, the log still shows where.
        raise DataError(
            f"{function} raised {type(error).__name__}: {error} after {number} rows; "
            f"it is called as {function.partition(':')[2]}({', '.join(['seed=...', *(f'{k}=...' for k in arguments)])})"
        ) from error


def is_pattern(path: str) -> bool:
    """Whether a path stands for all files that match it."""
    return any(mark in path for mark in "*?[") and not is_there(user_path(path))


def matching_paths(path: str, *, missing_ok: bool = False) -> list[Path]:
    """The file or directory of that name, or what a pattern matches, in order."""
    here = user_path(path)
    if is_there(here):
        return [here]
    if is_pattern(path):
        found = sorted(Path(match) for match in glob.glob(str(here), recursive=True))
        if found or missing_ok:
            return found
        raise DataError(f"no file matches {shown(path)} (looked from {Path.cwd()}); correct the pattern")
    near = difflib.get_close_matches(here.name, [p.name for p in here.parent.glob("*")], n=3)
    where = f"{here.parent} has {', '.join(near)}" if near else f"looked from {Path.cwd()}"
    raise DataError(f"{shown(path)} does not exist ({where}); correct path")


def _renamed(values: Values, source: Source, place: str) -> Values:
    """The row under our names; a column that it lacks, as JSON Lines lack what is null, is absent."""
    columns = source.columns
    if not columns:
        return values
    theirs = set(columns.values())
    for name in columns:
        if name not in theirs and values.get(name) is not None:
            raise DataError(
                f"{place}: columns: {{{name}: {columns[name]}}} would hide the column {name} that the data has too; "
                f"give that one another name, as in columns: {{{name}: {columns[name]}, other_{name}: {name}}}"
            )
    taken = {*columns, *theirs}
    named = {ours: values[name] for ours, name in columns.items() if name in values}
    return named | {name: value for name, value in values.items() if name not in taken}


def _file_digest(path: Path) -> str:
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
