"""What a recipe holds of a configuration: what was decided, so that a new setting changes no finished work."""

import math
from collections.abc import Mapping

import pytest
from pydantic import Field

from flows.config.reading import PRESETS, dump, load_config
from flows.config.run_config import RunConfig
from ppo_core.config import PPOConfig, SamplingConfig
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.base import StageConfig
from tasks.config.decided import completed, decided
from tasks.config.execution import ExecutionConfig
from tasks.config.rewards import FunctionReward, ModelReward, Rewards, ScoreRolloutsConfig, TrainedReward
from tasks.config.training import CriticPretrainingStageConfig
from tasks.config.update import UpdatePolicyConfig

PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
RATES = {"temperature": 1.0, "learning_rate": 1e-5, "critic_learning_rate": 1e-5, "weight_decay": 0.0}


class Inner(StageConfig):
    size: int = 1


class Outer(StageConfig):
    inner: Inner = Inner(size=2)
    perhaps: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: Mapping[str, Inner] = {}
    limit: float = math.inf
    ppo: PPOConfig = PPOConfig()
    name: str


class NewerInner(Inner):
    colour: str = "red"


class NewerOuter(Outer):
    inner: NewerInner = NewerInner(size=2)
    perhaps: NewerInner | None = None
    many: tuple[NewerInner, ...] = ()
    named: Mapping[str, NewerInner] = {}
    height: int = Field(3, gt=0)


GIVEN = [
    {"name": "a"},
    {"name": "a", "inner": {"size": 1}},
    {"name": "a", "inner": {"size": 5}, "perhaps": {}},
    {"name": "a", "many": [{"size": 4}, {}], "named": {"x": {"size": 9}, "y": {}}},
    {"name": "a", "limit": 3.0, "ppo": {"epochs": 7}},
]


def test_a_default_is_not_held_and_what_differs_is():
    assert decided(dump(ExecutionConfig()), ExecutionConfig) == {}
    assert decided(dump(ExecutionConfig(dtype="bfloat16")), ExecutionConfig) == {"dtype": "bfloat16"}
    assert decided(dump(Outer(name="a")), Outer) == {"name": "a"}
    assert decided(dump(Outer(name="a", inner=Inner(size=7), limit=2)), Outer) == {
        "name": "a",
        "inner": {"size": 7},
        "limit": 2.0,
    }
    # The section's default is another than that of its fields.
    assert decided(dump(Outer(name="a", inner=Inner())), Outer) == {"name": "a", "inner": {}}
    assert decided(dump(Outer(name="a", named={"x": Inner(size=3)})), Outer) == {
        "name": "a",
        "named": {"x": {"size": 3}},
    }


def test_settings_of_dataclasses_count_as_others_do():
    plain = UpdatePolicyConfig(ppo=PPOConfig(), **RATES)
    assert "ppo" in decided(dump(plain), UpdatePolicyConfig)
    assert decided(dump(plain), UpdatePolicyConfig)["ppo"] == {}
    changed = plain.model_copy(update={"ppo": PPOConfig(cliprange=0.3)})
    assert decided(dump(changed), UpdatePolicyConfig)["ppo"] == {"cliprange": 0.3}


@pytest.mark.parametrize("given", GIVEN)
def test_what_was_left_out_comes_back(given):
    whole = dump(Outer(**given))
    held = decided(whole, Outer)
    assert completed(held, Outer) == whole
    assert dump(Outer(**held)) == whole


@pytest.mark.parametrize("given", GIVEN)
def test_a_new_setting_changes_nothing_of_what_was_decided(given):
    assert decided(dump(NewerOuter(**given)), NewerOuter) == decided(dump(Outer(**given)), Outer)


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_presets_come_back_whole(preset):
    whole = dump(load_config(preset))
    held = decided(whole, RunConfig)
    assert len(str(held)) < len(str(whole)) / 2
    assert completed(held, RunConfig) == whole


def test_a_reward_keeps_what_tells_its_kind_and_its_own_settings():
    kinds = {
        "ours": TrainedReward(model="trained"),
        "theirs": ModelReward(model="x", weight=2),
        "rule": FunctionReward(function="a:b"),
    }
    whole = dump(ScoreRolloutsConfig(rewards=kinds, temperature=1.0))
    held = {"ours": {"model": "trained"}, "theirs": {"model": "x", "weight": 2.0}, "rule": {"function": "a:b"}}
    assert decided(whole, ScoreRolloutsConfig) == {"rewards": held, "temperature": 1.0}
    assert completed(decided(whole, ScoreRolloutsConfig), ScoreRolloutsConfig) == whole


def test_a_stage_that_calls_others_holds_of_their_settings_what_was_decided_too():
    config = CriticPretrainingStageConfig(
        learning_rate=1e-3,
        scoring=ScoreRolloutsConfig(rewards={"ours": TrainedReward(model="trained")}, temperature=1.0),
        advantages=ComputeAdvantagesConfig(critic_lam=1.0, gamma=0.5),
        versions={},
        sampling=SamplingConfig(max_new_tokens=4),
    )
    held = decided(dump(config), CriticPretrainingStageConfig)
    assert held["scoring"] == {"rewards": {"ours": {"model": "trained"}}, "temperature": 1.0}
    assert held["advantages"]["gamma"] == 0.5
    assert "whiten" not in held["advantages"]


def test_a_name_of_a_reward_that_is_also_a_setting_is_a_name():
    rewards = {"model": TrainedReward(model="trained"), "weight": FunctionReward(function="a:b", weight=2)}

    class Scored(StageConfig):
        rewards: Rewards

    whole = dump(Scored(rewards=rewards))
    assert decided(whole, Scored)["rewards"] == {
        "model": {"model": "trained"},
        "weight": {"function": "a:b", "weight": 2.0},
    }
    assert completed(decided(whole, Scored), Scored) == whole
