"""One PPO iteration: rollouts, scores, advantages, update."""

from dataclasses import dataclass

from flows.config import RunConfig
from flows.state import Externals, Output, RunStage, TrainState
from tasks.config import (
    AuditRolloutsConfig,
    ComputeAdvantagesConfig,
    GenerateRolloutsConfig,
    ScoreRolloutsConfig,
    UpdatePolicyConfig,
)
from tasks.store import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """The outputs of an iteration that its round reports."""

    rollouts: list[Output]
    scored: list[Output]
    experience: Output
    audit: Output
    train: TrainState


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationSettings:
    """Settings of stages that are the same in all iterations, of which a round may have a thousand."""

    generate: GenerateRolloutsConfig
    score: ScoreRolloutsConfig
    advantages: ComputeAdvantagesConfig
    audit: AuditRolloutsConfig


def iteration_settings(config: RunConfig) -> IterationSettings:
    return IterationSettings(
        generate=generate_config(config),
        score=score_config(config),
        advantages=advantages_config(config),
        audit=AuditRolloutsConfig(held_out_rewards=config.evaluation.held_out_rewards, access=config.model.access()),
    )


def generated(
    run: RunStage,
    config: RunConfig,
    settings: IterationSettings,
    place: Place,
    policy: Output,
    *,
    data: Output,
    reference: Output,
) -> list[Output]:
    """The rollouts of an iteration, sampled from ``policy``: one output a shard."""
    lora_base = adapted_base(config, reference)
    return [
        run("generate_rollouts", shard, settings.generate, policy=policy, data=data, lora_base=lora_base)
        for shard in shards_at(place, config)
    ]


def shards_at(place: Place, config: RunConfig) -> list[Place]:
    return [Place(place.round, place.iteration, shard) for shard in range(config.rollouts.shards)]


def ppo_iteration(
    run: RunStage,
    config: RunConfig,
    settings: IterationSettings,
    place: Place,
    train: TrainState,
    *,
    rollouts: list[Output],
    reference: Output,
    reward_model: Output | None,
    externals: Externals,
    first_audit: Output | None,
) -> Iteration:
    """From one state of policy and critic to the next, by ``rollouts`` of that state or, with a lag, of one before it.
    ``first_audit`` is that of the round's first iteration."""
    lora_base = adapted_base(config, reference)
    scored = [
        run(
            "score_rollouts",
            shard,
            settings.score,
            rollouts=rolled,
            policy=train.policy,
            reference=reference,
            critic=train.critic,
            reward_model=reward_model,
            external=externals.rewards,
            lora_base=lora_base,
        )
        for shard, rolled in zip(shards_at(place, config), rollouts, strict=True)
    ]
    experience = run("compute_advantages", place, settings.advantages, scored=scored, checkpoint=train.policy)
    checkpoint = run(
        "update_policy",
        place,
        update_config(config, place),
        experience=experience,
        policy=train.policy,
        critic=train.critic,
        reference=reference if needs_reference(config) else None,
        lora_base=lora_base,
    )
    audit = run(
        "audit_rollouts",
        place,
        settings.audit,
        scored=scored,
        policy=train.policy,
        external=externals.held_out_rewards,
        baseline=first_audit,
    )
    after = TrainState(policy=checkpoint, critic=checkpoint if config.has_critic else None)
    return Iteration(rollouts=rollouts, scored=scored, experience=experience, audit=audit, train=after)


def generate_config(config: RunConfig) -> GenerateRolloutsConfig:
    # The lag says from which policy, which is an input: at another lag, rollouts of the same one are found.
    return GenerateRolloutsConfig(
        **{name: value for name, value in config.rollouts if name != "lag"},
        access=config.model.access("chat_template_kwargs"),
    )


def score_config(config: RunConfig) -> ScoreRolloutsConfig:
    return ScoreRolloutsConfig(
        rewards=config.rewards,
        temperature=config.rollouts.sampling.temperature,
        exact_kl=config.advantages.kl_estimator == "exact",
        access=config.model.access("shared_trunk"),
    )


def advantages_config(config: RunConfig) -> ComputeAdvantagesConfig:
    return ComputeAdvantagesConfig(
        **dict(config.advantages),
        algorithm=config.algorithm,
        max_new_tokens=config.rollouts.sampling.max_new_tokens,
    )


def adapted_base(config: RunConfig, reference: Output) -> Output | None:
    """What the adapters of policy and critic are over; None where both are whole models."""
    return None if config.model.lora is None else reference


def needs_reference(config: RunConfig) -> bool:
    """Whether the update runs the reference itself, and not only its log-probabilities of the sampled tokens."""
    return config.ppo.kl_loss_coef > 0 and config.ppo.kl_loss_estimator == "exact"


def update_config(config: RunConfig, place: Place) -> UpdatePolicyConfig:
    """The schedule is resolved here, so that a longer round changes only the iterations whose learning rate changes."""
    factor = config.optimizers.factor(place.iteration, config.iterations)
    return UpdatePolicyConfig(
        ppo=config.ppo,
        temperature=config.rollouts.sampling.temperature,
        learning_rate=config.optimizers.learning_rate * factor,
        critic_learning_rate=config.optimizers.critic_learning_rate * factor,
        weight_decay=config.optimizers.weight_decay,
        train_policy=place.round > 1 or place.iteration > config.optimizers.critic_warmup,
        access=config.model.access("lora", "shared_trunk"),
    )
