"""Hugging Face models as stages use them: loaded, given heads and adapters, trained, kept in memory."""

from tasks.models.access import Models
from tasks.models.adapters import write_whole
from tasks.models.checkpoint import STATE_FILE, LoopState, NextCheckpoint, read_loop_state
from tasks.models.checks import model_mistakes, require_sound_models
from tasks.models.devices import device_mistakes, empty_cache, pick_device, pick_dtype, prefer_determinism
from tasks.models.from_scratch import make_model
from tasks.models.loading import load_policy, require_layers
from tasks.models.model_config import context_length, read_text_config, why_limited
from tasks.models.parts import CRITIC, POLICY, REWARD_MODEL, part_directory
from tasks.models.scalar import ScalarModel, load_scalar_model
from tasks.models.training import adamw, descend, shuffled

__all__ = [
    "CRITIC",
    "POLICY",
    "REWARD_MODEL",
    "STATE_FILE",
    "LoopState",
    "Models",
    "NextCheckpoint",
    "ScalarModel",
    "adamw",
    "context_length",
    "descend",
    "device_mistakes",
    "empty_cache",
    "load_policy",
    "load_scalar_model",
    "make_model",
    "model_mistakes",
    "part_directory",
    "pick_device",
    "pick_dtype",
    "prefer_determinism",
    "read_loop_state",
    "read_text_config",
    "require_layers",
    "require_sound_models",
    "shuffled",
    "why_limited",
    "write_whole",
]
