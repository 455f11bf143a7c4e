"""The one way to a stage's models: whole ones, or adapters over one frozen base; a critic with a body of its own, or a head
on the policy's; a reward model, trained or new."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppo_core import HeadCritic, InPrecision, Sharing, TrunkCritic, inside, shard, whole
from ppo_core.forward import can_pack
from ppo_core.heads import linear_head
from tasks.config import ModelAccess
from tasks.contract import StageContext
from tasks.models.adapters import Adapted, Adapter, AdapterShape, SharedBase, read_adapter, write_adapter
from tasks.models.devices import pick_device, pick_dtype, pick_head_dtype, with_weights_in
from tasks.models.loading import load_policy, with_empty_weights
from tasks.models.parts import CRITIC, POLICY, REWARD_MODEL, part_directory
from tasks.models.scalar import ScalarModel, load_critic, load_head, load_reward_model, load_scalar_model, save_head
from tasks.models.training import checkpoint_gradients, layers_of
from tasks.store import Ref
from tasks.text import load_tokenizer

BASE = "base"
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A model that an update changes in place, with what the update and the next checkpoint need to know of it."""

    model: nn.Module
    parameters: list[nn.Parameter]
    writer: Callable[[], Callable[[Path], None]]
    """What writes it as it is now, from whatever thread. Where processes hold parts of it, they come together here."""
    kept: Callable[[], nn.Module | Adapter]
    """What later stages find in memory, and need not read from what was saved."""


@dataclass(frozen=True, slots=True)
class Models:
    """A stage's models. Each is on the stage's device, and loaded once for all stages that use it after another.

    Where ``context.lora_base`` is given, policies are adapters over that frozen model, and so are critics.
    """

    context: StageContext
    access: ModelAccess

    @property
    def device(self) -> torch.device:
        return pick_device(self.context.execution)

    @property
    def dtype(self) -> torch.dtype:
        """Of forward passes."""
        return pick_dtype(self.context.execution, self.device)

    @property
    def head_dtype(self) -> torch.dtype:
        """Of the layer that makes logits."""
        return pick_head_dtype(self.context.execution)

    @property
    def sharing(self) -> Sharing:
        """How a model is trained: by this process alone, or by all that train together."""
        group = distributed.group.WORLD if distributed.is_available() and distributed.is_initialized() else None
        return Sharing(group, self.context.execution.shares, self.is_in_parts)

    @property
    def is_in_parts(self) -> bool:
        """Whether this process has its part alone of what it trains with others."""
        return self.context.execution.sharded and distributed.is_initialized()

    def writer(self, write: Callable[[Path], None]) -> Callable[[Path], None]:
        """What has the first of the processes that train together write a model; the others have the same one."""
        return write if self.context.rank == 0 else lambda _: None

    def policy_writer(self, model: PreTrainedModel, ref: Ref) -> Callable[[Path], None]:
        """What writes a policy that was trained from that of a checkpoint."""
        found = self._together(model, lambda: self._load_policy(ref))
        return self.writer(lambda directory: found.save_pretrained(str(directory)))

    def scalar_writer(self, model: ScalarModel, source: Path) -> Callable[[Path], None]:
        """What writes a critic or reward model that was trained from the model in a directory."""
        trusts = self.access.trust_remote_code
        found = self._together(model, lambda: load_scalar_model(source, trust_remote_code=trusts))
        if model.is_calibrated:
            found.take_calibration(model)
        return self.writer(found.save)

    def _together(self, model: M, load: Callable[[], M]) -> M:
        """A model that is whole, on the processor where it was in parts; in the first process alone it has their weights."""
        if not self.is_in_parts:
            return model
        found = load() if self.context.rank == 0 else model
        with torch.no_grad():
            for own, other in zip(found.parameters(), model.parameters(), strict=True):
                weights = whole(other)
                if self.context.rank == 0:
                    own.copy_(weights)
        return found

    def tokenizer(self, directory: Path, *, options: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
        """The tokenizer in a model's directory, its template with these options, else with those saved there."""
        trusts = self.access.trust_remote_code
        return load_tokenizer(str(directory), trust_remote_code=trusts, chat_template_kwargs=options)

    def policy_tokenizer(self, ref: Ref) -> PreTrainedTokenizerBase:
        """A policy's tokenizer, which renders prompts as the run's configuration says."""
        return self.tokenizer(part_directory(ref, POLICY), options=self.access.chat_template_kwargs)

    def policy(self, ref: Ref) -> PreTrainedModel | Adapted:
        """A policy that nobody changes."""
        if self.context.lora_base is None:
            return self._whole_policy(ref)
        if ref.digest == self.context.lora_base.digest:
            return self._shared_base().bare
        adapter = self._saved_adapter(ref, POLICY)
        return self._shared_base(adapter.shape).policy(adapter)

    def write_policy(self, ref: Ref, directory: Path) -> None:
        """A policy as its checkpoint has it, also where the checkpoint's own files were not kept."""
        if self.context.lora_base is None:
            self._whole_policy(ref).save_pretrained(str(directory))
        else:
            write_adapter(POLICY, self._saved_adapter(ref, POLICY), directory)

    def critic(self, ref: Ref, policy: Ref) -> nn.Module:
        """A critic that nobody changes, beside ``policy``, on whose body it may stand. Before the first update, the one that
        this will start from."""
        if self.access.shared_trunk:
            body = self.policy(policy)
            return TrunkCritic(body, self.context.resident.get(ref, CRITIC, lambda: self._load_head(ref, body)))
        if self.context.lora_base is None:
            return self.context.resident.get(ref, CRITIC, lambda: self._load_critic(ref)).to(self.device)
        if ref.digest == self.context.lora_base.digest:
            # Its adapter's product is 0 before the first step.
            bare = self._shared_base().bare
            return HeadCritic(bare.base_model, self._load_head(ref, bare))
        adapter = self._saved_adapter(ref, CRITIC)
        return self._shared_base(adapter.shape).critic(adapter)

    def reward_model(self, ref: Ref) -> ScalarModel:
        """A finished reward model that nobody changes."""

        def load() -> ScalarModel:
            return load_reward_model(part_directory(ref, REWARD_MODEL), trust_remote_code=self.access.trust_remote_code)

        return self.context.resident.get(ref, REWARD_MODEL, load).to(self.device).eval()

    def new_reward_model(self, ref: Ref, *, seed: int) -> ScalarModel:
        """A reward model to train, from another one or from a policy, whose head is then drawn from ``seed``."""
        source = part_directory(ref, REWARD_MODEL, POLICY)

        def load(weightless: bool) -> ScalarModel:
            trusts = self.access.trust_remote_code
            return load_scalar_model(source, seed=seed, trust_remote_code=trusts, weightless=weightless)

        return self._to_train(self._loaded(load))

    def take_policy(self, ref: Ref) -> Trainable:
        """The policy to train, with a new adapter where it has none yet."""
        if self.context.lora_base is None:
            model = self._to_train(
                self.context.resident.take(ref, POLICY, lambda: self._loaded(partial(self._load_policy, ref)))
            )
            return Trainable(
                model=model,
                parameters=list(model.parameters()),
                writer=partial(self.policy_writer, model, ref),
                kept=lambda: model,
            )
        return self._take_adapted(ref, POLICY)

    def take_critic(self, ref: Ref, policy: PreTrainedModel | Adapted) -> Trainable:
        """The critic to train, beside ``policy``, on whose body it may stand."""
        if self.access.shared_trunk:
            head = self.context.resident.take(ref, CRITIC, lambda: self._load_head(ref, policy))
            return Trainable(
                model=TrunkCritic(policy, head),
                parameters=list(head.parameters()),
                writer=lambda: self.writer(partial(save_head, head)),
                kept=lambda: head,
            )
        if self.context.lora_base is None:
            model = self._to_train(
                self.context.resident.take(ref, CRITIC, lambda: self._loaded(partial(self._load_critic, ref)))
            )
            return Trainable(
                model=model,
                parameters=list(model.parameters()),
                writer=partial(self.scalar_writer, model, part_directory(ref, CRITIC, REWARD_MODEL, POLICY)),
                kept=lambda: model,
            )
        return self._take_adapted(ref, CRITIC)

    def _take_adapted(self, ref: Ref, part: str) -> Trainable:
        new = self.access.lora
        assert self.context.lora_base is not None
        assert new is not None, "the configuration says what adapters are like"
        if ref.digest == self.context.lora_base.digest:
            shared = self._shared_base((new.rank, new.alpha, new.target_modules), is_trained=True)
            adapter = shared.fresh(part, self.context.run_seed)
        else:
            adapter = self._saved_adapter(ref, part)
            shared = self._shared_base(adapter.shape, is_trained=True)
        return Trainable(
            model=self._tried(shared.policy(adapter) if part == POLICY else shared.critic(adapter)),
            parameters=list(shared.parameters(part).values()),
            writer=lambda: self.writer(lambda directory: write_adapter(part, shared.state(part), directory)),
            kept=lambda: shared.state(part),
        )

    def _shared_base(self, shape: AdapterShape | None = None, *, is_trained: bool = False) -> SharedBase:
        """The base with a place for adapters of this shape; None asks for none. Where those are trained in parts, it lies in
        parts from then on."""
        base = self.context.lora_base
        assert base is not None

        def load() -> SharedBase:
            load_base = partial(self._load_policy, base)
            model = self._loaded(load_base) if is_trained else load_base()
            return SharedBase(with_weights_in(model, self.dtype, self.head_dtype))

        shared = self.context.resident.get(base, BASE, load)
        if shape is not None and not shared.has_place(shape):
            if shared.shape is not None:
                # A run that was told to make adapters of another shape from here on.
                self.context.resident.take(base, BASE, load)
                shared = self.context.resident.get(base, BASE, load)
            shared.make_place(shape)
        self._spare_memory(shared.whole)
        if not shared.is_in_parts:
            if is_trained and self.is_in_parts:
                self._shard(shared.whole, left_whole=shared.trained)
            else:
                shared.to(self.device)
        return shared

    def _saved_adapter(self, ref: Ref, part: str) -> Adapter:
        return self.context.resident.get(ref, part, lambda: read_adapter(part_directory(ref, part)))

    def _whole_policy(self, ref: Ref) -> PreTrainedModel:
        return self.context.resident.get(ref, POLICY, lambda: self._load_policy(ref)).to(self.device)

    def _load_policy(self, ref: Ref, weightless: bool = False) -> PreTrainedModel:
        trusts = self.access.trust_remote_code
        return load_policy(part_directory(ref, POLICY), trust_remote_code=trusts, weightless=weightless)

    def _load_critic(self, ref: Ref, weightless: bool = False) -> ScalarModel:
        return load_critic(ref, trust_remote_code=self.access.trust_remote_code, weightless=weightless)

    def _load_head(self, ref: Ref, policy: PreTrainedModel | Adapted) -> nn.Linear:
        hidden_size = policy.config.get_text_config().hidden_size
        return load_head(ref.directory / CRITIC, hidden_size).to(self.device)

    def _spare_memory(self, model: nn.Module) -> None:
        if self.context.execution.gradient_checkpointing:
            checkpoint_gradients(model)

    def _loaded(self, load: Callable[[bool], M]) -> M:
        """A model to be trained; where it will lie in parts, the first process alone reads the weights, for all."""
        if self.is_in_parts and self.context.rank > 0 and (empty := with_empty_weights(load(True))) is not None:
            return empty
        return load(False)

    def _to_train(self, model: M) -> M:
        """A model on the stage's device; of one that is trained in parts, what is this process's."""
        self._spare_memory(model)
        if not self.is_in_parts:
            return model.to(self.device)
        self._shard(model)
        return self._tried(model)

    def _shard(self, model: nn.Module, *, left_whole: Collection[nn.Parameter] = ()) -> None:
        in_order = self.context.execution.shares > 1
        shard(model, layers_of(model), self.device, left_whole=left_whole, in_order=in_order)

    def _tried(self, model: M) -> M:
        """A model of which is known what is tried once: where it lies in parts, all processes have to do that at once."""
        if self.is_in_parts:
            in_precision = InPrecision(model, self.dtype, self.head_dtype)
            with torch.no_grad():
                inside(model, lambda: (can_pack(in_precision), linear_head(in_precision)))
        return model
