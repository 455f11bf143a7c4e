"""Hugging Face models as stages use them: policies, scalar models (reward model, critic), and which stay in memory.

Weights are read and written as safetensors only. A name that is no directory is fetched from the hub once and is a
directory from then on.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import __version__ as transformers_version
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from ppo_core.logprobs import linear_in_float32
from ppo_core.randomness import derive_seed
from tasks.errors import ConfigError, ModelError
from tasks.store import Ref

if TYPE_CHECKING:
    from tasks.stage import ExecutionConfig

POLICY, CRITIC, REWARD_MODEL = "policy", "critic", "reward_model"
# Where Hugging Face's sequence classifiers for decoders keep their linear head.
HEAD = "score"
HEAD_FILE, HEAD_WEIGHT = "head.safetensors", f"{HEAD}.weight"
# Policy, critic, their moments where no file keeps them, reference, reward model, and one more: what an iteration needs.
MAX_RESIDENT = 7

M = TypeVar("M")


def part_directory(ref: Ref, *parts: str) -> Path:
    """The first of ``parts`` that an output has; an external model is its own only part."""
    for part in parts:
        if (ref.directory / part).is_dir():
            return ref.directory / part
    if (ref.directory / "config.json").exists():
        return ref.directory
    raise ModelError(f"{ref.directory} has neither {' nor '.join(parts)}, nor a config.json; name a model's directory")


def pick_device(execution: "ExecutionConfig") -> torch.device:
    """The device that the configuration names, or the fastest one there is."""
    name = execution.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"execution.device={name}: this PyTorch sees no CUDA device; set it to auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ModelError("execution.device=mps: this machine has no Metal device; set it to auto or cpu")
    return torch.device(name)


def pick_dtype(execution: "ExecutionConfig", device: torch.device) -> torch.dtype:
    """The precision of forward passes."""
    if execution.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if execution.dtype == "bfloat16" else torch.float32


def pick_head_dtype(execution: "ExecutionConfig") -> torch.dtype:
    """The precision of logits, where that of forward passes is lower."""
    return torch.bfloat16 if execution.head_dtype == "bfloat16" else torch.float32


def with_weights_in(model: PreTrainedModel, dtype: torch.dtype, head_dtype: torch.dtype) -> PreTrainedModel:
    """A model that is never trained with its weights in ``dtype``, but for those of its head, which every call would
    otherwise have to widen."""
    head = model.get_output_embeddings()
    own = {} if head is None else {name: x.data for name, x in head.named_parameters()}
    model.to(dtype)
    for name, x in own.items():
        head.get_parameter(name).data = x.to(torch.promote_types(dtype, head_dtype))
    return model


def prefer_determinism() -> None:
    """Have CUDA choose repeatable kernels where it has them, and say in the log where it has none."""
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Every tensor is written before it is read; filling it first would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def load_policy(directory: Path, *, trust_remote_code: bool = False, weightless: bool = False) -> PreTrainedModel:
    """A causal language model with float32 weights, in evaluation mode: dropout would make the first ratio differ from 1.

    ``weightless`` reads no weights, only which there are: the model is on the meta device.
    """
    config = read_model_config(directory, trust_remote_code=trust_remote_code)
    if not _is_known(config, AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING):
        raise ModelError(
            f"{directory} is a {config.model_type} model, which transformers {transformers_version} has no causal language "
            "model for; name a decoder language model (Llama, Qwen, Mistral, Gemma, GPT-2, ...)"
        )
    model, absent = load_pretrained(
        AutoModelForCausalLM, directory, trust_remote_code=trust_remote_code, weightless=weightless
    )
    require_weights(directory, model, absent)
    return model


def load_pretrained(
    auto_class: Any, directory: Path, *, trust_remote_code: bool, weightless: bool = False, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of its weights that the files lack or hold in another shape: those are random."""
    if weightless:
        options["device_map"] = "meta"
    try:
        model, loading = auto_class.from_pretrained(
            str(directory),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    # A model whose weights are packed in a way of their own asks for the package that unpacks them.
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"{directory} cannot be loaded as {auto_class.__name__} with safetensors weights: {first_line(error)}"
        ) from error
    absent = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not weightless and not torch.isfinite(parameter).all():
                raise ModelError(
                    f"{directory} has weights that are no finite numbers, among them {name}; its training went wrong, so "
                    "take an earlier checkpoint"
                )
            # A file's weights lie in memory where its header's length puts them. Matrix products are slower there, and
            # may round otherwise than over the same weights where training left them.
            parameter.set_(parameter.clone())
    return model.eval(), sorted(absent)


def require_weights(directory: Path, model: PreTrainedModel, absent: list[str]) -> None:
    """Refuse a model that is random in part: the library would only print a warning."""
    if absent:
        raise ModelError(
            f"{directory} lacks {len(absent)} of the weights of its {type(model).__name__}, among them {absent[0]}, or has "
            "them in another shape; name a directory whose weights fit its config.json and that was saved as such a model"
        )


