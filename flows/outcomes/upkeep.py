"""Looking after a run's directory: whether every committed file is what it was, and what nobody needs any more."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from flows.plan import plan_of
from flows.runs import Run
from tasks.errors import DamagedError
from tasks.store import MANIFEST, OR_CLEAN, REMEDY_OF_MANIFEST, Manifest, damaged_files, rerun_command


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A committed file that is not what its manifest says."""

    file: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What reading every committed file came to."""

    outputs: int
    files: int
    damaged: list[Damage]


def verify(run: Run) -> Verified:
    """Read every file of every committed output, all variants, and compare it with its manifest."""
    damaged: list[Damage] = []
    outputs = files = 0
    for path in run.store.outputs():
        outputs += 1
        try:
            manifest = Manifest.read(path)
        except DamagedError as error:
            what = str(error).removeprefix(f"{path / MANIFEST} ").removesuffix(f"; {REMEDY_OF_MANIFEST}")
            damaged.append(Damage(file=str(path / MANIFEST), what=what, remedy=REMEDY_OF_MANIFEST))
            continue
        files += len(manifest.files)
        damaged += [
            Damage(file=str(path / name), what=what, remedy=f"{rerun_command(manifest)} makes it anew, {OR_CLEAN}")
            for name, what in damaged_files(path, manifest, read=True).items()
        ]
    return Verified(outputs=outputs, files=files, damaged=damaged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What cleaning removed, or would remove."""

    directories: list[str]
    bytes: int


def clean(run: Run, *, dry_run: bool) -> Cleaned:
    """Remove outputs in whose place the run's configuration has another one, and what interrupted attempts left.

    Where the configuration has committed nothing yet, what is there stays: it may be all that there is to look at.
    """
    run.store.require_own()
    plan = plan_of(run).stages
    replaced = {run.root / "stages" / planned.key: planned.ref.directory for planned in plan if planned.ref is not None}
    is_complete = len(replaced) == len(plan)
    unwanted = []
    for directory in run.store.outputs():
        current = replaced.get(directory.parent)
        # A place that the plan no longer has, say of an iteration too many, is replaced by a plan that is complete.
        if directory != current and (current is not None or is_complete):
            unwanted.append(directory)
    if not dry_run:
        run.store.drop_handed_on()
    left = run.store.attempts()
    size = sum(size_of(directory) for directory in [*unwanted, *left])
    if not dry_run:
        for directory in left:
            shutil.rmtree(directory)
        for directory in unwanted:
            # Away from its place at once: a removal that is interrupted must not leave half an output there.
            away = run.root / "scratch" / f"removed-{directory.name}"
            away.parent.mkdir(exist_ok=True)
            directory.rename(away)
            shutil.rmtree(away)
    directories = [str(directory.relative_to(run.root)) for directory in [*unwanted, *left]]
    return Cleaned(directories=directories, bytes=size)


def size_of(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
