"""Models of every family, in parts on several processes, learn what they learn whole in one, to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import gloo_families
import pytest
import torch
from gloo_families import EXPERTS, WIDE
from test_decoding import SETTINGS

import ppo_core

QUICK = ["gemma", "mixtral", EXPERTS]


def updates_of(folder, families, processes=2):
    """Weights of each family, learned whole and in parts."""
    paths = [str(Path(gloo_families.__file__).parent), str(Path(ppo_core.__file__).parent.parent)]
    run = subprocess.run(
        [sys.executable, gloo_families.__file__, str(folder), str(processes), *families],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert run.returncode == 0, run.stderr
    return torch.load(folder / "weights.pt")


@pytest.mark.parametrize(
    ("families", "processes"),
    [(QUICK, 2), ([WIDE], 4), pytest.param(sorted(set(SETTINGS) - set(QUICK)), 2, marks=pytest.mark.slow)],
    ids=["some", "four parts", "all"],
)
def test_a_model_in_parts_has_the_bytes_of_a_whole_one(tmp_path, families, processes):
    alone, in_parts = updates_of(tmp_path, families, processes)
    different = [
        family
        for family in families
        if not all(torch.equal(a, b) for a, b in zip(alone[family], in_parts[family], strict=True))
    ]
    assert not different
    for family in families:
        begun = dict(gloo_families.model_of(family).named_parameters())
        left_alone = {name for name, own in zip(begun, in_parts[family], strict=True) if torch.equal(begun[name], own)}
        assert left_alone != set(begun), family
        # What no token reaches does not decay.
        assert {name for name in begun if name.endswith("spare")} <= left_alone
