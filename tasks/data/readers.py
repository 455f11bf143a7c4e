"""Readers of the file formats that data comes in; each yields rows as mappings, numbered from 1.

What is wrong with one row is yielded in its place, as a ``Problem``, so that the others can be read; a file that cannot be
read on is refused.
"""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr

from tasks.data.plain_values import Problem, Values, an_object, as_values, json_object, once
from tasks.errors import DataError, shorten
from tasks.paths import is_there, require_regular

Numbered = Iterator[tuple[int, Values | Problem]]
COMPRESSIONS = (".gz", ".zst")
MAX_ROW = 256 * 2**20
"""Bytes, or characters, of one row: a few kilobytes of a compressed file may stand for more than any memory holds."""


def format_of(path: Path) -> tuple[str, str]:
    """The endings that say how a file is read: its format's, and that of its compression or nothing."""
    compression = path.suffix.lower()
    if compression not in COMPRESSIONS:
        return compression, ""
    return Path(path.stem).suffix.lower(), compression


def read_path(path: Path, split: str | None) -> Numbered:
    """The rows of a file, or of a directory that `datasets` saved.

    Raises:
        DataError: the format is unknown, or the file is damaged.
    """
    require_readable(path, split)
    if path.is_dir():
        yield from enumerate(_load_saved(path, split), start=1)
        return
    yield from _READERS[format_of(path)[0]](require_regular(path))


