"""The rows that a search found as a Parquet file."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flows.query.data_set import Rows
from tasks.errors import ConfigError
from tasks.paths import is_there, naming, shown, user_path
from tasks.store import flush

ROWS_AT_ONCE = 20_000
"""So that a million rows are written in the memory of a few."""


def write_parquet(rows: Rows, file: Path) -> Path:
    """Write every column to a file that is not there yet: at once, or not at all.

    Raises:
        ConfigError: there is something of that name.
    """
    path = user_path(file, field="--parquet")
    if is_there(path):
        raise ConfigError(f"--parquet {shown(path)}: exists already; name another file, or remove it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(temporary), pq.ParquetWriter(temporary, schema_of(rows)) as writer:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                table = rows.window(start, start + ROWS_AT_ONCE).table(writer.schema.names)
                writer.write_table(whole(table, writer.schema))
        flush(temporary)
        if is_there(path):
            raise ConfigError(f"--parquet {shown(path)}: was made by somebody else meanwhile; name another file")
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def schema_of(rows: Rows) -> pa.Schema:
    """Every column of the parts that have rows here, in the widest of its types."""
    parts = [rows.data_set.parts[number] for number, _ in rows.chosen] or list(rows.data_set.parts[:1])
    none = pa.array([], pa.int64())
    return pa.unify_schemas([part.rows(none, None).schema for part in parts], promote_options="permissive")


def whole(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with all columns of a schema: null where these rows have none."""
    columns = {name: table.column(name) for name in table.column_names}
    return pa.table(
        [
            columns[field.name].cast(field.type) if field.name in columns else pa.nulls(table.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )
