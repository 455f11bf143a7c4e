"""The next checkpoint in the making, whose parts are read when their training begins and written when that is over; and what
training remembers besides weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ppo_core import Optimizers, RunningMoments, whole
from ppo_core.sharded import parted_like
from tasks.config import UpdatePolicyConfig
from tasks.contract import StageContext
from tasks.models.access import Models, Trainable
from tasks.models.parts import CRITIC, POLICY, part_directory
from tasks.models.training import adamw
from tasks.store import BackgroundWriter, Ref, read_json, write_json
from tasks.text import copy_tokenizer

MOMENTS_OF = {POLICY: "policy_optimizer.safetensors", CRITIC: "critic_optimizer.safetensors"}


class NextCheckpoint:
    """Policy and critic as an update changes them, from ``policy`` and ``critic`` to what lies below ``context.output``.

    A model's moments take twice its memory. They are in memory while it is trained, and after that only where the files
    that hold them are not kept.
    """

    def __init__(
        self,
        context: StageContext,
        config: UpdatePolicyConfig,
        models: Models,
        *,
        policy: Ref,
        critic: Ref | None,
        writer: BackgroundWriter,
    ) -> None:
        self._context, self._config, self._writer = context, config, writer
        self._sources = {POLICY: policy} if critic is None else {POLICY: policy, CRITIC: critic}
        # Taken, not shared: the update changes them in place, and nobody may see them half changed.
        self.policy = models.take_policy(policy)
        self.critic = None if critic is None else models.take_critic(critic, self.policy.model)
        self._optimizers: dict[str, torch.optim.AdamW] = {}
        if config.train_policy:
            groups = [(self.policy, config.learning_rate)]
            if self.critic is not None and config.access.shared_trunk:
                groups.append((self.critic, config.critic_learning_rate))
            self._optimizers[POLICY] = self._optimizer(groups)
        if self.critic is not None and not config.access.shared_trunk:
            self._optimizers[CRITIC] = self._optimizer([(self.critic, config.critic_learning_rate)])
        self._restored: set[str] = set()
        self.resident: dict[str, Any] = {}
        """What stays in memory, by the part whose numbers it has."""
        for part, optimizer in self._optimizers.items():
            optimizer.register_step_pre_hook(lambda *_, part=part: self._restore(part))
        if not config.train_policy:
            self._write(POLICY, self.policy)

    @property
    def optimizers(self) -> Optimizers:
        """One for each that is trained, which has its moments from its first step on."""
        return Optimizers(policy=self._optimizers.get(POLICY), critic=self._optimizers.get(CRITIC))

    def on_trained(self, name: str) -> None:
        """Write what is finished."""
        # The moments first: their memory is what the next model's take.
        self._write_moments(name)
        if name == POLICY:
            self._write(POLICY, self.policy)
        if self.critic is not None and (name == CRITIC or self._config.access.shared_trunk):
            self._write(CRITIC, self.critic)

    def _optimizer(self, groups: list[tuple[Trainable, float]]) -> torch.optim.AdamW:
        return adamw(
            [{"params": trainable.parameters, "lr": rate} for trainable, rate in groups],
            weight_decay=self._config.weight_decay,
        )

    def _restore(self, part: str) -> None:
        """Before the first step, the moments of the checkpoint before; none where training only begins."""
        if part in self._restored:
            return
        self._restored.add(part)
        source, name = self._sources[part], MOMENTS_OF[part]
        path = source.directory / name
        kept: dict[str, torch.Tensor] = self._context.resident.take(source, name, dict)
        if not kept and not path.exists():
            return
        optimizer = self._optimizers[part]
        for index, parameter in enumerate(_parameters(optimizer)):
            names = {key: f"{index}.{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
            saved = {key: kept.pop(own) for key, own in names.items()} if kept else _copied(path, names)
            optimizer.state[parameter] = {
                key: parted_like(x.to(parameter.device), parameter) for key, x in saved.items()
            }

    def _write(self, part: str, trainable: Trainable) -> None:
        write_model = trainable.writer()

        def write(directory: Path) -> None:
            write_model(directory)
            copy_tokenizer(part_directory(self._sources[POLICY], POLICY), directory)

        self.resident[part] = trainable.kept()
        if self._context.rank == 0:
            self._writer.write(self._context.output / part, write)

    def _write_moments(self, part: str) -> None:
        optimizer = self._optimizers[part]
        moments = {}
        for index, parameter in enumerate(_parameters(optimizer)):
            for name, value in optimizer.state[parameter].items():
                # All processes ask for it, and the first writes it.
                found = whole(value.detach())
                if self._context.rank == 0:
                    moments[f"{index}.{name}"] = found.cpu().contiguous()
        optimizer.state.clear()
        if self._context.rank > 0:
            return
        if not self._context.keeps_recoverable:
            self.resident[MOMENTS_OF[part]] = dict(moments)

        def write(path: Path) -> None:
            save_file(moments, str(path))
            # Now, not when their digest is known too.
            moments.clear()

        self._writer.write(self._context.output / MOMENTS_OF[part], write)


def _copied(path: Path, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Tensors of a file, in aligned memory of our own, which an optimizer steps over sooner than over a mapped file's.

    The file is opened for these few alone, since what was read of it counts as ours until it is closed.
    """
    with safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(own).clone() for key, own in names.items()}


def _parameters(optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    """In the order of their numbers in a checkpoint."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


STATE_FILE = "loop_state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """Written by ``compute_advantages`` for the next iteration; part of the checkpoint. JSON keeps floats exactly."""

    kl_coef: float | None = None
    """None before the first iteration: the configuration's."""
    scores: RunningMoments = field(default_factory=RunningMoments)
    """Of all scores so far that count."""
    told_length_cut: bool = False
    """Whether it was said that most responses are cut off: once is enough."""

    def write(self, directory: Path) -> None:
        write_json(directory / STATE_FILE, asdict(self))


def read_loop_state(directory: Path) -> LoopState:
    """The state in a checkpoint; that of the beginning in the model that training starts from."""
    saved = read_json(directory / STATE_FILE)
    if saved is None:
        return LoopState()
    return LoopState(
        kl_coef=saved["kl_coef"], scores=RunningMoments(**saved["scores"]), told_length_cut=saved["told_length_cut"]
    )
