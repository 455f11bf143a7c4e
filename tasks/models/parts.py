"""The parts of an output that are models, and the files of a head."""

from pathlib import Path

from tasks.errors import ModelError
from tasks.store import Ref

POLICY, CRITIC, REWARD_MODEL = "policy", "critic", "reward_model"
# Where Hugging Face's sequence classifiers for decoders keep their linear head.
HEAD = "score"
HEAD_FILE, HEAD_WEIGHT = "head.safetensors", f"{HEAD}.weight"


def part_directory(ref: Ref, *parts: str) -> Path:
    """The first of ``parts`` that an output has; an external model is its own only part."""
    for part in parts:
        if (ref.directory / part).is_dir():
            return ref.directory / part
    if (ref.directory / "config.json").exists():
        return ref.directory
    raise ModelError(f"{ref.directory} has neither {' nor '.join(parts)}, nor a config.json; name a model's directory")
