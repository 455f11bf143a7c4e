import math

import pytest

from ppo_core import ConfigError, PPOConfig, SamplingConfig

nan = math.nan


def test_defaults_are_valid_and_frozen():
    config = PPOConfig()
    with pytest.raises(AttributeError):
        config.epochs = 3
    assert SamplingConfig(max_new_tokens=1) == SamplingConfig(max_new_tokens=1, temperature=1.0, top_p=1.0, top_k=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"cliprange": 0.0},
        {"cliprange": 1.0},
        {"cliprange": -0.2},
        {"cliprange": nan},
        {"cliprange": (1.0, 0.2)},
        {"cliprange": (0.2, 0.0)},
        {"cliprange": (0.2, math.inf)},
        {"cliprange_value": 0.0},
        {"cliprange_value": nan},
        {"dual_clip": 1.0},
        {"epochs": 0},
        {"critic_epochs": 0},
        {"num_minibatches": 0},
        {"max_grad_norm": 0.0},
        {"critic_max_grad_norm": nan},
    ],
)
def test_an_update_out_of_range_is_refused_by_name_and_value(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError) as refusal:
        PPOConfig(**setting)
    assert str(refusal.value).startswith(f"{name}={value} ")
    assert ";" in str(refusal.value), "the message says what to do"


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": nan},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": nan},
        {"top_k": -1},
        {"stop_token_ids": (2, -1)},
    ],
)
def test_sampling_out_of_range_is_refused_by_name_and_value(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError) as refusal:
        SamplingConfig(**({"max_new_tokens": 5} | setting))
    assert str(refusal.value).startswith(f"{name}={value} ")
    assert ";" in str(refusal.value), "the message says what to do"


def test_what_lies_on_the_border_is_allowed():
    PPOConfig(cliprange=(0.2, 3.0), cliprange_value=None, dual_clip=1.01, critic_epochs=1, max_grad_norm=math.inf)
    SamplingConfig(max_new_tokens=1, top_p=1.0, top_k=0, stop_token_ids=(0,), temperature=0.01)