def require_readable(path: Path, split: str | None) -> None:
    """Refuse a file of an unknown format, without reading it."""
    if path.is_dir():
        return
    if split is not None:
        raise DataError(f"{path} is a file and has no splits; remove split: {split}")
    ending, compression = format_of(path)
    if ending not in _READERS:
        raise DataError(
            f"{path} ends in {ending + compression!r}; give one of {', '.join(_READERS)}, plain or compressed as "
            f"{' or '.join(COMPRESSIONS)}, or a saved `datasets` directory"
        )


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed."""
    compression = format_of(path)[1]
    if compression == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if compression == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))
    return path.open("rb")


def _damaged(path: Path, number: int, error: Exception) -> DataError:
    ending, compression = format_of(path)
    kind = f"{compression or ending} file"
    return DataError(f"{path} is no readable {kind} after row {number} ({_first_line(error)}); write it again")


def _read_json_lines(path: Path) -> Numbered:
    number = 0
    try:
        with _open(path) as file:
            # Bytes are split at b"\n" only: text files may hold U+2028 and the like inside a string.
            for number, line in enumerate(_lines(file, path), start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    if format_of(path)[0] == ".json" and line.lstrip()[:1] == b"[":
                        rest = file.read(MAX_ROW + 1)
                        if len(rest) > MAX_ROW:
                            raise _too_long(path, "the list in it")
                        yield from _read_json_array(path, line + rest)
                        return
                if line.strip():
                    yield number, json_object(line)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, number, error) from None


def _lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """The lines of a file, none of which may be without end."""
    for number in itertools.count(1):
        line = file.readline(MAX_ROW + 1)
        if len(line) > MAX_ROW:
            raise _too_long(path, f"line {number}")
        if not line:
            return
        yield line


def _too_long(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what} is longer than {MAX_ROW // 2**20} MiB; write one row to a line, or split the file"
    )


def _read_json_array(path: Path, content: bytes) -> Numbered:
    try:
        rows = json.loads(content.decode("utf-8"), object_pairs_hook=once)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} begins with '[' but is not a JSON list ({error}); correct it") from None
    for number, values in enumerate(rows, start=1):
        yield number, an_object(values)


def _read_csv(path: Path) -> Numbered:
    """Fields between commas, or tabs in a .tsv, with the same quotes around those that hold a separator or a break."""
    csv.field_size_limit(MAX_ROW)  # the default, 128 KiB, refuses a long text
    number = 0
    delimiter = "\t" if format_of(path)[0] == ".tsv" else ","
    try:
        with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(map(_without_nul, _lines(file, path)), strict=True, delimiter=delimiter)
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise DataError(f"{path}: a column name appears twice in the header {header}; rename one")
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(header):
                    yield (
                        number,
                        Problem(
                            f"{len(cells)} values {shorten(cells)} for the {len(header)} columns {', '.join(header)}",
                            "put quotes around values that hold separators or line breaks",
                            "not one value for each column",
                        ),
                    )
                else:
                    yield number, dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        kind = "CSV" if delimiter == "," else "tab-separated"
        raise DataError(f"{path}, row {number + 1}: not {kind} in UTF-8 ({error}); correct it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, number, error) from None


def _without_nul(line: str) -> str:
    """The line, in which no text has the character that fills every other byte of a file in UTF-16."""
    if "\0" in line:
        raise csv.Error("a NUL character in it")
    return line


def _read_parquet(path: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # Parquet is read from its end, which a compressed stream has to be unpacked for.
        with (
            _open(path) as raw,
            pyarrow.parquet.ParquetFile(io.BytesIO(raw.read()) if format_of(path)[1] else path) as file,
        ):
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{path}: a column name appears twice among {', '.join(names)}; rename one")
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield number, as_values(values)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error, ValueError, OverflowError, LookupError) as error:
        # Of the last three are dates that no calendar has, texts that are not UTF-8, and unknown time zones.
        raise DataError(
            f"{path} is not a readable Parquet file after row {number} ({_first_line(error)}); write it again"
        ) from None


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}


def _split_directory(path: Path, split: str | None) -> Path:
    """Where the one data set lies in what ``save_to_disk`` wrote: the directory itself, or that of a split."""
    if is_there(path / "dataset_dict.json"):
        splits = _read_part(path, "dataset_dict.json", lambda content: content["splits"])
        if not splits or not all(isinstance(name, str) and Path(name).name == name for name in splits):
            raise _unreadable(path, "dataset_dict.json does not name directories in it as its splits")
        return path / _one_split(splits, split, str(path))
    if not is_there(path / "state.json"):
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{path} is a directory but not one that `datasets` saved (it holds {inside}); "
            f"for the files in it give a pattern such as {path}/*.jsonl"
        )
    if split is not None:
        raise DataError(f"{path} is one saved data set without splits; remove split: {split}")
    return path


def _read_part(directory: Path, name: str, wanted: Callable[[Any], list[str]]) -> list[str]:
    """A list out of one of the JSON files beside a saved data set."""
    try:
        return [*wanted(json.loads(require_regular(directory / name).read_text(encoding="utf-8")))]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise _unreadable(directory, f"{name}: {_first_line(error)}") from error


def _unreadable(directory: Path, why: str) -> DataError:
    return DataError(f"{directory} is not a readable saved data set ({why}); save it again")


def _one_split(splits: list[str], split: str | None, name: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        given = "has several splits" if split is None else f"has no split {split!r}"
        raise DataError(f"{name} {given}; set split to one of {', '.join(splits)}")
    return split


def _load_saved(path: Path, split: str | None) -> Iterator[Values | Problem]:
    from datasets import load_from_disk

    saved_files(path, split)
    where = _split_directory(path, split)
    try:
        data = load_from_disk(str(where))
        yield from _stored_values(data)
    except Exception as error:  # whatever a damaged directory makes of it: Arrow, JSON, OS or type errors
        raise _unreadable(where, _first_line(error)) from error


def _stored_values(data: Any) -> Iterator[Values | Problem]:
    """The rows as they are stored: decoded, a picture would be an object of a library's."""
    for table in data.with_format("arrow").iter(batch_size=1024):
        for values in table.to_pylist():
            yield as_values(values)


def saved_files(path: Path, split: str | None) -> list[Path]:
    """The files of a saved data set, each of which is a regular one in its directory."""
    where = _split_directory(path, split)
    # Not by pattern: `datasets` leaves its cache-*.arrow files in the same directory.
    names = _read_part(where, "state.json", lambda state: [file["filename"] for file in state["_data_files"]])
    if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise _unreadable(where, f"state.json names {shorten(outside[0])}, which is no file in it")
    return [require_regular(where / name) for name in names]


def load_hub(name: str, subset: str | None, split: str | None, revision: str | None) -> Iterable[Values | Problem]:
    import datasets

    tried = f"datasets.load_dataset({name!r}, {subset!r}, split={split!r}, revision={revision!r})"
    try:
        data = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the hub, the network and the data's own format all fail in their own ways
        raise DataError(
            f"{tried} failed with {type(error).__name__}: {_first_line(error)}; check the name, or, where this machine "
            f"is offline, download the data elsewhere, write it with save_to_disk, and give that directory as path"
        ) from error
    return _stored_values(data[_one_split(list(data), split, name)] if isinstance(data, dict) else data)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
