"""The stage store: a directory per committed stage output, addressed by what it was made from.

    runs/<run>/stages/round-001/iteration-002/score_rollouts/shard-000/<fingerprint>/manifest.json + files

A stage commits or it did not happen: output is written to scratch, flushed, described by a manifest, and moved into place
by one rename. The fingerprint is the digest of the recipe, so a changed setting has a place of its own beside the old one.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Self

import pyarrow as pa

from tasks.errors import DamagedError, RunError
from tasks.schemas import SCHEMA_VERSION

MANIFEST = "manifest.json"
SEAL = "zz_sha256_of_the_lines_above"
"""The last key of a manifest in the order of their names."""
DIGEST_LENGTH = 32
"""Hex digits of every digest; also the longest that MLflow's data set digests may have."""
FINGERPRINT = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")
OR_CLEAN = "or rounds clean removes it where another attempt has replaced it"
REMEDY_OF_MANIFEST = f"rounds rerun makes the output anew, {OR_CLEAN}"
"""What to do about an output whose manifest is damaged: it counts as not there, wherever it is needed."""
ATTEMPT = re.compile(rf"(recovered-|removed-|replay-)?{FINGERPRINT.pattern}")
"""The names of directories in scratch."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no white space, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_files(digests: Mapping[str, str]) -> str:
    """The digest of a set of files from their relative names and digests."""
    return digest_text(canonical_json(dict(digests)))


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a run a stage belongs. 0 means "not inside one": a run's own stages have round 0."""

    round: int = 0
    iteration: int = 0
    shard: int | None = None

    def __str__(self) -> str:
        parts = [
            f"round-{self.round:03d}" if self.round else "",
            f"iteration-{self.iteration:03d}" if self.iteration else "",
        ]
        return "/".join(part for part in parts if part)

    @property
    def label(self) -> str:
        """Short, for people: ``r1.i2.s0``."""
        parts = [f"r{self.round}"]
        parts += [f"i{self.iteration}"] if self.iteration else []
        parts += [f"s{self.shard}"] if self.shard is not None else []
        return ".".join(parts)


@dataclass(frozen=True, slots=True)
class Ref:
    """A committed output or an external model: a directory and the digest of its content."""

    path: str
    digest: str

    @property
    def directory(self) -> Path:
        return Path(self.path)


Inputs = Mapping[str, "Ref | list[Ref] | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides a stage's output. Its digest is the fingerprint."""

    stage: str
    version: str
    place: Place
    seed: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    """Name to digest, or to a list of digests."""
    generation: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": self.version,
            "round": self.place.round,
            "iteration": self.place.iteration,
            "shard": self.place.shard,
            "seed": self.seed,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
            "generation": self.generation,
        }

    @property
    def fingerprint(self) -> str:
        return digest_text(canonical_json(self.as_dict()))

    @property
    def directory(self) -> str:
        """The directory of all variants of this stage at this place, relative to ``stages/``."""
        shard = "" if self.place.shard is None else f"shard-{self.place.shard:03d}"
        return "/".join(part for part in (str(self.place), self.stage, shard) if part)


