"""Readers of the file formats that data comes in; each yields rows as mappings, numbered from 1."""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.errors import DataError, shorten

Values = dict[str, Any]
Numbered = Iterator[tuple[int, Values]]


def read_path(path: Path, split: str | None) -> Numbered:
    if path.is_dir():
        yield from enumerate(_load_saved(path, split), start=1)
        return
    if split is not None:
        raise DataError(f"{path} is a file and has no splits; remove split: {split}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} ends in {path.suffix!r}; give one of {', '.join(_READERS)} or a saved `datasets` directory"
        )
    yield from reader(path)


def _read_json_lines(path: Path) -> Numbered:
    with path.open("rb") as file:
        # Bytes are split at b"\n" only: text files may hold U+2028 and the like inside a string.
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if path.suffix.lower() == ".json" and line.lstrip()[:1] == b"[":
                    yield from _read_json_array(path)
                    return
            if not line.strip():
                continue
            place = f"{path}, row {number}"
            try:
                values = json.loads(line.decode("utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
                text = shorten(line.decode("utf-8", errors="replace").strip())
                raise DataError(f"{place}: the line {text} is not JSON ({error}); correct or remove it") from None
            yield number, _an_object(values, place)


def _read_json_array(path: Path) -> Numbered:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} begins with '[' but is not a JSON list ({error}); correct it") from None
    for number, values in enumerate(rows, start=1):
        yield number, _an_object(values, f"{path}, row {number}")


def _an_object(values: Any, place: str) -> Values:
    if not isinstance(values, dict):
        raise DataError(f'{place}: {shorten(values)} is not an object; write each row as {{"column": value, ...}}')
    return values


def _read_csv(path: Path) -> Numbered:
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, refuses a long text
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise DataError(f"{path}: a column name appears twice in the header {header}; rename one")
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, row {number}: {len(cells)} values {shorten(cells)} for the {len(header)} columns "
                        f"{', '.join(header)}; put quotes around values that hold commas or line breaks"
                    )
                yield number, dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}, row {number + 1}: not CSV in UTF-8 ({error}); correct it") from None


def _read_parquet(path: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    number = itertools.count(1)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    yield next(number), values
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({_first_line(error)}); write it again") from None


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _split_directory(path: Path, split: str | None) -> Path:
    """Where the one data set lies in what ``save_to_disk`` wrote: the directory itself, or that of a split."""
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return path / _one_split(splits, split, str(path))
    if not (path / "state.json").is_file():
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{path} is a directory but not one that `datasets` saved (it holds {inside}); "
            f"for the files in it give a pattern such as {path}/*.jsonl"
        )
    if split is not None:
        raise DataError(f"{path} is one saved data set without splits; remove split: {split}")
    return path


def _one_split(splits: list[str], split: str | None, name: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        given = "has several splits" if split is None else f"has no split {split!r}"
        raise DataError(f"{name} {given}; set split to one of {', '.join(splits)}")
    return split


def _load_saved(path: Path, split: str | None) -> Iterable[Values]:
    from datasets import load_from_disk

    where = _split_directory(path, split)
    try:
        return load_from_disk(str(where))
    except Exception as error:  # whatever a damaged directory makes of it: Arrow, JSON, OS or type errors
        raise DataError(f"{where} is not a readable saved data set ({_first_line(error)}); save it again") from error


def saved_files(path: Path, split: str | None) -> list[Path]:
    where = _split_directory(path, split)
    # Not by pattern: `datasets` leaves its cache-*.arrow files in the same directory.
    state = json.loads((where / "state.json").read_text(encoding="utf-8"))
    return [where / file["filename"] for file in state["_data_files"]]


def load_hub(name: str, subset: str | None, split: str | None, revision: str | None) -> Iterable[Values]:
    import datasets

    tried = f"datasets.load_dataset({name!r}, {subset!r}, split={split!r}, revision={revision!r})"
    try:
        data = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the hub, the network and the data's own format all fail in their own ways
        raise DataError(
            f"{tried} failed with {type(error).__name__}: {_first_line(error)}; check the name, or, where this machine "
            f"is offline, download the data elsewhere, write it with save_to_disk, and give that directory as path"
        ) from error
    if isinstance(data, dict):
        return data[_one_split(list(data), split, name)]
    return data


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
