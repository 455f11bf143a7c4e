"""A committed output made again from its stored inputs, and where the two differ first."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.config import ExecutionConfig
from tasks.contract import NO_LIMITS, ResidentModels, StageContext, recover, repeat
from tasks.store import Manifest, Ref, Store, digests_below, read_dataset, require_undamaged
from tasks.store.differences import column_difference
from tasks.worker.ranks import train_together


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A quantity that did not come out the same: where it differs first, and by how much at most."""

    stage: str
    quantity: str
    row: str
    """A rollout's id, a tensor's name, or nothing for a single number."""
    position: int | None
    """Token of the response, or entry of the tensor."""
    stored: Any
    replayed: Any
    largest: float | None
    """Largest absolute difference of the quantity; None where it is not a number."""
    count: int
    """Entries that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One stage made again."""

    stage: str
    place: str
    quantities: int
    differences: list[Difference]


def replay(
    ref: Ref,
    store: Store,
    execution: ExecutionConfig,
    models: ResidentModels,
    report: Callable[[Mapping[str, Any]], None],
) -> Replayed:
    """Run a committed stage again on the inputs that its manifest records, and compare; nothing committed is touched."""
    require_undamaged(ref)
    manifest = Manifest.read(ref.directory)
    scratch = store.root / "scratch" / f"replay-{manifest.fingerprint}"
    context = StageContext(
        output=scratch,
        place=manifest.place,
        run_seed=manifest.recipe["seed"],
        execution=execution,
        health=NO_LIMITS,
        resident=models,
        report=report,
        together=train_together,
    )
    try:
        with models.recovering(lambda other: recover(other, store, context)):
            output = repeat(manifest, store, context, scratch)
        found = [
            *metric_differences(manifest.metrics, output.metrics),
            *file_differences(ref.directory, scratch, manifest, digests_below(scratch)),
        ]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Replayed(
        stage=manifest.stage,
        place=manifest.place.label,
        quantities=len(manifest.metrics) + len(manifest.files),
        differences=[Difference(stage=manifest.stage, **difference) for difference in found],
    )


def metric_differences(stored: Mapping[str, float], replayed: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for name in sorted({*stored, *replayed}):
        before, after = stored.get(name), replayed.get(name)
        if not same(before, after):
            yield {
                "quantity": name,
                "row": "",
                "position": None,
                "stored": before,
                "replayed": after,
                "largest": distance(before, after),
                "count": 1,
            }


def file_differences(
    stored: Path, replayed: Path, manifest: Manifest, again: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Of files whose digests differ: data sets by column, row and token, weights by tensor, others as a whole."""
    changed = [
        name
        for name in sorted({*manifest.files, *again})
        if manifest.files.get(name, {}).get("sha256") != again.get(name)
    ]
    data_sets = sorted({str(Path(name).parent) for name in changed if Path(name).suffix == ".arrow"})
    for name in data_sets:
        yield from table_differences(stored / name, replayed / name)
    for name in changed:
        if str(Path(name).parent) in data_sets:
            continue
        if name.endswith(".safetensors") and (stored / name).exists() and (replayed / name).exists():
            yield from tensor_differences(stored / name, replayed / name, name)
        else:
            before, after = manifest.files.get(name, {}).get("sha256"), again.get(name)
            yield {
                "quantity": name,
                "row": "",
                "position": None,
                "stored": before,
                "replayed": after,
                "largest": None,
                "count": 1,
            }


def table_differences(stored: Path, replayed: Path) -> Iterator[dict[str, Any]]:
    """The first entry of each column that differs."""
    before, after = read_dataset(stored), read_dataset(replayed)
    names = [*before.column_names, *(name for name in after.column_names if name not in before.column_names)]
    ids = before.column("rollout_id").to_pylist() if "rollout_id" in before.column_names else range(before.num_rows)
    for name in names:
        columns = (table.column(name) if name in table.column_names else None for table in (before, after))
        found = column_difference(*columns)
        if found is not None:
            row = str(ids[found.row]) if found.row < len(ids) else str(found.row)
            yield {"quantity": name, **asdict(found), "row": row}


def tensor_differences(stored: Path, replayed: Path, name: str) -> Iterator[dict[str, Any]]:
    """The first entry of the first tensor that differs, and how many do in all."""
    from safetensors.torch import load_file

    before, after = load_file(str(stored)), load_file(str(replayed))
    first: dict[str, Any] | None = None
    largest, count = 0.0, 0
    for key in sorted({*before, *after}):
        a, b = before.get(key), after.get(key)
        if a is None or b is None or a.shape != b.shape:
            yield {
                "quantity": name,
                "row": key,
                "position": None,
                "stored": None if a is None else list(a.shape),
                "replayed": None if b is None else list(b.shape),
                "largest": None,
                "count": 1,
            }
            continue
        a, b = a.double().flatten(), b.double().flatten()
        differs = (a != b) & ~(a.isnan() & b.isnan())
        if bool(differs.any()):
            position = int(differs.nonzero()[0])
            first = first or {
                "row": key,
                "position": position,
                "stored": float(a[position]),
                "replayed": float(b[position]),
            }
            largest, count = max(largest, float((a - b).abs().max())), count + int(differs.sum())
    if first is not None:
        yield {"quantity": name, **first, "largest": largest, "count": count}


def same(a: Any, b: Any) -> bool:
    """Equal, or both no number."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(a == b)


def distance(a: Any, b: Any) -> float | None:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b)
    return None
