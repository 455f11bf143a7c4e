"""The norm of a gradient, and the gradient scaled down to a limit of it."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from ppo_core.sharded import is_in_parts, own_part
from ppo_core.shares import Sharing


def total_norm(gradients: Sequence[Tensor], sharing: Sharing) -> Tensor:
    """The Euclidean norm of all gradients together, in their dtype, at least in float32; the same in every process.

    With shares it does not depend on who holds which rows of a gradient either: rows have norms of their own, whose squares
    are added in float64. What the order of these sums changes is some 1e-16 of the norm, which rounding to float32 hides but
    for one step in some hundred million.
    """
    has_parts = any(map(is_in_parts, gradients))
    if sharing.shares == 1 and not has_parts:
        return torch.nn.utils.get_total_norm(gradients)
    like = gradients[0] if gradients else torch.zeros(())
    whole_ones, parts = (torch.zeros((), dtype=_widest(like.device), device=like.device) for _ in range(2))
    for gradient in gradients:
        (parts if is_in_parts(gradient) else whole_ones).add_(_square(own_part(gradient)))
    if has_parts:
        distributed.all_reduce(parts, group=sharing.group)
    return (whole_ones + parts).sqrt().to(torch.promote_types(like.dtype, torch.float32))


def _square(gradient: Tensor) -> Tensor:
    """The square of a gradient's norm, or of that of the rows of it which lie in this process."""
    if gradient.numel() == 0:
        return gradient.new_zeros(())
    # Only norms of rows are in float64: a copy of a whole gradient would be twice as large as that.
    rows = torch.linalg.vector_norm(gradient, dim=-1) if gradient.ndim > 1 else gradient
    return rows.to(_widest(gradient.device)).square().sum()


def _widest(device: torch.device) -> torch.dtype:
    # Apple's GPUs have no float64; several processes do not train on them.
    return torch.float32 if device.type == "mps" else torch.float64


def scale_gradients(parameters: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients of this norm down to another one, where it is larger."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            own_part(parameter.grad).mul_(factor.to(parameter.grad.device))