def require_layers(directory: Path, names: tuple[str, ...], *, trust_remote_code: bool = False) -> None:
    """Refuse names that are not the last parts of those of linear layers before the head; no weight is read."""
    config = read_model_config(directory, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    layers = [
        name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head
    ]
    for asked in names:
        if not any(f".{name}".endswith(f".{asked}") for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ConfigError(f"model.lora.target_modules: {asked!r} is no linear layer of {directory}; it has {known}")


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


class ScalarModel(nn.Module):
    """One scalar per position, ``(head(hidden) - mean) / std``: the reward model at the last token, the critic at each.

    ``mean`` and ``std`` are the reward model's calibration (``algorithm.md`` 1); a critic that starts from it inherits them,
    and with them the scale of the scores. Both lie in the saved ``config.json`` as ``score_mean`` and ``score_std``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.mean = float(getattr(model.config, "score_mean", 0.0))
        self.std = float(getattr(model.config, "score_std", 1.0))

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """(B, L) scalars for (B, L) tokens, padded on the right; positions where several rows share a line."""
        positions = {} if position_ids is None else {"position_ids": position_ids}
        hidden = self.model.base_model(input_ids=input_ids, **positions, use_cache=False).last_hidden_state
        raw = linear_in_float32(getattr(self.model, HEAD), hidden).squeeze(-1)
        return (raw - self.mean) / self.std

    @property
    def is_calibrated(self) -> bool:
        """Whether a run has trained it, rather than somebody else."""
        return hasattr(self.model.config, "score_mean")

    def calibrate(self, mean: float, std: float) -> None:
        """Make scores that were distributed with ``mean`` and ``std`` have mean 0 and standard deviation 1."""
        self.mean, self.std = self.mean + self.std * mean, self.std * std
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


def _is_known(config: PreTrainedConfig, auto_class: Any, classes: Any) -> bool:
    """Whether there is a class of this kind for the configuration; one that brings its code has it where that says so."""
    return type(config) in classes or auto_class.__name__ in (getattr(config, "auto_map", None) or {})


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


def load_critic(ref: Ref, *, trust_remote_code: bool = False) -> ScalarModel:
    """The critic of a checkpoint, or the first one of a run, from a reward model or a policy."""
    return load_scalar_model(part_directory(ref, CRITIC, REWARD_MODEL, POLICY), trust_remote_code=trust_remote_code)


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


def checkpoint_gradients(model: nn.Module) -> None:
    """Have each layer keep its input alone for the backward pass, which then computes the layer again.

    Chen et al. 2016, arXiv:1604.06174. Not by the library's own switch: that works in training mode alone, where dropout
    is on. Doing it twice changes nothing.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"execution.gradient_checkpointing=true: {type(model).__name__} has no layers that can be computed again; "
            "set it to false"
        )
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = _recomputing(layer.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return wrapped


class ResidentModels:
    """Models that stay in memory between stages, by the digest of the output that holds their weights and the part of it.

    Handing one out is the same as loading it anew: ``take`` removes a model that its user will change.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._shared: dict[str, Any] = {}
        self._recover: Callable[[Ref], None] = lambda _: None

    def get(self, ref: Ref, part: str, load: Callable[[], M]) -> M:
        """A model that nobody changes: from memory, or loaded and kept."""
        model = self.take(ref, part, load)
        self.keep(ref, part, model)
        return model

    def take(self, ref: Ref, part: str, load: Callable[[], M]) -> M:
        """A model that the caller may change; it is no longer kept under this digest."""
        if (ref.digest, part) not in self._kept:
            self._recover(ref)
        model: M = self._kept.pop((ref.digest, part)) if (ref.digest, part) in self._kept else load()
        return model

    @contextmanager
    def recovering(self, recover: Callable[[Ref], None]) -> Iterator[None]:
        """Call ``recover`` before a model is read from files: they may not have been kept."""
        before, self._recover = self._recover, recover
        try:
            yield
        finally:
            self._recover = before

    def keep(self, ref: Ref, part: str, model: Any) -> None:
        self._kept[(ref.digest, part)] = model
        self._kept.move_to_end((ref.digest, part))
        while len(self._kept) > MAX_RESIDENT:
            self._kept.popitem(last=False)

    def shared(self, name: str, make: Callable[[], M], *, renew: Callable[[M], None]) -> M:
        """What serves one checkpoint after another, such as an engine that is given new weights: made once, then renewed."""
        if name in self._shared:
            found: M = self._shared[name]
            renew(found)
            return found
        self._shared[name] = made = make()
        return made

    def clear(self) -> None:
        """Forget all: after an error, a model may be half changed."""
        self._kept.clear()
        self._shared.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
