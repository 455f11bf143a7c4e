"""Rows that somebody has in memory, as a file that a run can name."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import ConfigError
from tasks.store.digests import digest_file
from tasks.store.files import flush

KINDS = {("pandas", "DataFrame"), ("datasets", "Dataset")}


def are_rows(value: Any) -> bool:
    """Whether this is a ``pandas.DataFrame`` or a ``datasets.Dataset``; neither library is imported for that."""
    return any((kind.__module__.partition(".")[0], kind.__name__) in KINDS for kind in type(value).__mro__)


def write_once(directory: Path, rows: Any, *, field: str) -> Path:
    """The Parquet file below ``directory`` that holds these rows and is called by its content; made where it is not there.

    Raises:
        ConfigError: there is no row, or a column holds values of several types; begins with ``field``.
    """
    try:
        # The index of a data frame is no column of the data; a data set may be a selection of its table.
        table = (
            pa.Table.from_pandas(rows, preserve_index=False)
            if hasattr(rows, "to_numpy")
            else rows.with_format("arrow")[:]
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = "; ".join(map(str, error.args))
        raise ConfigError(
            f"{field}: these rows are no table ({reason}); give each column values of one type"
        ) from error
    if table.num_rows == 0:
        raise ConfigError(f"{field}: a {type(rows).__name__} without a row; give at least one")
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{os.getpid()}.parquet"
    try:
        # What a library notes of itself is no content.
        pq.write_table(table.replace_schema_metadata(None).combine_chunks(), partial)
        file = directory / f"{digest_file(partial)[:32]}.parquet"
        if not file.exists():
            flush(partial)
            partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    return file
