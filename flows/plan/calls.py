"""From a run's configuration to the calls of its stages, and to the models that it names."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.config import FROM_POLICY, FROM_REWARD_MODEL, RunConfig
from flows.runs import Run
from flows.state import Externals
from tasks.config import ModelChecks, RewardConfig, StageConfig
from tasks.contract import StageCall
from tasks.data import code_digest
from tasks.store import Inputs, Place, Ref, digest_text, directory_of, model_ref


def stage_call(
    run: Run,
    config: RunConfig,
    stage: str,
    place: Place,
    settings: StageConfig,
    generations: Mapping[str, int],
    inputs: Inputs | None = None,
) -> StageCall:
    """The call of a stage, complete but for its inputs where they are not known yet."""
    return StageCall(
        stage=stage,
        place=place,
        settings=_plain(settings),
        seed=config.seed,
        run_root=str(run.root),
        execution=_plain(config.execution),
        health=_plain(config.health),
        keeps_recoverable=keeps_checkpoint(config, place),
        generation=generations.get(directory_of(stage, place), 0) if generations else 0,
        inputs=inputs or {},
    )


def _plain(settings: StageConfig) -> dict[str, Any]:
    """Settings as JSON has them: one object for those that are the same, as a stage's are at thousands of places. Nobody
    changes it."""
    return _parsed(_text_of(settings))


def settings_digest(settings: StageConfig) -> str:
    return _digest_of(_text_of(settings))


def _text_of(settings: StageConfig) -> str:
    known = _last_text.get(type(settings))
    if known is None or known[0] is not settings:
        known = _last_text[type(settings)] = (settings, settings.model_dump_json())
    return known[1]


_last_text: dict[type[StageConfig], tuple[StageConfig, str]] = {}
_digest_of = lru_cache(maxsize=256)(digest_text)


@lru_cache(maxsize=256)
def _parsed(settings: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(settings)
    return plain


def keeps_checkpoint(config: RunConfig, place: Place) -> bool:
    """Whether a checkpoint's weights are kept: every so many iterations, and a round's last."""
    return place.iteration % config.checkpoint_every == 0 or place.iteration == config.iterations


def external_models(config: RunConfig, home: Path) -> Externals:
    """The models that a configuration names, found and checked."""
    return externals_of(config, {field: find_model(config, home, field) for field in named_models(config)})


def named_models(config: RunConfig) -> dict[str, str]:
    """The names of models by the fields that hold them."""
    model, evaluation = config.model, config.evaluation
    named = {
        "model.policy": model.policy,
        "model.critic": model.critic if model.names_critic else None,
        "reward_model.base": config.reward_model.base if config.reward_model else None,
    }
    for where, rewards in (("rewards", config.rewards), ("evaluation.held_out_rewards", evaluation.held_out_rewards)):
        named |= {field_of(where, name, reward): reward.external_model for name, reward in rewards.items()}
    return {field: name for field, name in named.items() if name is not None}


def find_model(config: RunConfig, home: Path, field: str) -> Ref:
    """The model that a field names."""
    name, model = named_models(config)[field], config.model
    revision = model.revision if field == "model.policy" else None
    return model_ref(name, field=field, home=home, revision=revision, trust_remote_code=model.trust_remote_code)


def externals_of(config: RunConfig, found: Mapping[str, Ref]) -> Externals:
    """The models that were found, by what they are for."""

    def of_rewards(rewards: Mapping[str, RewardConfig], where: str) -> dict[str, Ref]:
        fields = {name: field_of(where, name, reward) for name, reward in rewards.items()}
        return {name: found[field] for name, field in fields.items() if field in found}

    return Externals(
        base=found.get("model.policy"),
        critic=found.get("model.critic"),
        reward_model_base=found.get("reward_model.base"),
        rewards=of_rewards(config.rewards, "rewards"),
        held_out_rewards=of_rewards(config.evaluation.held_out_rewards, "evaluation.held_out_rewards"),
    )


def model_checks(config: RunConfig, externals: Externals, data: Ref | None) -> ModelChecks:
    """What this configuration asks of the models that it names; ``data`` is what prepare_data made, once it has."""
    model, evaluation = config.model, config.evaluation
    has_own_critic = config.has_critic and not model.critic_is_on_policy
    trains_reward_model = config.reward_model is not None
    from_policy = model.critic == FROM_POLICY or (model.critic is None and not trains_reward_model)

    def directory(ref: Ref | None) -> str | None:
        return None if ref is None else ref.path

    def by_field(rewards: Mapping[str, RewardConfig], where: str, refs: Mapping[str, Ref]) -> dict[str, str]:
        return {field_of(where, name, rewards[name]): ref.path for name, ref in refs.items()}

    return ModelChecks(
        policy=directory(externals.base),
        critic=directory(externals.critic) if has_own_critic else None,
        reward_model_base=directory(externals.reward_model_base),
        reward_models={
            **by_field(config.rewards, "rewards", externals.rewards),
            **by_field(evaluation.held_out_rewards, "evaluation.held_out_rewards", externals.held_out_rewards),
        },
        max_new_tokens=config.rollouts.sampling.max_new_tokens,
        adapted_layers=model.lora.target_modules if model.lora else (),
        shared_trunk=model.shared_trunk,
        scalar_policy=(has_own_critic and from_policy) or (trains_reward_model and externals.reward_model_base is None),
        critic_is_reward_model=has_own_critic and trains_reward_model and model.critic in (None, FROM_REWARD_MODEL),
        execution=config.execution,
        trust_remote_code=model.trust_remote_code,
        data=directory(data),
    )


def field_of(where: str, name: str, reward: RewardConfig) -> str:
    """The field that names what a reward is made of."""
    return f"{where}.{name}.{reward.key}"


def with_code_digests(config: RunConfig) -> RunConfig:
    """The configuration with the digest of each reward function's code, so that an edited function scores anew."""

    def digested(rewards: Mapping[str, RewardConfig]) -> dict[str, RewardConfig]:
        return {
            name: reward.model_copy(update={"code": code_digest(path)}) if (path := reward.user_function) else reward
            for name, reward in rewards.items()
        }

    evaluation = config.evaluation.model_copy(update={"held_out_rewards": digested(config.evaluation.held_out_rewards)})
    return config.model_copy(update={"rewards": digested(config.rewards), "evaluation": evaluation})
