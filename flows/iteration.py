"""One PPO iteration: rollouts, scores, advantages, update."""

from dataclasses import dataclass

from flows.config import RunConfig
from flows.state import Externals, Output, RunStage, TrainState
from tasks.compute_advantages import AdvantagesConfig
from tasks.generate_rollouts import GenerateRolloutsConfig
from tasks.score_rollouts import ScoreRolloutsConfig
from tasks.store import Place
from tasks.update_policy import UpdatePolicyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """The outputs of an iteration that its round reports."""

    rollouts: list[Output]
    scored: list[Output]
    experience: Output
    train: TrainState


def ppo_iteration(
    run: RunStage,
    config: RunConfig,
    place: Place,
    train: TrainState,
    *,
    data: Output,
    reference: Output,
    reward_model: Output | None,
    externals: Externals,
) -> Iteration:
    """From one state of policy and critic to the next."""
    shards = [Place(place.round, place.iteration, shard) for shard in range(config.rollouts.shards)]
    rollouts = [
        run("generate_rollouts", shard, generate_config(config), policy=train.policy, data=data) for shard in shards
    ]
    scored = [
        run(
            "score_rollouts",
            shard,
            score_config(config),
            rollouts=rolled,
            policy=train.policy,
            reference=reference,
            critic=train.critic,
            reward_model=reward_model,
            external=externals.rewards,
        )
        for shard, rolled in zip(shards, rollouts, strict=True)
    ]
    experience = run("compute_advantages", place, advantages_config(config), scored=scored)
    checkpoint = run(
        "update_policy",
        place,
        update_config(config, place.iteration),
        experience=experience,
        policy=train.policy,
        critic=train.critic,
    )
    after = TrainState(policy=checkpoint, critic=checkpoint)
    return Iteration(rollouts=rollouts, scored=scored, experience=experience, train=after)


def generate_config(config: RunConfig) -> GenerateRolloutsConfig:
    return GenerateRolloutsConfig(**dict(config.rollouts), trust_remote_code=config.model.trust_remote_code)


def score_config(config: RunConfig) -> ScoreRolloutsConfig:
    return ScoreRolloutsConfig(
        rewards=config.rewards,
        temperature=config.rollouts.sampling.temperature,
        trust_remote_code=config.model.trust_remote_code,
    )


def advantages_config(config: RunConfig) -> AdvantagesConfig:
    return config.advantages


def update_config(config: RunConfig, iteration: int) -> UpdatePolicyConfig:
    """The schedule is resolved here, so that a longer round changes only the iterations whose learning rate changes."""
    factor = config.optimizers.factor(iteration, config.iterations)
    return UpdatePolicyConfig(
        ppo=config.ppo,
        temperature=config.rollouts.sampling.temperature,
        learning_rate=config.optimizers.learning_rate * factor,
        critic_learning_rate=config.optimizers.critic_learning_rate * factor,
        weight_decay=config.optimizers.weight_decay,
        trust_remote_code=config.model.trust_remote_code,
    )
