"""Stage: one PPO update of policy and critic; reads a checkpoint and writes the next one."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ppo_core.config import PPOConfig
from tasks.stage import StageConfig, StageContext, StageOutput, stage
from tasks.store import Ref

if TYPE_CHECKING:
    import torch


class OptimizersConfig(StageConfig):
    """Two optimizers with learning rates of their own, on one schedule over the iterations of a round."""

    learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False)
    """The policy's."""
    critic_learning_rate: float = Field(1e-5, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    warmup_iterations: int = Field(0, ge=0)
    """Iterations over which the learning rates rise to their full value in each round."""
    decay: str = Field("constant", pattern="^(constant|linear|cosine)$")
    """How they fall after that, to a tenth at the round's last iteration."""

    def factor(self, iteration: int, iterations: int) -> float:
        """What both learning rates are multiplied by in an iteration (from 1) of a round of so many."""
        import math

        if iteration <= self.warmup_iterations:
            return iteration / (self.warmup_iterations + 1)
        progress = (iteration - 1 - self.warmup_iterations) / max(1, iterations - 1 - self.warmup_iterations)
        if self.decay == "linear":
            return 1 - 0.9 * progress
        if self.decay == "cosine":
            return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        return 1.0


class UpdatePolicyConfig(StageConfig):
    """What the stage reads; the learning rates are those of this iteration."""

    ppo: PPOConfig
    temperature: float
    learning_rate: float
    critic_learning_rate: float
    weight_decay: float
    trust_remote_code: bool = False


@stage(version="1", config=UpdatePolicyConfig)
def update_policy(
    context: StageContext, config: UpdatePolicyConfig, *, experience: Ref, policy: Ref, critic: Ref
) -> StageOutput:
    """Read checkpoint k (or the models that training starts from), update, write checkpoint k + 1."""
    from ppo_core import Optimizers, ppo_update
    from tasks.models import (
        CRITIC,
        POLICY,
        InPrecision,
        load_critic,
        load_policy,
        part_directory,
        pick_device,
        pick_dtype,
    )
    from tasks.responses import rollout_batch
    from tasks.store import read_dataset
    from tasks.text import copy_tokenizer

    device = pick_device(context.execution)
    policy_directory = part_directory(policy, POLICY)
    # Taken, not shared: the update changes them in place, and nobody may see them half changed.
    policy_model = context.models.take(
        policy, POLICY, lambda: load_policy(policy_directory, trust_remote_code=config.trust_remote_code)
    ).to(device)
    critic_model = context.models.take(
        critic, CRITIC, lambda: load_critic(critic, context.run_seed, trust_remote_code=config.trust_remote_code)
    ).to(device)
    table = read_dataset(experience.directory / "rollouts")
    batch = rollout_batch(table, "logprobs", "values", "advantages", "returns")
    policy_optimizer = restored_optimizer(
        policy_model,
        policy.directory / f"{POLICY}_optimizer.safetensors",
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    critic_optimizer = restored_optimizer(
        critic_model,
        critic.directory / f"{CRITIC}_optimizer.safetensors",
        learning_rate=config.critic_learning_rate,
        weight_decay=config.weight_decay,
    )
    num_tokens = len(batch.responses.values)
    total = num_tokens * (config.ppo.epochs + (config.ppo.critic_epochs or config.ppo.epochs)) // 2
    done = 0

    def on_tokens(tokens: int) -> None:
        nonlocal done
        done += tokens
        context.progress(done, max(total, done), unit="tokens", tokens=done)

    dtype = pick_dtype(context.execution, device)
    stats = ppo_update(
        InPrecision(policy_model, dtype),
        InPrecision(critic_model, dtype),
        Optimizers(policy=policy_optimizer, critic=critic_optimizer),
        batch,
        config.ppo,
        temperature=config.temperature,
        micro_batch_tokens=context.execution.micro_batch_tokens,
        seed=context.seed("update"),
        on_tokens=on_tokens,
    )
    policy_model.save_pretrained(str(context.output / POLICY))
    copy_tokenizer(policy_directory, context.output / POLICY)
    critic_model.save(context.output / CRITIC)
    copy_tokenizer(policy_directory, context.output / CRITIC)
    save_optimizer(policy_optimizer, context.output / f"{POLICY}_optimizer.safetensors")
    save_optimizer(critic_optimizer, context.output / f"{CRITIC}_optimizer.safetensors")
    return StageOutput(
        rows=table.num_rows,
        metrics={
            **{f"update/{name}": float(value) for name, value in stats.as_dict().items()},
            "update/learning_rate": config.learning_rate,
            "update/critic_learning_rate": config.critic_learning_rate,
        },
        resident={POLICY: policy_model, CRITIC: critic_model},
    )


def restored_optimizer(
    model: "torch.nn.Module", path: Path, *, learning_rate: float, weight_decay: float
) -> "torch.optim.AdamW":
    """AdamW with the moments of the checkpoint, or fresh where there is none yet. The learning rate is the caller's."""
    from safetensors.torch import load_file

    from tasks.training import adamw

    parameters = list(model.parameters())
    optimizer = adamw(parameters, learning_rate, weight_decay=weight_decay)
    if path.exists():
        saved = load_file(str(path))
        for index, parameter in enumerate(parameters):
            optimizer.state[parameter] = {
                name: saved[f"{index}.{name}"] if name == "step" else saved[f"{index}.{name}"].to(parameter.device)
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
    return optimizer


def save_optimizer(optimizer: "torch.optim.AdamW", path: Path) -> None:
    """The moments as safetensors, keyed by the parameter's position in the model."""
    from safetensors.torch import save_file

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    save_file(
        {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, parameter in enumerate(parameters)
            for name, value in optimizer.state[parameter].items()
        },
        str(path),
    )
