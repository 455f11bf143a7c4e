"""How much memory the stages of a run take, from what its models are: weights, gradients, moments, activations, caches.

All models of an iteration stay in memory between stages, so that those that wait count too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.config import RunConfig
from tasks.config import ExecutionConfig

FLOAT32 = 4
MOMENTS = 2
"""Numbers that AdamW remembers of each weight."""
CHUNK = 2**27
"""Bytes of logits that are computed at once; two more of their size are computed from them."""
LIBRARIES = {"cpu": 700 * 2**20, "mps": 300 * 2**20, "cuda": 600 * 2**20}
"""Bytes that a process takes on a device before there is a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """The most that a stage holds at once, in bytes."""

    stage: str
    weights: int
    gradients: int = 0
    moments: int = 0
    activations: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations + self.cache

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def memory_of_stages(
    config: RunConfig, sizes: Mapping[str, Any], *, prompt_tokens: int, device: str
) -> list[StageMemory]:
    """Of each stage that computes with models, in the order of a round, where the longest prompt has ``prompt_tokens``."""
    own, others = sizes["parameters"], sizes["others"]
    has_adapters = config.model.lora is not None
    body = sizes["forward_bytes"] if has_adapters else FLOAT32
    trained = sizes["adapter_parameters"] if has_adapters else own
    has_own_critic = config.has_critic and not config.model.critic_is_on_policy
    reward_model = others.get("reward_model.base", own) if config.reward_model is not None else 0
    critic = others.get("model.critic", reward_model or own) if has_own_critic else 0
    externals = sum(count for field, count in others.items() if field.endswith(".model"))
    libraries = LIBRARIES[device]
    # The reference, and the policy unless that is adapters over it.
    policies = own * body + (2 if config.has_critic else 1) * trained * FLOAT32 if has_adapters else 2 * own * FLOAT32
    # With a lag, an earlier policy samples beside the newest one.
    policies += trained * FLOAT32 if config.rollouts.lag else 0
    waiting = policies + (critic + reward_model + externals) * FLOAT32 + libraries
    # By autocast, the weights of a pass are there a second time.
    copies = 0 if sizes["forward_bytes"] == FLOAT32 or has_adapters else own * sizes["forward_bytes"]
    rows = config.rollouts.prompts_per_iteration * config.rollouts.samples_per_prompt
    longest = prompt_tokens + config.rollouts.sampling.max_new_tokens
    budget = max(config.execution.micro_batch_tokens, longest)
    tokens = min(budget, rows * longest)
    learned = activations(config, sizes, tokens)
    read = int(tokens * sizes["kept_bytes_a_token"] / sizes["layers"]) + logits(sizes, tokens)
    cache = tokens * sizes["cache_bytes_a_token"]
    cache += min(rows, budget // longest) * sizes["vocabulary"] * 4 * FLOAT32
    parts = config.execution.train_processes if config.execution.sharded else 1
    num_gradients = gradients_at_once(config.execution)

    def parted(parameters: int) -> int:
        """Weights of a model that is trained; of one in parts also what is whole for a moment, and its gradient."""
        together = whole_at_once(sizes, parameters) if parts > 1 else 0
        return (parameters // parts + 2 * together) * FLOAT32

    def training(stage: str, weights: int, parameters: int, kept: int, parts: int = 1) -> StageMemory:
        """A stage that trains so many parameters at once, in one process where gradient and moments are in parts."""
        gradient = parameters * FLOAT32 // parts
        return StageMemory(
            stage=stage,
            weights=weights,
            gradients=num_gradients * gradient,
            moments=MOMENTS * gradient,
            activations=kept,
        )

    stages = []
    if config.warm_up is not None:
        texts = activations(config, sizes, min(budget, config.warm_up.batch_tokens))
        stages.append(training("warm_up", parted(own) + copies + libraries, own, texts, parts))
    if config.reward_model is not None:
        # The reference, which is whole, answers when the reward model is calibrated.
        weights = own * body + parted(reward_model) + copies + libraries
        stages.append(training("train_reward_model", weights, reward_model, learned, parts))
    stages.append(StageMemory(stage="generate_rollouts", weights=waiting + copies, cache=cache))
    stages.append(StageMemory(stage="score_rollouts", weights=waiting + copies, activations=read))
    if parts == 1:
        stages.append(training("update_policy", waiting + copies, max(trained, critic), learned))
    elif has_adapters:
        base = (own // parts + whole_at_once(sizes, own)) * body
        weights = base + (2 if config.has_critic else 1) * trained * FLOAT32 + libraries
        stages.append(training("update_policy", weights, trained, learned))
    else:
        reference = own * FLOAT32 if config.ppo.kl_loss_coef > 0 and config.ppo.kl_loss_estimator == "exact" else 0
        # One is trained after the other.
        weights = parted(max(own, critic)) + min(own, critic) * FLOAT32 // parts + reference + copies + libraries
        stages.append(training("update_policy", weights, max(own, critic), learned, parts))
    return stages


def whole_at_once(sizes: Mapping[str, Any], parameters: int) -> int:
    """Numbers of a model in parts that are together at a time: those of no layer, such as embedding and head, and two
    layers, of which one is fetched while the other computes."""
    of_no_layer = 2 * int(sizes["vocabulary"]) * int(sizes["hidden_size"])
    return min(parameters, of_no_layer + 2 * parameters // int(sizes["layers"]))


def gradients_at_once(execution: ExecutionConfig) -> int:
    """Of one model: with shares, sums along the branches of a tree wait for each other, and what came before for them."""
    if execution.shares == 1:
        return 1
    return 1 + (execution.shares // execution.train_processes).bit_length()


def activations(config: RunConfig, sizes: Mapping[str, Any], num_tokens: int) -> int:
    """What a pass over so many tokens keeps until its gradient is computed, and the logits in the making."""
    kept = sizes["kept_bytes_a_token"]
    if config.execution.gradient_checkpointing:
        # Each layer's input, and one layer in full.
        kept = sizes["layers"] * sizes["hidden_size"] * sizes["forward_bytes"] + kept / sizes["layers"]
    return int(num_tokens * kept) + logits(sizes, num_tokens)


def logits(sizes: Mapping[str, Any], num_tokens: int) -> int:
    """Of so many tokens, or of as many as are computed at once."""
    return int(min(CHUNK, num_tokens * sizes["vocabulary"] * FLOAT32)) * 3
