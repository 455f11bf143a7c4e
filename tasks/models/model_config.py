"""What a model's configuration says, before its weights are read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers import __version__ as transformers_version

from tasks.errors import ModelError


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_model_config(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of the model in a directory: what it is an instance of, and how many outputs it has."""
    try:
        return AutoConfig.from_pretrained(str(directory), trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{directory} {_why_unreadable(directory, error)}") from error


def _why_unreadable(directory: Path, error: BaseException) -> str:
    """What is the matter with a config.json that the library does not take."""
    try:
        raw = json.loads((directory / "config.json").read_text())
        kind, brings_code = raw.get("model_type"), bool(raw.get("auto_map"))
    except (OSError, ValueError, AttributeError):
        kind, brings_code = None, False
    if not isinstance(kind, str) or kind in CONFIG_MAPPING:
        return f"has no readable config.json: {first_line(error)}"
    if brings_code:
        return (
            f"is a {kind} model, which needs the Python code that comes with it; read that code, and set "
            "model.trust_remote_code: true to run it"
        )
    return (
        f"is a {kind} model, which transformers {transformers_version} does not know; install a version that does "
        "(its model card names one), or name another model"
    )


def read_text_config(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of its language model: of a model of several kinds of input, of its text part."""
    return read_model_config(directory, trust_remote_code=trust_remote_code).get_text_config()


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a model can attend to, where its configuration says so; of ``longrope``, those before it changes."""
    sizes = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limits = [size for size in (*sizes, rotary_limit(config)) if isinstance(size, int) and size > 0]
    return min(limits, default=None)


def rotary_limit(config: PreTrainedConfig) -> int | None:
    """Tokens up to which a row's rotary positions are the same whatever the other rows of its batch; None for all.

    ``longrope`` (Phi-3, Phi-4-mini) turns all rows of a batch by other angles once the longest of them passes the length
    of its first training, and a row that passes it while it is sampled changes what it said before. Nothing that is
    computed on one side of that length holds on the other. ``dynamic`` scaling does so beyond the context alone.
    """
    limits = [
        rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for rope in _rotary_settings(config)
        # "su" is what the first of these models called it.
        if (rope.get("rope_type") or rope.get("type")) in ("longrope", "su")
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def why_limited(config: PreTrainedConfig) -> str:
    """What to add to the context length where it is not the whole of what the model could attend to."""
    if rotary_limit(config) is None or context_length(config) != rotary_limit(config):
        return ""
    return " (beyond it, longrope gives a row other positions by the longest row of its batch)"


def _rotary_settings(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """The settings of rotary positions, also where each type of layer has its own."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(config, name, None)
        if isinstance(settings, dict):
            yield from (settings, *(own for own in settings.values() if isinstance(own, dict)))


def _is_known(config: PreTrainedConfig, auto_class: Any, classes: Any) -> bool:
    """Whether there is a class of this kind for the configuration; one that brings its code has it where that says so."""
    return type(config) in classes or auto_class.__name__ in (getattr(config, "auto_map", None) or {})
