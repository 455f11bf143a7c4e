"""What identifies an output, and the manifest that says where it came from and what it holds."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Self

from pydantic_core import from_json

from tasks.errors import DamagedError
from tasks.store.digests import DIGEST_LENGTH, canonical_json, digest_text, known_digest
from tasks.store.schemas import SCHEMA_VERSION

MANIFEST = "manifest.json"
SEAL = "zz_sha256_of_the_lines_above"
"""The last key of a manifest in the order of their names."""
FINGERPRINT = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")
OR_CLEAN = "or rounds clean removes it where another attempt has replaced it"
REMEDY_OF_MANIFEST = f"rounds rerun makes the output anew, {OR_CLEAN}"
"""What to do about an output whose manifest is damaged: it counts as not there, wherever it is needed."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a run a stage belongs. 0 means "not inside one": a run's own stages have round 0."""

    round: int = 0
    iteration: int = 0
    shard: int | None = None

    def __str__(self) -> str:
        if not self.iteration:
            return f"round-{self.round:03d}" if self.round else ""
        return f"round-{self.round:03d}/iteration-{self.iteration:03d}"

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


Input = Ref | list[Ref] | Mapping[str, Ref] | None
"""What a stage is handed under one name: a reference, several in an order, or several by name."""
Inputs = Mapping[str, Input]


def each(change: Callable[..., Any], value: Any, *others: Any) -> Any:
    """An input, or all of them by name, with ``change`` of each reference in its place; of those at one place in several."""
    if value is None:
        return None
    # A plan comes by here a hundred thousand times, and to ask for an abstract class takes the longest.
    if isinstance(value, dict) or (hasattr(value, "__iter__") and isinstance(value, Mapping)):
        if not others:
            return {name: None if own is None else each(change, own) for name, own in value.items()}
        return {name: each(change, own, *(other[name] for other in others)) for name, own in value.items()}
    if isinstance(value, list):
        return [each(change, *own) for own in zip(value, *others, strict=True)]
    return change(value, *others)


def flat(inputs: Mapping[str, Any]) -> list[Any]:
    """All references among a stage's inputs, or what stands for them."""
    found: list[Any] = []
    each(found.append, inputs)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides a stage's output. Its digest is the fingerprint."""

    stage: str
    version: str
    place: Place
    seed: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    """Name to digest, or to digests in a list or by name."""
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
        return directory_of(self.stage, self.place)


def directory_of(stage: str, place: Place) -> str:
    """Where the outputs of a stage at a place lie, relative to ``stages/``."""
    of_a_round = f"{place}/{stage}" if place.round else stage
    return of_a_round if place.shard is None else f"{of_a_round}/shard-{place.shard:03d}"


def place_of(directory: Path) -> Place:
    """The place of an output, by where it lies."""
    numbers = {"round": 0, "iteration": 0}
    shard = None
    for part in directory.parts[-5:-1]:
        kind, _, number = part.rpartition("-")
        if kind == "shard":
            shard = int(number)
        elif kind in numbers:
            numbers[kind] = int(number)
    return Place(numbers["round"], numbers["iteration"], shard)


def input_digests(inputs: Inputs) -> dict[str, Any]:
    """What a recipe says of its inputs: digests, never places."""
    return dict(each(lambda ref: ref.digest, inputs))


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
    def read(cls, directory: Path | str) -> Self:
        """Raises ``DamagedError`` where it is not there, or not as it was written."""
        path = f"{directory}/{MANIFEST}"
        try:
            # A plan reads thousands: unbuffered, and no paths but text.
            with open(path, "rb", buffering=0) as stream:
                content = stream.readall()
            lines, seal, end = content.rpartition(f',\n "{SEAL}": '.encode())
            if not seal or end != f'"{hashlib.sha256(lines).hexdigest()}"\n}}'.encode():
                raise ValueError("it is not as it was written")
            document = parsed(content)
            del document[SEAL]
            return cls(**document)
        except (OSError, ValueError, TypeError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise DamagedError(f"{path} cannot be read ({what}); {REMEDY_OF_MANIFEST}") from error

    @classmethod
    def read_if_sound(cls, directory: Path | str) -> Self | None:
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


def parsed(content: bytes) -> dict[str, Any]:
    """A manifest's JSON. Pydantic reads it in a third of the time, but for the names of files that are no text."""
    document: dict[str, Any]
    try:
        document = from_json(content)
    except ValueError:
        document = json.loads(content)
    return document


def digests_below(directory: Path) -> dict[str, str]:
    """The digest of every file below a directory but its manifest, by its name relative to it."""
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return {name: known_digest(directory / name) for name in names if name != MANIFEST}


def damaged_files(directory: Path | str, manifest: Manifest, *, read: bool) -> dict[str, str]:
    """What is wrong with the files that a manifest names, by file; ``read=False`` looks at sizes alone.

    A recoverable file may be absent, but not another one than it was.
    """
    damaged: dict[str, str] = {}
    # Text, not paths: a plan looks at tens of thousands of files.
    where = str(directory)
    for name, entry in manifest.files.items():
        try:
            size = os.stat(f"{where}/{name}").st_size
        except FileNotFoundError:
            if name not in manifest.recoverable:
                damaged[name] = "is missing"
            continue
        if size != entry["size"]:
            damaged[name] = f"has {size:,} bytes instead of {entry['size']:,}"
        elif read and known_digest(Path(directory, name)) != entry["sha256"]:
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
