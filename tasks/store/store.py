"""The stage store: a directory per committed stage output, addressed by what it was made from.

    runs/<run>/stages/round-001/iteration-002/score_rollouts/shard-000/<fingerprint>/manifest.json + files

A stage commits or it did not happen: output is written to scratch, flushed, described by a manifest, and moved into place
by one rename. The fingerprint is the digest of the recipe, so a changed setting has a place of its own beside the old one.
"""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from tasks.errors import RunError
from tasks.store.digests import digest_files, remember_digests
from tasks.store.files import flush, make_empty, own_directories, read_json, write_json
from tasks.store.manifest import (
    FINGERPRINT,
    Inputs,
    Manifest,
    Recipe,
    Ref,
    damaged_files,
    digests_below,
    drop_recoverable,
    each,
)
from tasks.store.schemas import SCHEMA_VERSION

HANDED_ON = "handed-on-"
ATTEMPT = re.compile(rf"(recovered-|removed-|replay-|{HANDED_ON})?{FINGERPRINT.pattern}")
"""The names of directories in scratch."""
PLACES = ("round-", "iteration-", "shard-")
"""How the directories begin that are not named after a stage or a fingerprint."""


class Store:
    """The committed outputs of one run, below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, recipe: Recipe) -> Ref | None:
        """The committed output of this recipe, or None: a directory counts only with its manifest and all its files."""
        found = self.find_with_manifest(recipe)
        return None if found is None else found[0]

    def find_with_manifest(self, recipe: Recipe) -> tuple[Ref, Manifest] | None:
        """The committed output of this recipe and what it says of itself."""
        directory = f"{self.root}/stages/{recipe.directory}/{recipe.fingerprint}"
        manifest = Manifest.read_if_sound(directory)
        if (
            manifest is None
            or manifest.schema_version != SCHEMA_VERSION
            or damaged_files(directory, manifest, read=False)
        ):
            return None
        return Ref(directory, manifest.digest), manifest

    def is_in_the_making(self, recipe: Recipe) -> bool:
        """Whether something is written for this recipe: now, if the run is in progress."""
        return os.path.isdir(f"{self.root}/scratch/{recipe.fingerprint}/output")

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
        hands_on: bool = False,
        origin: Mapping[str, Any] | None = None,
    ) -> Ref:
        """Flush, describe and move ``scratch`` into place. After the rename it has happened; before, it has not.

        ``recoverable`` is a pattern of files that need not be kept, since they can be made again; ``origin`` what that needs
        to know beside the recipe. With ``hands_on`` those that are not kept stay until ``drop_handed_on``.
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
        target = self.root / "stages" / recipe.directory / recipe.fingerprint
        passing: set[Path] = set()
        if not keeps_recoverable and hands_on:
            self._remember_handed_on(target)
            # What will be removed again need not be on the disk: after a power cut it is removed too.
            passing = {scratch / name for name in manifest.recoverable}
        elif not keeps_recoverable:
            drop_recoverable(scratch, manifest)
        for path in [*scratch.rglob("*"), scratch]:
            if path not in passing:
                flush(path)
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

    def handed_on_directory(self, fingerprint: str) -> Path:
        """Where it is remembered that an output has files that are not kept."""
        return self.root / "scratch" / f"{HANDED_ON}{fingerprint}"

    def hand_on(self, output: Path, manifest: Manifest, remade: Path) -> None:
        """Move files that were not kept, and have been made again below ``remade``, to their output for a while."""
        self._remember_handed_on(output)
        for name in manifest.recoverable:
            (remade / name).replace(output / name)

    def drop_handed_on(self, *, but: Sequence[str] = ()) -> None:
        """Remove the files that are not kept, but those of the outputs with these fingerprints."""
        for known in self.attempts():
            fingerprint = known.name.removeprefix(HANDED_ON)
            if known.name.startswith(HANDED_ON) and fingerprint not in but:
                found = read_json(known / "output.json", default=None)
                manifest = None if found is None else Manifest.read_if_sound(self.root / found)
                if manifest is not None:
                    drop_recoverable(self.root / found, manifest)
                shutil.rmtree(known)

    def _remember_handed_on(self, output: Path) -> None:
        """Before its files are there, so that they are removed whatever happens then."""
        directory = self.handed_on_directory(output.name)
        directory.mkdir(parents=True, exist_ok=True)
        flush(directory.parent)
        write_json(directory / "output.json", str(output.relative_to(self.root)))

    def sweep(self) -> None:
        """Remove what interrupted attempts left half written; only for who alone works on the run.

        What is not an attempt's is left alone, and a link is never followed: what it leads to is not the run's.
        """
        self.require_own()
        self.drop_handed_on()
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

    def outputs(self, stage: str | None = None) -> list[Path]:
        """The directories of all committed outputs, all variants, in a stable order, also of those without a manifest; or
        those of one stage."""

        def below(directory: Path) -> Iterator[Path]:
            for path in own_directories(directory):
                if FINGERPRINT.fullmatch(path.name):
                    yield path
                elif stage is None or path.name == stage or path.name.startswith(PLACES):
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

        def ref(digest: str, path: str) -> Ref:
            return Ref(str(self.root / path), digest)

        return dict(each(ref, manifest.recipe["inputs"], manifest.input_paths))

    def _input_paths(self, inputs: Inputs) -> dict[str, Any]:
        def relative(ref: Ref) -> str:
            return os.path.relpath(ref.path, self.root) if Path(ref.path).is_relative_to(self.root) else ref.path

        return dict(each(relative, inputs))
