"""Sums in one order, whoever computes them."""

from torch import Tensor

Gradients = list[Tensor | None]


class Tree:
    """Sums of gradients along a binary tree: of 1, 2, 4, ... neighbours, so that few are in memory at a time."""

    def __init__(self) -> None:
        self._branches: list[tuple[int, Gradients]] = []

    def add(self, gradients: Gradients) -> None:
        size = 1
        while self._branches and self._branches[-1][0] == size:
            gradients = added(self._branches.pop()[1], gradients)
            size *= 2
        self._branches.append((size, gradients))

    def sum(self) -> Gradients:
        """Of all; what has no partner is added to its neighbour, the smallest first."""
        total = self._branches[-1][1]
        for _, gradients in reversed(self._branches[:-1]):
            total = added(gradients, total)
        return total


def added(first: Gradients, second: Gradients) -> Gradients:
    """Parameter by parameter, into the tensors of ``first``; one that no token reached has no gradient."""
    return [a if b is None else b if a is None else a.add_(b) for a, b in zip(first, second, strict=True)]
