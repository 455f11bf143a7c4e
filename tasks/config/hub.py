"""Whether a model's name leads to the hub."""

import json

from tasks.paths import user_path

ADAPTER_CONFIG = "adapter_config.json"


def needs_hub(name: str) -> bool:
    """Whether a model, or the one that it is an adapter over, is no directory here."""
    directory = user_path(name)
    if not directory.is_dir():
        return True
    config = directory / ADAPTER_CONFIG
    try:
        base = json.loads(config.read_text()).get("base_model_name_or_path") if config.is_file() else None
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(base, str) and base != "" and not (directory / base).is_dir() and needs_hub(base)
