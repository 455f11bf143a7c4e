"""Low-rank adapters: policy and critic as small changes to one frozen base, whose bare weights are the reference.

Hu et al. 2021, arXiv:2106.09685. The base is in memory once, whoever uses it, and is never written. An adapter lies in a
checkpoint as PEFT writes it; which of them a forward pass goes through is chosen with each call.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ppo_core import HeadCritic, derive_seed
from ppo_core.sharded import is_in_parts
from tasks.config import ModelAccess
from tasks.errors import ModelError
from tasks.models.loading import load_policy
from tasks.models.parts import CRITIC, HEAD, POLICY
from tasks.models.scalar import load_head, load_scalar_model, new_head
from tasks.store import read_json, write_json

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
# PEFT names weights as they are called within its own wrapper.
_PREFIX = "base_model.model."
AdapterShape = tuple[int, int, tuple[str, ...]]
"""Rank; alpha, which over the rank is the product's weight; last parts of the names of the layers, all linear ones if
none is named."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """The weights of a policy's or a critic's adapter by their names in its file, and what shape they belong to.

    The critic's head is one of its weights.
    """

    shape: AdapterShape
    is_transposed: bool
    """Whether the layers are GPT-2's, which have their weights the other way round."""
    weights: Mapping[str, Tensor]


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a checkpoint's part."""
    settings = read_json(directory / CONFIG_FILE)
    try:
        weights = load_file(str(directory / WEIGHTS_FILE))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{directory / WEIGHTS_FILE} cannot be read ({error}); rerun the stage that wrote it"
        ) from error
    return Adapter(
        shape=(settings["r"], settings["lora_alpha"], tuple(settings["target_modules"])),
        is_transposed=settings["fan_in_fan_out"],
        weights=weights,
    )


class Adapted(nn.Module):
    """A frozen model with one of its adapters, or bare. Called like the model itself, whose weights are in memory once."""

    def __init__(
        self, base: "SharedBase", model: PreTrainedModel, adapter: str | None, body: "Adapted | None" = None
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self._base = base
        self._body = body

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def base_model(self) -> "Adapted":
        """The part before the head, with the same adapter."""
        assert self._body is not None, "only the whole has a head"
        return self._body

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._base.choose(self.adapter)
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self._base.choose(self.adapter)
        return self.model.generate(*args, **kwargs)


class SharedBase:
    """The one copy of a frozen base, and a place in it for a policy's and a critic's adapter."""

    def __init__(self, model: PreTrainedModel) -> None:
        model.requires_grad_(False)
        self._model = model
        self._layers: list[BaseTunerLayer] = []
        self._is_transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
        self._factors: dict[str, nn.Parameter] = {}
        self._head = new_head(model.config.get_text_config().hidden_size)
        self.shape: AdapterShape | None = None
        """Of the adapters that there is place for, with the layers by name; None before there was one."""
        self._asked: AdapterShape | None = None
        self.bare = self._view(None)
        """The base as it is: the reference."""
        self._policy = self._view(POLICY)
        self._critic = HeadCritic(self._view(CRITIC).base_model, self._head)

    def to(self, device: torch.device) -> "SharedBase":
        self._model.to(device)
        self._head.to(device)
        return self

    @property
    def whole(self) -> PreTrainedModel:
        return self._model

    @property
    def is_in_parts(self) -> bool:
        """Whether this process has a part of the base alone."""
        return any(map(is_in_parts, self._model.parameters()))

    @property
    def trained(self) -> list[nn.Parameter]:
        """Of policy and critic."""
        return [*self._factors.values(), *self._head.parameters()]

    def has_place(self, shape: AdapterShape) -> bool:
        """Whether adapters of this shape, all linear layers or those named, fit in."""
        return shape in (self.shape, self._asked) and self.shape is not None

    def make_place(self, shape: AdapterShape) -> None:
        """Let the layers that the shape names, which the model has, or all linear ones, have adapters."""
        # Here, since these imports take half a second that a run without adapters has no use for.
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        assert self.shape is None, "the places of adapters do not change"
        rank, alpha, target_modules = self._asked = shape
        lora = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=list(target_modules) if target_modules else "all-linear",
            fan_in_fan_out=self._is_transposed,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # That the second adapter stands beside the first is what is wanted.
            warnings.simplefilter("ignore")
            for name in (POLICY, CRITIC):
                inject_adapter_in_model(lora, self._model, name)
        self._layers += [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        self._factors |= {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
        for parameter in self._factors.values():
            parameter.data = parameter.data.float()
        self._model.eval()
        assert isinstance(lora.target_modules, set)
        self.shape = (rank, alpha, tuple(sorted(lora.target_modules)))

    def policy(self, adapter: Adapter) -> Adapted:
        """The policy with these weights. There is one: the next call changes what this one returned."""
        self._load(POLICY, adapter)
        return self._policy

    def critic(self, adapter: Adapter) -> HeadCritic:
        """The critic with these weights. There is one: the next call changes what this one returned."""
        self._load(CRITIC, adapter)
        return self._critic

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """What is trained of ``policy`` or ``critic``, by the names in its file."""
        part = f".{name}."
        found = {_PREFIX + own.replace(part, "."): x for own, x in self._factors.items() if part in own}
        if name == CRITIC:
            found |= {f"{_PREFIX}{HEAD}.{own}": x for own, x in self._head.named_parameters()}
        return dict(sorted(found.items()))

    def fresh(self, name: str, seed: int) -> Adapter:
        """Where training starts: the product of the two factors is 0, so that the body is the base's; a head is 0."""
        weights: dict[str, Tensor] = {}
        for own, parameter in self.parameters(name).items():
            if ".lora_A." in own:
                generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name, own))
                uniform = torch.rand(parameter.shape, generator=generator)
                weights[own] = (2 * uniform - 1) / parameter.shape[1] ** 0.5
            else:
                # The second factor, and a critic's head.
                weights[own] = torch.zeros(parameter.shape)
        return self._adapter(weights)

    def state(self, name: str) -> Adapter:
        """A copy of the weights as they are now."""
        return self._adapter(
            {own: x.detach().to("cpu", copy=True).contiguous() for own, x in self.parameters(name).items()}
        )

    def choose(self, name: str | None) -> None:
        """Let forward passes go through the adapters of this name from now on; None through none.

        The library freezes the others, so a backward pass has to come before another choice.
        """
        if not self._layers:
            return
        first = self._layers[0]
        if first.disable_adapters == (name is None) and (name is None or first.active_adapters == [name]):
            return
        for layer in self._layers:
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)

    def _view(self, name: str | None) -> Adapted:
        return Adapted(self, self._model, name, Adapted(self, self._model.base_model, name))

    def _adapter(self, weights: Mapping[str, Tensor]) -> Adapter:
        assert self.shape is not None, "there is no place for an adapter yet"
        return Adapter(shape=self.shape, is_transposed=self._is_transposed, weights=weights)

    def _load(self, name: str, adapter: Adapter) -> None:
        parameters = self.parameters(name)
        assert adapter.shape == self.shape, "an adapter of another shape"
        with torch.no_grad():
            for own, parameter in parameters.items():
                parameter.copy_(adapter.weights[own])


