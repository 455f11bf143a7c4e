import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ppo_core
from ppo_core.shapes import require_same_shape

ROOT = Path(ppo_core.__file__).parent.parent

PUBLIC = """
    AS_FEW_AS_POSSIBLE HeadCritic InPrecision TrunkCritic forward_groups token_logits token_logprobs
    ConfigError EmptyMaskError GroupEstimator KLEstimator MinibatchStats NonFiniteError Optimizers PPOConfig PaddedBatch
    Ragged RolloutBatch RunningMoments SamplingConfig ShapeError UpdateStats UserError aggregate_loss derive_seed entropy
    CalibrationBin calibration_bins
    exact_kl expected_calibration_error explained_variance gae gather_logprobs group_advantages kl_estimate kl_loss
    importance_weights length_adaptive_lam linear_logprobs masked_mean masked_whiten micro_batches minibatches next_kl_coef
    pg_loss policy_loss overlong_penalty ppo_update
    preference_loss ranking_loss response_and_final_values response_logprobs response_values
    rewards_to_go row_uniforms sample token_rewards treated_scores value_loss
    ALONE Sharing add_gradients can_share inside shard whole
"""


def test_the_public_names_are_these():
    assert sorted(ppo_core.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(ppo_core, name) for name in ppo_core.__all__)


def test_errors_are_one_tree_that_the_command_line_can_catch():
    for name in ("ConfigError", "ShapeError", "EmptyMaskError"):
        assert issubclass(getattr(ppo_core, name), ppo_core.UserError)
    assert issubclass(ppo_core.UserError, ValueError)
    # Weights that blew up are not the caller's typo.
    assert not issubclass(ppo_core.NonFiniteError, ppo_core.UserError)


# Run with torch, numpy and the standard library alone: everything else pretends not to be installed.
BARE = """
import sys
for name in ("jaxtyping", "beartype", "transformers", "pyarrow", "datasets", "mlflow", "prefect", "pydantic"):
    sys.modules[name] = None
import torch
import ppo_core
mask = torch.ones(1, 2, dtype=torch.bool)
zeros = torch.zeros(1, 2)
advantages, returns = ppo_core.gae(torch.ones(1, 2), zeros, mask, gamma=1.0, lam=1.0)
assert returns.tolist() == [[2.0, 1.0]]
try:
    ppo_core.policy_loss(zeros, zeros, torch.zeros(1, 3), mask, cliprange=0.2, num_tokens=2)
except ppo_core.ShapeError as error:
    print(error)
"""


def test_works_with_torch_and_numpy_alone_and_then_still_names_a_wrong_shape():
    bare = subprocess.run([sys.executable, "-W", "error", "-c", BARE], capture_output=True, text=True, cwd=ROOT)
    assert bare.returncode == 0, bare.stderr
    assert bare.stdout == ("advantages is (1, 3) but response_mask is (1, 2); both need one entry per response token\n")


# jaxtyping is for the tests: where it is not installed, plain tensors stand in for its names.
IMPORTS = """
import sys
sys.modules["jaxtyping"] = None
import numpy, torch
before = set(sys.modules)
import ppo_core
for name in ppo_core.__all__:
    getattr(ppo_core, name)
new = {module.partition(".")[0] for module in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"numpy", "torch"}))
"""


def test_the_public_names_need_torch_numpy_and_the_standard_library_alone():
    bare = subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS], capture_output=True, text=True, cwd=ROOT)
    assert bare.returncode == 0, bare.stderr
    assert bare.stdout == "['ppo_core']\n"


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'ppo_core' has no attribute 'ppo'"):
        _ = ppo_core.ppo


def test_equal_shapes_pass_and_the_odd_one_is_named():
    x = torch.zeros(2, 3)
    require_same_shape(response_mask=x, values=x)
    for shape in ((2, 4), (2, 1), (3, 2), (6,)):
        with pytest.raises(ppo_core.ShapeError) as refusal:
            require_same_shape(response_mask=x, rewards=x, values=torch.zeros(shape))
        assert str(refusal.value).startswith(f"values is {shape} but response_mask is (2, 3);")
