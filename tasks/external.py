"""Models from outside the run, as references: a directory and the digest of what it holds."""

import os
from pathlib import Path

from tasks.errors import ModelError
from tasks.store import Ref, digest_file, digest_files, read_json, write_json

# What a model is read from. Other weight formats are never loaded, so they neither count nor are fetched.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "vocab.*", "*.tiktoken")


def model_ref(name: str, *, field: str, home: Path, revision: str | None = None) -> Ref:
    """The model that a configuration names: a directory as it is, or a hub's name as its snapshot on this machine."""
    directory = Path(name).expanduser()
    if not directory.is_dir():
        directory = snapshot(name, field=field, revision=revision)
    directory = directory.resolve()
    if not (directory / "config.json").is_file():
        raise ModelError(f"{field}: {name} has no config.json; name a directory that from_pretrained can load")
    files = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(
            f"{field}: {name} has no *.safetensors file; save it with safetensors, other formats are not loaded"
        )
    return Ref(str(directory), digest_files(remembered_digests(files, home / "digests.json")))


def snapshot(name: str, *, field: str, revision: str | None) -> Path:
    """The local copy of a hub's model, fetched if it is not here yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{field}: {name} is no directory; correct the path")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{field}: {name} is no directory here and could not be fetched from the hub ({type(error).__name__}); "
            "correct the name, or fetch the model where there is a network and name its directory"
        ) from error


def remembered_digests(files: list[Path], memory: Path) -> dict[str, str]:
    """Digests of files by name. Large weights are hashed once for as long as their size and time of change stay."""
    known = read_json(memory, default={})
    digests: dict[str, str] = {}
    for path in files:
        stat = path.stat()
        key = f"{os.path.realpath(path)}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        known[key] = digests[path.name] = known.get(key) or digest_file(path)
    if read_json(memory, default={}) != known:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, known)
    return digests
