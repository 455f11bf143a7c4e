import math

import pytest

from ppo_core import ConfigError, PPOConfig, SamplingConfig
from ppo_core.config import ratio_clip_widths

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
        {"max_grad_norm": nan},
        {"critic_max_grad_norm": 0.0},
        {"critic_max_grad_norm": nan},
        {"cliprange": (0.2, -0.1)},
        {"cliprange": (0.0, 0.2)},
        {"cliprange_value": -0.2},
        {"dual_clip": nan},
        {"epochs": -1},
        {"kl_loss_coef": -0.1},
        {"kl_loss_coef": nan},
        {"kl_loss_coef": math.inf},
        {"entropy_coef": -0.1},
        {"entropy_coef": nan},
        {"entropy_coef": math.inf},
        {"target_kl": 0.0},
        {"target_kl": -1.0},
        {"target_kl": nan},
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
        {"suppress_token_ids": (-1,)},
    ],
)
def test_sampling_out_of_range_is_refused_by_name_and_value(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError) as refusal:
        SamplingConfig(**({"max_new_tokens": 5} | setting))
    assert str(refusal.value).startswith(f"{name}={value} ")
    assert ";" in str(refusal.value), "the message says what to do"


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("loss", "grpo", "ppo, pg"),
        ("aggregation", "mean", "token_mean, seq_mean"),
        ("kl_loss_estimator", "k4", "k1, k2, k3, exact"),
        ("kl_loss_direction", "sideways", "reverse, forward"),
    ],
)
def test_an_unknown_choice_is_refused_with_those_that_there_are(name, value, choices):
    config = PPOConfig(kl_loss_coef=0.1)
    # Past the check of types that the tests switch on.
    object.__setattr__(config, name, value)
    with pytest.raises(ConfigError, match=f"^{name}='{value}' is none of {choices}$"):
        config.__post_init__()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"loss": "pg", "cliprange": 0.1}, "loss=pg has no ratio to clip; leave cliprange and dual_clip out"),
        ({"loss": "pg", "cliprange": (0.2, 0.2)}, "loss=pg has no ratio to clip"),
        ({"loss": "pg", "dual_clip": 3.0}, "loss=pg has no ratio to clip"),
        ({"kl_loss_estimator": "exact"}, "say nothing while kl_loss_coef=0; set it too"),
        ({"kl_loss_direction": "forward"}, "say nothing while kl_loss_coef=0; set it too"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        PPOConfig(**settings)


def test_one_clip_range_sets_both_widths():
    assert ratio_clip_widths(0.3) == (0.3, 0.3)
    assert ratio_clip_widths((0.1, 0.3)) == (0.1, 0.3)


def test_what_lies_on_the_border_is_allowed():
    PPOConfig(cliprange=(0.2, 3.0), cliprange_value=None, dual_clip=1.01, critic_epochs=1, max_grad_norm=math.inf)
    PPOConfig(cliprange=0.999, cliprange_value=1e-9, epochs=1, num_minibatches=1, critic_max_grad_norm=1e-9)
    PPOConfig(loss="pg", cliprange=0.2, kl_loss_coef=0.0, entropy_coef=0.0, target_kl=1e-9)
    PPOConfig(kl_loss_coef=1e-9, kl_loss_estimator="exact", kl_loss_direction="forward", entropy_coef=0.5)
    SamplingConfig(max_new_tokens=1, top_p=1.0, top_k=0, stop_token_ids=(0,), temperature=0.01)
    SamplingConfig(max_new_tokens=1, top_p=1e-9, top_k=1)


def test_defaults_are_those_that_the_field_calls_ppo():
    config = PPOConfig()
    assert (config.loss, config.aggregation, config.cliprange, config.cliprange_value) == (
        "ppo",
        "token_mean",
        0.2,
        None,
    )
    assert (config.epochs, config.critic_epochs, config.num_minibatches, config.max_grad_norm) == (4, None, 4, 1.0)
    off = (config.kl_loss_coef, config.entropy_coef, config.target_kl, config.dual_clip)
    assert off == (0.0, 0.0, None, None)
