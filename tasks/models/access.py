"""Policy and critic of a checkpoint as stages take them: whole models, or adapters over one frozen base; and a critic with a
body of its own, or a head on the policy's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppo_core import HeadCritic, TrunkCritic
from tasks.config import AdapterConfig
from tasks.contract import StageContext
from tasks.models.adapters import Adapter, AdapterShape, SharedBase, merge, read_adapter, write_adapter
from tasks.models.checkpointing import checkpoint_gradients
from tasks.models.devices import pick_device, pick_dtype, pick_head_dtype, with_weights_in
from tasks.models.loading import load_policy
from tasks.models.parts import CRITIC, HEAD, POLICY, part_directory
from tasks.models.scalar import load_critic, load_head, load_scalar_model, save_head
from tasks.store import Ref

BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A model that an update changes in place, with what the update and the next checkpoint need to know of it."""

    model: nn.Module
    parameters: list[nn.Parameter]
    save: Callable[[Path], None]
    kept: Callable[[], Any]
    """What later stages find in memory, and need not read from what was saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learners:
    """How a stage comes by policy and critic."""

    context: "StageContext"
    lora_base: Ref | None
    """The frozen model whose adapters the others are; None where models are whole."""
    shared_trunk: bool = False
    """Whether the critic is a head on the policy's body."""
    trust_remote_code: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Options of the policy's chat template, which says where an answer ends."""

    @property
    def device(self) -> torch.device:
        return pick_device(self.context.execution)

    def policy(self, ref: Ref) -> Any:
        """A policy that nobody changes."""
        if self.lora_base is None:
            return self.context.models.get(ref, POLICY, lambda: self._load_policy(ref)).to(self.device)
        if ref.digest == self.lora_base.digest:
            return self._shared_base().bare
        adapter = self._saved_adapter(ref, POLICY)
        return self._shared_base(adapter.shape).policy(adapter)

    def write_policy(self, ref: Ref, directory: Path) -> None:
        """A policy as its checkpoint has it, also where the checkpoint's own files were not kept."""
        if self.lora_base is None:
            self.policy(ref).save_pretrained(str(directory))
        else:
            write_adapter(POLICY, self._saved_adapter(ref, POLICY), directory)

    def critic(self, ref: Ref, policy: Ref) -> nn.Module:
        """A critic that nobody changes, beside ``policy``, on whose body it may stand. Before the first update, the one that
        this will start from."""
        if self.shared_trunk:
            body = self.policy(policy)
            return TrunkCritic(body, self.context.models.get(ref, CRITIC, lambda: self._load_head(ref, body)))
        if self.lora_base is None:
            return self.context.models.get(ref, CRITIC, lambda: self._load_critic(ref)).to(self.device)
        if ref.digest == self.lora_base.digest:
            # Its adapter's product is 0 before the first step.
            bare = self._shared_base().bare
            return HeadCritic(bare.base_model, self._load_head(ref, bare))
        adapter = self._saved_adapter(ref, CRITIC)
        return self._shared_base(adapter.shape).critic(adapter)

    def take_policy(self, ref: Ref, new: "AdapterConfig | None") -> Learner:
        """The policy to train; ``new`` says what adapter it gets where it has none yet."""
        if self.lora_base is None:
            model = self.context.models.take(ref, POLICY, lambda: self._load_policy(ref)).to(self.device)
            self._spare_memory(model)
            return Learner(
                model=model,
                parameters=list(model.parameters()),
                save=lambda directory: model.save_pretrained(str(directory)),
                kept=lambda: model,
            )
        return self._take_adapted(ref, POLICY, new)

    def take_critic(self, ref: Ref, new: "AdapterConfig | None", policy: Any) -> Learner:
        """The critic to train, beside ``policy``, on whose body it may stand."""
        if self.shared_trunk:
            head = self.context.models.take(ref, CRITIC, lambda: self._load_head(ref, policy))
            return Learner(
                model=TrunkCritic(policy, head),
                parameters=list(head.parameters()),
                save=lambda directory: save_head(head, directory),
                kept=lambda: head,
            )
        if self.lora_base is None:
            model = self.context.models.take(ref, CRITIC, lambda: self._load_critic(ref)).to(self.device)
            self._spare_memory(model)
            return Learner(
                model=model, parameters=list(model.parameters()), save=lambda d: model.save(d), kept=lambda: model
            )
        return self._take_adapted(ref, CRITIC, new)

    def _take_adapted(self, ref: Ref, part: str, new: "AdapterConfig | None") -> Learner:
        assert self.lora_base is not None
        assert new is not None
        if ref.digest == self.lora_base.digest:
            shared = self._shared_base((new.rank, new.alpha, new.target_modules))
            adapter = shared.fresh(part, self.context.run_seed)
        else:
            adapter = self._saved_adapter(ref, part)
            shared = self._shared_base(adapter.shape)
        return Learner(
            model=shared.policy(adapter) if part == POLICY else shared.critic(adapter),
            parameters=list(shared.parameters(part).values()),
            save=lambda directory: write_adapter(part, shared.state(part), directory),
            kept=lambda: shared.state(part),
        )

    def _shared_base(self, shape: "AdapterShape | None" = None) -> "SharedBase":
        """The base with a place for adapters of this shape; None asks for none."""
        base = self.lora_base
        assert base is not None

        def load() -> "SharedBase":
            dtype = pick_dtype(self.context.execution, self.device)
            return SharedBase(with_weights_in(self._load_policy(base), dtype, pick_head_dtype(self.context.execution)))

        shared = self.context.models.get(base, BASE, load)
        if shape is not None and not shared.has_place(shape):
            if shared.shape is not None:
                # A run that was told to make adapters of another shape from here on.
                self.context.models.take(base, BASE, load)
                shared = self.context.models.get(base, BASE, load)
            shared.make_place(shape)
        self._spare_memory(shared.to(self.device).whole)
        return shared

    def _saved_adapter(self, ref: Ref, part: str) -> "Adapter":
        return self.context.models.get(ref, part, lambda: read_adapter(part_directory(ref, part)))

    def _load_policy(self, ref: Ref) -> Any:
        return load_policy(part_directory(ref, POLICY), trust_remote_code=self.trust_remote_code)

    def _load_critic(self, ref: Ref) -> Any:
        return load_critic(ref, trust_remote_code=self.trust_remote_code)

    def _load_head(self, ref: Ref, policy: Any) -> nn.Linear:
        hidden_size = policy.config.get_text_config().hidden_size
        return load_head(ref.directory / CRITIC, hidden_size).to(self.device)

    def _spare_memory(self, model: nn.Module) -> None:
        if self.context.execution.gradient_checkpointing:
            checkpoint_gradients(model)


def write_whole(
    part: str,
    checkpoint: Path,
    directory: Path,
    *,
    lora_base: Path | None,
    shared_trunk: bool,
    trust_remote_code: bool,
) -> None:
    """Policy or critic of a checkpoint as a model that needs neither base nor policy to be read."""
    body = POLICY if shared_trunk else part
    source = checkpoint / body if lora_base is None else lora_base
    model: Any
    if part == POLICY:
        model = load_policy(source, trust_remote_code=trust_remote_code)
    else:
        model = load_scalar_model(source, trust_remote_code=trust_remote_code).model
    if lora_base is not None:
        merge(model, read_adapter(checkpoint / body))
    if part == CRITIC and shared_trunk:
        head = getattr(model, HEAD)
        head.load_state_dict(load_head(checkpoint / CRITIC, head.in_features).state_dict())
    model.save_pretrained(str(directory))
