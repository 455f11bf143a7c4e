"""Models from outside the run, as references: a directory and the digest of what it holds."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from tasks import environment
from tasks.config import ADAPTER_CONFIG
from tasks.errors import ModelError
from tasks.paths import user_path
from tasks.store.digests import digest_file, digest_files
from tasks.store.files import read_json, write_json
from tasks.store.manifest import Ref
from tasks.store.outside.model_files import PATTERNS, model_files
from tasks.store.outside.recall import found_or_known

# Written into the name of what was merged: another way of merging must not find the results of the old one.
MERGE_VERSION = "1"


def model_ref(
    name: str, *, field: str, home: Path, revision: str | None = None, trust_remote_code: bool = False
) -> Ref:
    """The model that a configuration names: a directory as it is, a hub's name as its snapshot on this machine, an adapter
    as the whole model that it makes of its base."""

    def find() -> dict[str, str]:
        return asdict(_model_ref(name, field=field, home=home, revision=revision, trust_remote_code=trust_remote_code))

    return Ref(**found_or_known("model", [name, revision], find))


def _model_ref(name: str, *, field: str, home: Path, revision: str | None, trust_remote_code: bool) -> Ref:
    directory = user_path(name, field=field)
    if not directory.is_dir():
        directory = snapshot(name, field=field, revision=revision)
    directory = directory.resolve()
    if (directory / ADAPTER_CONFIG).is_file():
        if any(not path.name.startswith("adapter_") for path in directory.glob("*.safetensors")):
            raise ModelError(
                f"{field}: {name} holds the weights of a whole model and an {ADAPTER_CONFIG}, so it could mean either; "
                "move one of the two to a directory of its own"
            )
        directory = merged(directory, name, field=field, home=home, trust_remote_code=trust_remote_code)
    if not (directory / "config.json").is_file():
        raise ModelError(f"{field}: {name} has no config.json; name a directory that from_pretrained can load")
    return Ref(str(directory), directory_digest(directory, name, field=field, home=home))


def directory_digest(directory: Path, name: str, *, field: str, home: Path) -> str:
    """The digest of what a model is read from."""
    files = model_files(directory, name, field=field)
    return digest_files(remembered_digests(files, directory, home / "digests.json"))


def merged(adapter: Path, name: str, *, field: str, home: Path, trust_remote_code: bool) -> Path:
    """The directory below ``home`` of the whole model that an adapter makes of its base; made where it is not there yet."""
    base = adapter_base(adapter, name, field=field, home=home, trust_remote_code=trust_remote_code)
    own = directory_digest(adapter, name, field=field, home=home)
    target = home / "merged" / digest_files({"adapter": own, "base": base.digest, "version": MERGE_VERSION})[:16]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place first: what breaks off is never taken for a model.
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    print(f"{field}: {name} is an adapter; merging it with {base.path} in {target}", file=sys.stderr, flush=True)
    try:
        arguments = [str(adapter), base.path, str(partial), "trust" if trust_remote_code else "data"]
        said = subprocess.run(
            [sys.executable, "-P", "-m", "tasks.models.merge_adapter", *arguments],
            env=environment.worker_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode != 0:
            why = (said.stderr.strip().splitlines() or [f"the process ended with {said.returncode}"])[-1]
            raise ModelError(f"{field}: {name} is an adapter over {base.path}, and {why}")
        if not target.is_dir():
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def adapter_base(adapter: Path, name: str, *, field: str, home: Path, trust_remote_code: bool) -> Ref:
    """The model that an adapter says it is over. A relative path counts from here, as in PEFT, else from the adapter."""
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text())
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{field}: {name} has an {ADAPTER_CONFIG} that cannot be read ({error}); save the adapter again"
        ) from error
    if not base:
        raise ModelError(
            f"{field}: {name} is an adapter, and its {ADAPTER_CONFIG} does not say over which model; name that in "
            "base_model_name_or_path, or name the whole model (of a run's own checkpoint, rounds export writes one)"
        )
    if not user_path(base, field=field).is_dir() and (adapter / base).is_dir():
        base = str(adapter / base)
    if user_path(base, field=field).resolve() == adapter:
        raise ModelError(f"{field}: {name} is an adapter over itself; name its model in base_model_name_or_path")
    try:
        return model_ref(base, field=field, home=home, revision=revision, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(
            f"{field}: {name} is an adapter over {base}, which is not usable here "
            f"({str(error).removeprefix(f'{field}: ')})"
        ) from error


def snapshot(name: str, *, field: str, revision: str | None) -> Path:
    """The local copy of a hub's model, fetched if it is not here yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{field}: {name} is no directory; correct the path")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{field}: {name} is no directory here and could not be fetched from the hub ({type(error).__name__}); "
            "correct the name, or fetch the model where there is a network and name its directory"
        ) from error


def remembered_digests(files: list[Path], directory: Path, memory: Path) -> dict[str, str]:
    """Digests of files by their names in the directory. Large weights are hashed once for as long as their size and time of
    change stay.
    """
    known = read_json(memory, default={})
    digests: dict[str, str] = {}
    for path in files:
        stat = path.stat()
        key = f"{os.path.realpath(path)}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        known[key] = digests[str(path.relative_to(directory))] = known.get(key) or digest_file(path)
    if read_json(memory, default={}) != known:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, known)
    return digests
