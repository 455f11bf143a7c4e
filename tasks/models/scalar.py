"""Scalar models: a reward model or a critic, which is a body with a head of one output."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version
from transformers.modeling_layers import GenericForSequenceClassification

from ppo_core.logprobs import linear_in_float32
from ppo_core.randomness import derive_seed
from tasks.errors import ModelError
from tasks.models.loading import load_pretrained, require_weights
from tasks.models.model_config import _is_known, read_model_config
from tasks.models.parts import CRITIC, HEAD, HEAD_FILE, HEAD_WEIGHT, POLICY, REWARD_MODEL, part_directory
from tasks.store import Ref


class ScalarModel(nn.Module):
    """One scalar per position, ``(head(hidden) - mean) / std``: the reward model at the last token, the critic at each.

    ``mean`` and ``std`` are the reward model's calibration; a critic that starts from it inherits them,
    and with them the scale of the scores. Both lie in the saved ``config.json`` as ``score_mean`` and ``score_std``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.mean = float(getattr(model.config, "score_mean", 0.0))
        self.std = float(getattr(model.config, "score_std", 1.0))

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """(B, L) scalars for (B, L) tokens, padded on the right; positions where rows are packed."""
        positions = {} if position_ids is None else {"position_ids": position_ids}
        hidden = self.base_model(input_ids=input_ids, **positions, use_cache=False).last_hidden_state
        raw = linear_in_float32(getattr(self.model, HEAD), hidden).squeeze(-1)
        return (raw - self.mean) / self.std

    @property
    def base_model(self) -> nn.Module:
        """The body, which makes hidden states."""
        return self.model.base_model

    @property
    def is_calibrated(self) -> bool:
        """Whether a run has trained it, rather than somebody else."""
        return hasattr(self.model.config, "score_mean")

    def calibrate(self, mean: float, std: float) -> None:
        """Make scores that were distributed with ``mean`` and ``std`` have mean 0 and standard deviation 1."""
        self.mean, self.std = self.mean + self.std * mean, self.std * std
        self.model.config.score_mean, self.model.config.score_std = self.mean, self.std

    def take_calibration(self, other: "ScalarModel") -> None:
        """Have another one's, for the same weights."""
        self.mean, self.std = other.mean, other.std
        self.model.config.score_mean, self.model.config.score_std = self.mean, self.std

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(str(directory))


def load_scalar_model(
    directory: Path, *, seed: int | None = None, trust_remote_code: bool = False, weightless: bool = False
) -> ScalarModel:
    """A reward model or critic; from a causal language model, its body with a new head: drawn from ``seed``, else zeros.

    A critic whose head is random explains less than a constant would, until it has unlearnt that. A reward model's scores
    are compared with each other and rescaled when it is trained, and its body learns from the first step on where its head
    is not zero. ``weightless`` as in ``load_policy``.
    """
    # Not that of the text part: it does not say that the whole is a classifier.
    config = read_model_config(directory, trust_remote_code=trust_remote_code)
    has_head = any("ForSequenceClassification" in name for name in config.architectures or [])
    if has_head and config.num_labels != 1:
        raise ModelError(f"{directory} has {config.num_labels} labels; a reward model has exactly one output")
    with torch.random.fork_rng(devices=[]):
        # The library draws a new head from the global generator.
        model, absent = load_pretrained(
            scalar_class(config, directory),
            directory,
            trust_remote_code=trust_remote_code,
            weightless=weightless,
            num_labels=1,
        )
    if not isinstance(getattr(model, HEAD, None), nn.Linear):
        raise ModelError(
            f"{directory} is a {type(model).__name__}, which has no linear '{HEAD}' head over each position; "
            "take a decoder model (Llama, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX, ...)"
        )
    require_weights(directory, model, [name for name in absent if has_head or not name.startswith(f"{HEAD}.")])
    if not has_head:
        with torch.no_grad():
            for parameter in getattr(model, HEAD).parameters():
                parameter.zero_()
            if seed is not None:
                weight = getattr(model, HEAD).weight
                weight.copy_(random_head(weight.shape[1], seed))
    return ScalarModel(model)


def scalar_class(config: PreTrainedConfig, directory: Path) -> Any:
    """What loads a body with a linear head over each position: the library's sequence classifier for this architecture, or,
    where it has none, one made in the same way (Granite, Cohere, OLMoE, Mamba, ...).

    The second is saved under the names that the first would have, so that a library that knows such a class reads it.
    """
    if has_classifier_class(config):
        return AutoModelForSequenceClassification
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if causal is None:
        raise ModelError(
            f"{directory} is a {config.model_type} model, which transformers {transformers_version} has neither a sequence "
            "classifier nor a causal language model for; name a decoder language model"
        )
    parent = next(base for base in causal.__mro__ if base.__name__.endswith("PreTrainedModel"))
    name = causal.__name__.partition("For")[0].removesuffix("LMHeadModel")
    return type(
        f"{name}ForSequenceClassification",
        (GenericForSequenceClassification, parent),
        {"base_model_prefix": causal.base_model_prefix, "__module__": __name__},
    )


def has_classifier_class(config: PreTrainedConfig) -> bool:
    """Whether the library, or code that comes with the model, has a sequence classifier for it."""
    return _is_known(config, AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)


def random_head(hidden_size: int, seed: int) -> Tensor:
    """(1, hidden_size) weights of a reward model's head before training: over normal hidden states, scores of about 1.

    Stiennon et al. 2020, arXiv:2009.01325.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "head"))
    return torch.randn(1, hidden_size, generator=generator) / (hidden_size + 1) ** 0.5


def new_head(hidden_size: int) -> nn.Linear:
    """A critic's head before any training: zeros, as ``load_scalar_model`` says."""
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head


def load_critic(ref: Ref, *, trust_remote_code: bool = False, weightless: bool = False) -> ScalarModel:
    """The critic of a checkpoint, or the first one of a run, from a reward model or a policy. ``weightless`` as in
    ``load_policy``."""
    source = part_directory(ref, CRITIC, REWARD_MODEL, POLICY)
    return load_scalar_model(source, trust_remote_code=trust_remote_code, weightless=weightless)


def load_head(directory: Path, hidden_size: int) -> nn.Linear:
    """The head of a critic on the policy's body; where there is no such directory, a new one."""
    head = new_head(hidden_size)
    path = directory / HEAD_FILE
    if path.exists():
        with torch.no_grad():
            head.weight.copy_(load_file(str(path))[HEAD_WEIGHT])
    return head


def save_head(head: nn.Linear, directory: Path) -> None:
    """Write what of a critic on the policy's body is its own."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({HEAD_WEIGHT: head.weight.detach().cpu()}, str(directory / HEAD_FILE), metadata={"format": "pt"})


def load_reward_model(directory: Path, *, trust_remote_code: bool = False, weightless: bool = False) -> ScalarModel:
    """A finished reward model: one whose head would be drawn at random is refused. ``weightless`` as in ``load_policy``."""
    config = read_model_config(directory, trust_remote_code=trust_remote_code)
    if not any("ForSequenceClassification" in name for name in config.architectures or []):
        raise ModelError(
            f"{directory} is a {(config.architectures or ['model without architecture'])[0]}, not a sequence classifier; "
            "name a reward model, or train one with the reward_model section"
        )
    return load_scalar_model(directory, trust_remote_code=trust_remote_code, weightless=weightless)
