"""Randomness as a function of coordinates: no generator, hence no generator state to save, shard or lose.

A draw is named by where it is used (run seed, round, iteration, prompt, sample, position). The same name gives the same
number on every machine, in every batch and after every restart.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from ppo_core.shapes import Float

# Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators": the odd increment next to 2^64 / golden
# ratio, and the multipliers of the output mix (variant 13 of Stafford's mixers).
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def derive_seed(*coordinates: int | str) -> int:
    """A 63-bit seed for these coordinates: the same in every process, another for any other coordinates.

    Each coordinate is hashed with its type and its length, so that ``("ab", "c")``, ``("a", "bc")`` and ``(1, "1")``
    cannot meet by concatenation. 63 bits, because a signed 64-bit column has to hold it.
    """
    digest = hashlib.blake2b(digest_size=8)
    for coordinate in coordinates:
        kind = b"s" if isinstance(coordinate, str) else b"i"
        text = str(coordinate if isinstance(coordinate, str) else int(coordinate)).encode()
        digest.update(kind + len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def row_uniforms(seeds: Sequence[int], num_positions: int) -> Float[torch.Tensor, "B num_positions"]:
    """Uniform float64 numbers in [0, 1): entry ``(row, position)`` depends on ``(seeds[row], position)`` alone.

    A splitmix64 stream per row, read at any position without the ones before. The seed is mixed first: without that,
    seeds one increment apart would give the same stream shifted by one position.
    """
    starts = _mix(np.array([seed & (2**64 - 1) for seed in seeds], dtype=np.uint64))
    steps = np.arange(1, num_positions + 1, dtype=np.uint64) * _INCREMENT
    bits = _mix(starts[:, None] + steps[None, :])
    # The upper 53 bits are what a float64 in [0, 1) can hold exactly; rounding all 64 could give 1.
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that sends neighbours far apart; arrays of uint64 wrap around silently."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIER_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIER_2
    return x ^ (x >> np.uint64(31))