def input_digests(inputs: Inputs) -> dict[str, Any]:
    """What a recipe says of its inputs: digests, never places."""
    return {
        name: [ref.digest for ref in value] if isinstance(value, list) else value and value.digest
        for name, value in inputs.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a committed directory says of itself. ``origin`` is outside fingerprint and digest: host, time, versions."""

    fingerprint: str
    digest: str
    recipe: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    """Relative name to size in bytes and sha256."""
    rows: int
    metrics: Mapping[str, float]
    seconds: float
    input_paths: Mapping[str, Any]
    recoverable: tuple[str, ...] = ()
    """Files that need not be there: running the stage again on its inputs gives the same bytes."""
    schema_version: str = SCHEMA_VERSION
    origin: Mapping[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Its last line is the digest of all lines before it."""
        lines = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True).removesuffix("\n}")
        (directory / MANIFEST).write_text(f'{lines},\n "{SEAL}": "{hashlib.sha256(lines.encode()).hexdigest()}"\n}}')

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises ``DamagedError`` where it is not there, or not as it was written."""
        path = directory / MANIFEST
        try:
            content = path.read_bytes()
            lines, seal, end = content.rpartition(f',\n "{SEAL}": '.encode())
            if not seal or end != f'"{hashlib.sha256(lines).hexdigest()}"\n}}'.encode():
                raise ValueError("it is not as it was written")
            document = json.loads(content)
            del document[SEAL]
            return cls(**document)
        except (OSError, ValueError, TypeError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise DamagedError(f"{path} cannot be read ({what}); {REMEDY_OF_MANIFEST}") from error

    @classmethod
    def read_if_sound(cls, directory: Path) -> Self | None:
        """None where it is damaged: the output then counts as not committed, and is made anew where it is needed."""
        try:
            return cls.read(directory)
        except DamagedError:
            return None

    @property
    def place(self) -> Place:
        return Place(self.recipe["round"], self.recipe["iteration"], self.recipe["shard"])

    @property
    def stage(self) -> str:
        return str(self.recipe["stage"])

    @property
    def committed_at(self) -> float:
        """Seconds since 1970."""
        return float(self.origin.get("committed_at", 0.0))


class Store:
    """The committed outputs of one run, below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, recipe: Recipe) -> Ref | None:
        """The committed output of this recipe, or None: a directory counts only with its manifest and all its files."""
        directory = self.root / "stages" / recipe.directory / recipe.fingerprint
        manifest = Manifest.read_if_sound(directory)
        if (
            manifest is None
            or manifest.schema_version != SCHEMA_VERSION
            or damaged_files(directory, manifest, read=False)
        ):
            return None
        return Ref(str(directory), manifest.digest)

    def scratch(self, recipe: Recipe) -> Path:
        """An empty directory to write this recipe's output into; what an earlier attempt left there is removed."""
        directory = self.root / "scratch" / recipe.fingerprint / "output"
        make_empty(directory)
        return directory

    def commit(
        self,
        recipe: Recipe,
        scratch: Path,
        *,
        inputs: Inputs,
        rows: int,
        metrics: Mapping[str, float],
        seconds: float,
        recoverable: str | None = None,
        keeps_recoverable: bool = True,
        origin: Mapping[str, Any] | None = None,
    ) -> Ref:
        """Flush, describe and move ``scratch`` into place. After the rename it has happened; before, it has not.

        ``recoverable`` is a pattern of files that need not be kept, since they can be made again; ``origin`` what that needs
        to know beside the recipe.
        """
        digests = digests_below(scratch)
        manifest = Manifest(
            fingerprint=recipe.fingerprint,
            digest=digest_files(digests),
            recipe=recipe.as_dict(),
            files={name: {"size": (scratch / name).stat().st_size, "sha256": own} for name, own in digests.items()},
            rows=rows,
            metrics=dict(metrics),
            seconds=round(seconds, 3),
            input_paths=self._input_paths(inputs),
            recoverable=tuple(name for name in digests if recoverable and PurePath(name).match(recoverable)),
            origin={"host": socket.gethostname(), "committed_at": time.time(), **(origin or {})},
        )
        manifest.write(scratch)
        if not keeps_recoverable:
            drop_recoverable(scratch, manifest)
        for path in [*scratch.rglob("*"), scratch]:
            flush(path)
        target = self.root / "stages" / recipe.directory / recipe.fingerprint
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            # Only a damaged output is ever computed again under its own fingerprint.
            self.set_aside(target)
        scratch.rename(target)
        flush(target.parent)
        with suppress(OSError):
            scratch.parent.rmdir()
        remember_digests(target, digests)
        return Ref(str(target), manifest.digest)

    def set_aside(self, output: Path) -> None:
        """Take a damaged output out of the way; it is kept for whoever looks into it, until ``rounds clean``."""
        place = self.root / "scratch" / output.name
        place.mkdir(parents=True, exist_ok=True)
        output.rename(place / f"damaged-{time.time_ns()}")

    def sweep(self) -> None:
        """Remove what interrupted attempts left half written; only for who alone works on the run.

        What is not an attempt's is left alone, and a link is never followed: what it leads to is not the run's.
        """
        self.require_own()
        for half in self.root.glob(".*.json.*"):
            if half.is_file() or half.is_symlink():
                half.unlink()
        for attempt in self.attempts():
            # What was damaged is kept for whoever looks into it.
            for left in own_directories(attempt):
                if not left.name.startswith("damaged-"):
                    shutil.rmtree(left)
            with suppress(OSError):
                attempt.rmdir()

    def require_own(self) -> None:
        """Refuse a run whose outputs or scratch lie elsewhere: what is removed there would not be the run's."""
        for path in (self.root / "stages", self.root / "scratch"):
            if path.is_symlink():
                raise RunError(f"{path} is a link to {os.readlink(path)}; put the whole run there, or remove the link")

    def attempts(self) -> list[Path]:
        """The directories in scratch, each of which an attempt or a removal has made."""
        return [path for path in own_directories(self.root / "scratch") if ATTEMPT.fullmatch(path.name)]

    def outputs(self) -> list[Path]:
        """The directories of all committed outputs, all variants, in a stable order, also of those without a manifest."""

        def below(directory: Path) -> Iterator[Path]:
            for path in own_directories(directory):
                if FINGERPRINT.fullmatch(path.name):
                    yield path
                else:
                    yield from below(path)

        return sorted(below(self.root / "stages"))

    def variants(self, place: str) -> list[tuple[Path, Manifest]]:
        """The sound outputs at a place, which ``Recipe.directory`` names, all variants."""
        found = [(path, Manifest.read_if_sound(path)) for path in own_directories(self.root / "stages" / place)]
        return [(path, manifest) for path, manifest in found if manifest is not None]

    def manifests(self) -> Iterator[tuple[Path, Manifest]]:
        """Every sound output, all variants, in a stable order."""
        for path in self.outputs():
            if (manifest := Manifest.read_if_sound(path)) is not None:
                yield path, manifest

    def inputs_of(self, manifest: Manifest) -> Inputs:
        """The references that a committed output was made from."""

        def ref(path: str | None, digest: str | None) -> Ref | None:
            return None if path is None or digest is None else Ref(str(self.root / path), digest)

        inputs: dict[str, Any] = {}
        for name, digest in manifest.recipe["inputs"].items():
            path = manifest.input_paths[name]
            inputs[name] = (
                [ref(p, d) for p, d in zip(path, digest, strict=True)] if isinstance(path, list) else ref(path, digest)
            )
        return inputs

    def _input_paths(self, inputs: Inputs) -> dict[str, Any]:
        def relative(ref: Ref) -> str:
            return os.path.relpath(ref.path, self.root) if Path(ref.path).is_relative_to(self.root) else ref.path

        return {
            name: [relative(ref) for ref in value] if isinstance(value, list) else value and relative(value)
            for name, value in inputs.items()
        }


