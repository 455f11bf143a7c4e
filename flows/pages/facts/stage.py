"""The output of a stage: its manifest, what it was made from, and what was made from it."""

import re
from pathlib import Path
from typing import Any

from flows.pages.site import Asked, Site
from flows.runs import Run
from tasks.errors import RunError
from tasks.stages import STAGES
from tasks.store import Manifest, each


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """The output of that fingerprint."""
    run = site.run(asked.path["run"])
    directory = directory_of(run, asked.path["fingerprint"])
    manifest = Manifest.read(directory)
    place = manifest.place
    return {
        "called": asked.path["run"],
        "stage": manifest.stage,
        "round": place.round,
        "iteration": place.iteration,
        "shard": place.shard,
        "fingerprint": manifest.fingerprint,
        "digest": manifest.digest,
        "rows": manifest.rows,
        "seconds": manifest.seconds,
        "committed_at": manifest.committed_at,
        "data_sets": [name for name in STAGES.data_sets if (directory / name).is_dir()],
        "metrics": dict(manifest.metrics),
        "settings": manifest.recipe["settings"],
        "version": manifest.recipe["version"],
        "seed": manifest.recipe["seed"],
        "generation": manifest.recipe["generation"],
        "files": {name: dict(entry) for name, entry in manifest.files.items()},
        "origin": dict(manifest.origin),
        "made_from": inputs_of(manifest),
        "made_into": users_of(run, manifest),
        "directory": str(directory),
    }


def directory_of(run: Run, fingerprint: str) -> Path:
    """Where the output lies.

    Raises:
        RunError: there is none, or no more.
    """
    for path in run.store.outputs() if re.fullmatch(r"[0-9a-f]{8,64}", fingerprint) else []:
        if path.name.startswith(fingerprint):
            return path
    raise RunError(
        f"{fingerprint}: run {run.name} has no such output, or no more; the page of the run has those it has"
    )


def inputs_of(manifest: Manifest) -> list[dict[str, str]]:
    """Each input by its name, with the fingerprint of the output that it is, or the path of what is not ours."""
    found: list[dict[str, str]] = []
    for name, paths in manifest.input_paths.items():

        def note(path: str, name: str = name) -> None:
            parts = path.split("/")
            is_ours = parts[0] == "stages"
            entry = {"name": name, "path": path, "fingerprint": parts[-1] if is_ours else ""}
            found.append({**entry, "what": "/".join(parts[1:-1]) if is_ours else path})

        each(note, paths)
    return found


def users_of(run: Run, manifest: Manifest) -> list[dict[str, str]]:
    """The outputs that were made from this one."""
    found = []
    for directory, other in run.store.manifests():
        digests: list[str] = []
        each(digests.append, other.recipe["inputs"])
        if manifest.digest in digests:
            what = str(directory.parent.relative_to(run.root / "stages"))
            found.append({"what": what, "fingerprint": directory.name})
    return found
