"""Hugging Face models as stages use them: policies, scalar models (reward model, critic), and which stay in memory.

Weights are read and written as safetensors only. A name that is no directory is fetched from the hub once and is a
directory from then on.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.pytorch_utils import Conv1D

from tasks.errors import ConfigError, ModelError
from tasks.models.model_config import _is_known, first_line, read_model_config

M = TypeVar("M", bound=nn.Module)


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


def with_empty_weights(model: M) -> M | None:
    """A weightless model, its tensors on the processor, which gives them memory where something is written and no sooner.

    None for one whose code keeps tensors where they are not found: it has to be read.
    """
    tensors: dict[Tensor, Tensor] = {}
    for module in model.modules():
        if any(isinstance(kept, Tensor) for kept in vars(module).values()):
            return None
        # What is tied stays so.
        registered: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for named in registered:
            for name, own in named.items():
                if own is not None and own not in tensors:
                    empty = torch.empty_like(own, device="cpu")
                    tensors[own] = nn.Parameter(empty, own.requires_grad) if isinstance(own, nn.Parameter) else empty
                named[name] = own if own is None else tensors[own]
    return model


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
