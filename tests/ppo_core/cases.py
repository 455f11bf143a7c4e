"""Random inputs for laws: everything is a function of one seed that Hypothesis draws and shrinks."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from ppo_core import Ragged, RolloutBatch

# No deadline: the first call into torch overruns it.
law = settings(deadline=None, max_examples=25)
few = settings(deadline=None, max_examples=6)

seeds = st.integers(0, 2**31)
unit = st.floats(0, 1)
rubbish = st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e30])


class Draws:
    """A stream of random tensors in float64."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def mask(self, num_rows: int = 4, num_columns: int = 6) -> Tensor:
        """Right-padded rows with one token at least."""
        return torch.arange(num_columns) < 1 + self.integers(num_columns, num_rows, 1)

    def mask_with_gaps(self, num_rows: int = 4, num_columns: int = 6) -> Tensor:
        mask = torch.rand(num_rows, num_columns, generator=self.generator) < 0.6
        mask[torch.arange(num_rows), self.integers(num_columns, num_rows)] = True
        return mask

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator)


def rows_of(x: Tensor, mask: Tensor) -> list[list[float]]:
    """The real entries of each row, as plain numbers."""
    return [row[row_mask].tolist() for row, row_mask in zip(x, mask, strict=True)]


def right(lengths: list[int], width: int) -> Tensor:
    """A mask with the tokens of each row at its beginning, padding on the right."""
    return torch.arange(width) < tensor(lengths)[:, None]


def left(lengths: list[int], width: int) -> Tensor:
    """A mask with the tokens of each row at its end, padding on the left."""
    return right(lengths, width).flip(1)


def laid_out(rows: list[list[float]], mask: Tensor, fill: float) -> Tensor:
    """The rows' entries at the real places of ``mask``, ``fill`` elsewhere."""
    x = torch.full(mask.shape, fill, dtype=torch.float64)
    x[mask] = tensor([entry for row in rows for entry in row], dtype=torch.float64)
    return x


def spoiled(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """``x`` with ``value`` at every masked place."""
    return torch.where(mask, x, value)


def random_batch(seed, num_rows: int = 5) -> RolloutBatch:
    """Token ids from 1 to 50; the column ``ids`` repeats them."""
    draws = Draws(seed)

    def some_rows() -> list[list[int]]:
        return [(1 + draws.integers(50, int(n))).tolist() for n in 1 + draws.integers(6, num_rows)]

    responses = Ragged.from_rows(some_rows(), torch.int64)
    return RolloutBatch(
        prompts=Ragged.from_rows(some_rows(), torch.int64),
        responses=responses,
        stopped=draws.integers(2, num_rows).bool(),
        token_columns={"logprobs": draws.normal(len(responses.values)), "ids": responses.values.clone()},
    )