def make_empty(directory: Path) -> None:
    """An empty directory inside another one in scratch; where either is a link, the link alone is removed."""
    for path in (directory.parent, directory):
        if path.is_symlink():
            path.unlink()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def own_directories(directory: Path) -> list[Path]:
    """The directories in one, in order; none that a link leads to, and none where there is no such directory."""
    try:
        with os.scandir(directory) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def digests_below(directory: Path) -> dict[str, str]:
    """The digest of every file below a directory but its manifest, by its name relative to it."""
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return {name: known_digest(directory / name) for name in names if name != MANIFEST}


def damaged_files(directory: Path, manifest: Manifest, *, read: bool) -> dict[str, str]:
    """What is wrong with the files that a manifest names, by file; ``read=False`` looks at sizes alone.

    A recoverable file may be absent, but not another one than it was.
    """
    damaged: dict[str, str] = {}
    for name, entry in manifest.files.items():
        try:
            size = (directory / name).stat().st_size
        except FileNotFoundError:
            if name not in manifest.recoverable:
                damaged[name] = "is missing"
            continue
        if size != entry["size"]:
            damaged[name] = f"has {size:,} bytes instead of {entry['size']:,}"
        elif read and known_digest(directory / name) != entry["sha256"]:
            damaged[name] = "has another content than was committed"
    return damaged


def require_undamaged(ref: Ref, *parts: str) -> None:
    """Refuse to read a committed output that has changed since, naming file and stage; external models are as they are.

    Where ``parts`` are named, only those files, and those below directories of these names, are looked at.
    """
    if not is_committed(ref.directory):
        return
    manifest = Manifest.read(ref.directory)
    if parts:
        read = {name: entry for name, entry in manifest.files.items() if any(map(PurePath(name).is_relative_to, parts))}
        manifest = dataclasses.replace(manifest, files=read)
    if damaged := damaged_files(ref.directory, manifest, read=True):
        name, what = next(iter(damaged.items()))
        raise DamagedError(f"{ref.directory / name} {what}; {rerun_command(manifest)} makes it anew")


def rerun_command(manifest: Manifest) -> str:
    """The command that runs the stage of a manifest again."""
    place = manifest.place
    iteration = f" --iteration {place.iteration}" if place.iteration else ""
    return f"rounds rerun --from {manifest.stage} --round {place.round}{iteration}"


def is_committed(directory: Path) -> bool:
    """Whether this is the directory of an output of ours, damaged or not, and no model from elsewhere."""
    is_named_so = FINGERPRINT.fullmatch(directory.name) is not None and "stages" in directory.parts
    return is_named_so or (directory / MANIFEST).exists()


def drop_recoverable(directory: Path, manifest: Manifest) -> int:
    """Remove the files that can be made again; the bytes that this frees."""
    freed = 0
    for name in manifest.recoverable:
        path = directory / name
        freed += path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
    return freed


# Digests of files that this process has read or written, for as long as the file system shows no change of them.
_known_digests: dict[tuple[int, int, int, int], str] = {}


def known_digest(path: Path) -> str:
    """The digest of a file, computed once for as long as inode, size and time of change stay."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _known_digests:
        _known_digests[key] = digest_file(path)
    return _known_digests[key]


def remember_digests(directory: Path, digests: Mapping[str, str]) -> None:
    """Note digests of files that were just computed."""
    for name, digest in digests.items():
        with suppress(FileNotFoundError):
            stat = (directory / name).stat()
            _known_digests[(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)] = digest


def flush(path: Path) -> None:
    """Force a file or directory to the disk: a rename may otherwise survive a power cut that its content does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a small file at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
    flush(temporary)
    temporary.rename(path)
    flush(path.parent)


def read_json(path: Path, *, default: Any = None) -> Any:
    """A small file of ours; ``default`` where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or remove it and run again") from error


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
