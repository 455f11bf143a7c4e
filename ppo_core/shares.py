"""The gradient of a minibatch from those of its micro-batches: who computes which, and in what order they are added.

Sums of floating-point numbers depend on their order. So micro-batches are those of the whole minibatch, for any number of
processes; and where a number of ``shares`` is named, gradients are added along one tree over the shares, whoever holds
them. Weights then come out the same to the last bit for every number of processes of which each has 1, 2, 4, 8, ... shares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ppo_core.config import can_share
from ppo_core.errors import ConfigError
from ppo_core.sharded import is_in_parts, take_reached
from ppo_core.tree import Gradients, Tree, added

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """How a minibatch is shared."""

    group: "distributed.ProcessGroup | None" = None
    """Processes with the same models and the same minibatch; None is this one alone."""
    shares: int = 1
    """Parts whose gradients are added in one order for any number of processes; 1 leaves the order to the processes."""
    in_parts: bool = False
    """Whether models lie in parts, trained or frozen, which come together with each pass: processes make equally many."""

    def __post_init__(self) -> None:
        if not can_share(self.shares, self.size):
            raise ConfigError(
                f"{self.shares} shares and {self.size} processes: each process takes 1, 2, 4, 8, ... shares, and all "
                "equally many; change one of the numbers"
            )

    @property
    def size(self) -> int:
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        return 0 if self.group is None else self.group.rank()


ALONE = Sharing()


def add_gradients(parameters: Sequence[Tensor], passes: Sequence[Callable[[float], T]], sharing: Sharing) -> list[T]:
    """Leave the sum of the gradients of all passes in each parameter's ``grad``, in every process.

    Each pass adds its gradient, times the factor that it is given, to those of the parameters, which start without any.
    Pass i belongs to share i modulo the number of shares. Returns what the passes returned, in their order, in every
    process. Gradients of parameters in parts are sums over the processes when a pass ends.
    """
    if sharing.group is None and sharing.shares == 1:
        return [one(1.0) for one in passes]
    parted = [is_in_parts(parameter) for parameter in parameters]
    assert sharing.in_parts or not any(parted), "processes that make unequally many passes would wait for each other"
    whole_ones = [parameter for parameter, is_parted in zip(parameters, parted, strict=True) if not is_parted]
    said: dict[int, T] = {}

    def make(number: int) -> None:
        if number < len(passes):
            said[number] = passes[number](1.0)
        elif sharing.in_parts:
            _accompany(passes[number % len(passes)], whole_ones)

    if sharing.shares == 1:
        for first in range(0, len(passes), sharing.size):
            make(first + sharing.rank)
        total = _over_processes([parameter.grad for parameter in parameters], parted, sharing)
    else:
        each = sharing.shares // sharing.size
        # A branch of the tree; but of a model in parts, neighbours are added within a pass, and so is what is beside it.
        begin, step = (sharing.rank, sharing.size) if any(parted) else (sharing.rank * each, 1)
        total = [None] * len(parameters)
        for first in range(0, len(passes), sharing.shares):
            branch = Tree()
            for number in range(first + begin, first + begin + each * step, step):
                for parameter in parameters:
                    parameter.grad = None
                make(number)
                own = [parameter.grad for parameter in parameters]
                branch.add(_over_processes(own, parted, sharing) if any(parted) else own)
            of_round = branch.sum() if any(parted) else _over_processes(branch.sum(), parted, sharing)
            total = added(total, of_round)
    everywhere, reached = _from_all(said, take_reached(parameters), sharing)
    for parameter, gradient, is_parted, is_reached in zip(parameters, total, parted, reached, strict=True):
        # Of zeros, which stand for no gradient in parts, it would decay.
        parameter.grad = gradient if is_reached or not is_parted else None
    return [everywhere[number] for number in sorted(everywhere)]


def _accompany(one: Callable[[float], T], whole_ones: Sequence[Tensor]) -> None:
    """Make a pass times 0 beside the last ones of other processes: it changes no gradient."""
    before = [parameter.grad for parameter in whole_ones]
    for parameter in whole_ones:
        parameter.grad = None
    one(0.0)
    for parameter, gradient in zip(whole_ones, before, strict=True):
        parameter.grad = gradient


def _over_processes(gradients: Gradients, parted: Sequence[bool], sharing: Sharing) -> Gradients:
    """Gradients summed over the processes, which those of parameters in parts are already."""
    plain = [gradient for gradient, is_parted in zip(gradients, parted, strict=True) if not is_parted]
    summed = iter(_sum_over_processes(plain, sharing))
    return [gradient if is_parted else next(summed) for gradient, is_parted in zip(gradients, parted, strict=True)]


def _sum_over_processes(gradients: Gradients, sharing: Sharing) -> Gradients:
    """The sum of what each process has; with shares along the tree, whose branches the processes are."""
    if sharing.group is None or not gradients:
        return gradients
    gathered: list[Any] = [None] * sharing.size
    # A process without a part has no gradient. A parameter that nobody has one of is left alone: of zeros it would decay.
    mine = [None if gradient is None else (gradient.shape, gradient.dtype) for gradient in gradients]
    distributed.all_gather_object(gathered, mine, group=sharing.group)
    total: Gradients = []
    for gradient, *kinds in zip(gradients, *gathered, strict=True):
        kind = next((kind for kind in kinds if kind is not None), None)
        if kind is None:
            total.append(None)
            continue
        own = gradient if gradient is not None else torch.zeros(kind[0], dtype=kind[1], device=_device_of(sharing))
        if sharing.shares == 1:
            distributed.all_reduce(own, group=sharing.group)
            total.append(own)
            continue
        parts = [torch.empty_like(own) for _ in range(sharing.size)]
        distributed.all_gather(parts, own.contiguous(), group=sharing.group)
        tree = Tree()
        for part, has_one in zip(parts, kinds, strict=True):
            tree.add([part if has_one is not None else None])
        total += tree.sum()
    return total


def _device_of(sharing: Sharing) -> torch.device:
    is_on_gpu = distributed.get_backend(sharing.group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_on_gpu else torch.device("cpu")


def _from_all(said: dict[int, T], reached: list[bool], sharing: Sharing) -> tuple[dict[int, T], list[bool]]:
    """What was said of all parts and which parameters were reached, by whichever process."""
    if sharing.group is None:
        return said, reached
    gathered: list[Any] = [None] * sharing.size
    distributed.all_gather_object(gathered, (said, reached), group=sharing.group)
    everywhere = {part: own for one, _ in gathered for part, own in one.items()}
    return everywhere, [any(column) for column in zip(*(own for _, own in gathered), strict=True)]
