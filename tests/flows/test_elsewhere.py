"""Whole runs where tensors are not on the processor: no stage has one on the wrong side."""

import sys
from pathlib import Path

import pytest
import torch
from direct_run import run_directly
from safetensors.torch import load_file

from flows.config.reading import load_config

sys.path.append(str(Path(__file__).resolve().parents[1]))
from accelerator_stand_in import DEVICE, stand_in

TINY = Path(__file__).parent / "tiny.yaml"
OFTEN = ("two models", "adapters")
"""Those that the suite runs each time."""
SHAPES = {
    "two models": [],
    "no critic": ["algorithm=grpo", "rollouts.samples_per_prompt=2"],
    "adapters": ["model.lora={rank: 2, alpha: 4}"],
    "one trunk": ["model.shared_trunk=true"],
    "recomputed": ["execution.gradient_checkpointing=true"],
    "exact divergence": ["ppo.kl_loss_estimator=exact"],
}


def final_weights(run):
    (newest,) = (run.root / "stages/round-001/iteration-002/update_policy").iterdir()
    return {str(path.relative_to(newest)): load_file(path) for path in newest.rglob("*.safetensors")}


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=() if shape in OFTEN else pytest.mark.slow) for shape in SHAPES]
)
def test_a_round_elsewhere_ends_as_the_processors_does(shape, tmp_path, monkeypatch):
    config = load_config(str(TINY), ["rounds=1", *SHAPES[shape]])
    here = final_weights(run_directly(tmp_path, "here", config))
    for module in [m for name, m in sys.modules.items() if name.startswith("tasks.") and hasattr(m, "pick_device")]:
        monkeypatch.setattr(module, "pick_device", lambda execution: DEVICE)
    with stand_in() as questions:
        there = final_weights(run_directly(tmp_path, "there", config))
    assert questions
    assert there.keys() == here.keys()
    for name, weights in here.items():
        torch.testing.assert_close(there[name], weights, atol=1e-4, rtol=1e-3)
