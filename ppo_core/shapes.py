"""Shapes as types: jaxtyping's names where it is installed, stand-ins that mean plain ``Tensor`` where it is not.

The tests check every annotation (``--jaxtyping-packages=ppo_core,beartype.beartype``); a bare GPU machine with only
torch and numpy can still import and run the same code.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from ppo_core.errors import ShapeError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _AnyShape:
            def __class_getitem__(cls, array_and_shape: tuple[type[Tensor], str]) -> type[Tensor]:
                return array_and_shape[0]

        Bool = Float = Int = _AnyShape

__all__ = ["Bool", "Float", "Int", "require_same_shape"]


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ``ShapeError`` unless all have the shape of the first; without it, broadcasting would hide the mistake."""
    (name, first), *others = tensors.items()
    for other_name, other in others:
        if other.shape != first.shape:
            raise ShapeError(
                f"{other_name} is {tuple(other.shape)} but {name} is {tuple(first.shape)}; "
                "both need one entry per response token"
            )
