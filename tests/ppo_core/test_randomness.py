import subprocess
import sys
from pathlib import Path

import pytest
import reference
import torch
from cases import law
from hypothesis import given
from hypothesis import strategies as st

import ppo_core
from ppo_core import derive_seed, row_uniforms

ROOT = Path(ppo_core.__file__).parent.parent
# Written by `python -c "from ppo_core import derive_seed; print(derive_seed(7, 'rollouts', 0))"`.
GOLDEN_SEED = 2091542594435458434

seeds_63_bit = st.integers(0, 2**63 - 1)
coordinates = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=4)), max_size=4)


@law
@given(coordinates, coordinates)
def test_seeds_fit_a_signed_column_and_differ_where_coordinates_differ(these, those):
    assert 0 <= derive_seed(*these) < 2**63
    assert (derive_seed(*these) == derive_seed(*those)) == (these == those)


def test_coordinates_cannot_run_into_each_other():
    spellings = [("ab", "c"), ("a", "bc"), ("abc",), ("1",), (1,), (1, 1), (11,), ("1", 1), (1, "1"), (), ("",), (-1,)]
    assert len({derive_seed(*spelling) for spelling in spellings}) == len(spellings)


def test_a_seed_is_the_same_in_another_process_and_another_year():
    # A change would change every run that was ever started.
    assert derive_seed(7, "rollouts", 0) == GOLDEN_SEED
    code = "from ppo_core.randomness import derive_seed; print(derive_seed(7, 'rollouts', 0))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={}, cwd=ROOT)
    assert int(other.stdout) == GOLDEN_SEED


@law
@given(st.lists(st.integers(-(2**64), 2**64), min_size=1, max_size=4), st.integers(1, 5))
def test_uniforms_equal_their_definition(seeds, num_positions):
    got = row_uniforms(seeds, num_positions)
    assert got.dtype == torch.float64
    assert got.tolist() == [[reference.splitmix64(seed, t) for t in range(num_positions)] for seed in seeds]


@law
@given(seeds_63_bit, seeds_63_bit, st.integers(1, 9), st.integers(0, 9))
def test_a_number_depends_on_its_seed_and_position_alone(seed, other, num_positions, more):
    alone = row_uniforms([seed], num_positions)[0]
    together = row_uniforms([other, seed, seed + 1], num_positions + more)[1]
    assert torch.equal(alone, together[:num_positions])


def test_uniforms_are_uniform_and_rows_positions_and_neighbouring_seeds_unrelated():
    u = row_uniforms(range(1000), 100)
    assert u.min() >= 0
    assert u.max() < 1
    # 100 000 numbers: the standard error of a mean is 0.0009, of a correlation 0.003; four of them are allowed.
    assert u.mean().item() == pytest.approx(0.5, abs=0.004)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.001)
    assert torch.histc(u, bins=20, min=0, max=1).sub(5000).abs().max() < 4 * 5000**0.5
    centred = (u - 0.5) * 12**0.5
    assert abs((centred[:, 1:] * centred[:, :-1]).mean().item()) < 0.013
    assert abs((centred[1:] * centred[:-1]).mean().item()) < 0.013
    assert abs((centred[1:, :-1] * centred[:-1, 1:]).mean().item()) < 0.013


def test_no_rows_and_no_positions_are_allowed():
    assert row_uniforms([], 3).shape == (0, 3)
    assert row_uniforms([1], 0).shape == (1, 0)
