"""Arrow tables on disk in the layout of ``datasets``."""

import json
from pathlib import Path

import pyarrow as pa

from tasks.store.digests import digest_file, digest_files


def write_dataset(directory: Path, table: pa.Table) -> None:
    """Write a table in the layout that ``datasets.load_from_disk`` reads, the same bytes for the same table."""
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(table, fingerprint="0").save_to_disk(str(directory))
    # The library's own fingerprint keys its cache of derived data sets, so it must follow the content, and only that.
    state_path = directory / "state.json"
    state = json.loads(state_path.read_text())
    names: list[str] = [entry["filename"] for entry in state["_data_files"]]
    state["_fingerprint"] = digest_files({name: digest_file(directory / name) for name in names})
    state_path.write_text(json.dumps(state, indent=1, sort_keys=True))


def read_dataset(directory: Path) -> pa.Table:
    """Read a data set of ours, memory-mapped."""
    files = [entry["filename"] for entry in json.loads((directory / "state.json").read_text())["_data_files"]]
    return pa.concat_tables([pa.ipc.open_stream(pa.memory_map(str(directory / name))).read_all() for name in files])
