"""A reward model that somebody made, and the tokenizer that it reads by."""

from pathlib import Path

from tasks.errors import ModelError
from tasks.models.model_config import read_model_config
from tasks.models.scalar import ScalarModel, load_scalar_model


def load_reward_model(directory: Path, *, trust_remote_code: bool = False, weightless: bool = False) -> ScalarModel:
    """A finished reward model: one whose head would be drawn at random is refused. ``weightless`` as in ``load_policy``."""
    config = read_model_config(directory, trust_remote_code=trust_remote_code)
    if not any("ForSequenceClassification" in name for name in config.architectures or []):
        raise ModelError(
            f"{directory} is a {(config.architectures or ['model without architecture'])[0]}, not a sequence classifier; "
            "name a reward model, or train one with the reward_model section"
        )
    return load_scalar_model(directory, trust_remote_code=trust_remote_code, weightless=weightless)