def write_adapter(part: str, adapter: Adapter, directory: Path) -> None:
    """Write weights and settings as PEFT reads them, the same bytes for the same adapter."""
    rank, alpha, target_modules = adapter.shape
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(adapter.weights), str(directory / WEIGHTS_FILE), metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if part == POLICY else "SEQ_CLS",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(target_modules),
        "fan_in_fan_out": adapter.is_transposed,
        "modules_to_save": None if part == POLICY else [HEAD],
        "inference_mode": True,
    }
    write_json(directory / CONFIG_FILE, settings)


def write_whole(
    part: str,
    checkpoint: Path,
    directory: Path,
    *,
    lora_base: Path | None,
    access: ModelAccess,
) -> None:
    """Policy or critic of a checkpoint as a model that needs neither base nor policy to be read."""
    body = POLICY if access.shared_trunk else part
    source = checkpoint / body if lora_base is None else lora_base
    model: PreTrainedModel
    if part == POLICY:
        model = load_policy(source, trust_remote_code=access.trust_remote_code)
    else:
        model = load_scalar_model(source, trust_remote_code=access.trust_remote_code).model
    if lora_base is not None:
        from peft import PeftConfig, PeftModel

        with warnings.catch_warnings():
            # PEFT asks transformers by names of its past.
            warnings.simplefilter("ignore", FutureWarning)
            adapter = PeftConfig.from_pretrained(str(checkpoint / body))
            # Of a critic on the policy's body the adapter is a language model's.
            adapter.task_type = None
            model = PeftModel.from_pretrained(model, str(checkpoint / body), config=adapter).merge_and_unload()
    if part == CRITIC and access.shared_trunk:
        head = getattr(model, HEAD)
        head.load_state_dict(load_head(checkpoint / CRITIC, head.in_features).state_dict())
    model.save_pretrained(str(directory))
