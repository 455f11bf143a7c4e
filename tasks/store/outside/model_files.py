"""Which files a model from outside consists of: a closed set of regular files, all in its own directory, all digested."""

import json
from collections.abc import Iterable
from pathlib import Path, PurePath

from tasks.errors import ModelError

# What a model is read from. Other weight formats are never loaded, so they neither count nor are fetched.
TEMPLATES = "additional_chat_templates/*.jinja"
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "vocab.*", "*.tiktoken", TEMPLATES)
WEIGHTS = ".safetensors"
INDEX = "*.safetensors.index.json"


def model_files(directory: Path, name: str, *, field: str) -> list[Path]:
    """The files that a model is read from. Raises ``ModelError`` where one of them leads out of the directory."""
    files = files_below(directory, PATTERNS)
    for path in files:
        if not lies_inside(path, directory):
            raise ModelError(
                f"{field}: {path.relative_to(directory)} of {name} is a link to {path.resolve()}; put the file itself there"
            )
    if not any(path.suffix == WEIGHTS for path in files):
        raise ModelError(
            f"{field}: {name} has no *.safetensors file; save it with safetensors, other formats are not loaded"
        )
    for index in directory.glob(INDEX):
        for part in sorted(weights_in(index, name, field=field)):
            if PurePath(part).name != part or not part.endswith(WEIGHTS):
                raise ModelError(
                    f"{field}: {index.name} of {name} names {part!r}; weights are read from *{WEIGHTS} in the model's own "
                    "directory alone, so save the model again with safetensors"
                )
    return files


def files_below(directory: Path, patterns: Iterable[str]) -> list[Path]:
    """The regular files that match, in order; also those that links lead to."""
    return sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})


def lies_inside(path: Path, directory: Path) -> bool:
    """Whether a file is in its model's directory; a hub's snapshot is links to the blobs of the same model."""
    target = path.resolve()
    own = directory.resolve()
    is_blob = own.parent.name == "snapshots" and target.parent == own.parent.parent / "blobs"
    return is_blob or target.is_relative_to(own)


def weights_in(index: Path, name: str, *, field: str) -> set[str]:
    """The names of the files that an index says the weights are in."""
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{field}: {index.name} of {name} cannot be read ({error}); save the model again") from error
    if not all(isinstance(part, str) for part in named):
        raise ModelError(f"{field}: {index.name} of {name} names a file that is no text; save the model again")
    return named
