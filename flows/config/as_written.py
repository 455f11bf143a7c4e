"""A setting means what was written: no true for 1, no "3" for 3, no 8.0 for 8, no number that is none.

Validation converts where it can, and says nothing of it. Here what came out is held against what went in, so that every
field of every section has the rule, whatever its type.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf}
"""How an infinite number survives the way through JSON."""
MAY_BE_INFINITE = ("health.", "max_grad_norm", "importance_cap")
"""Where infinity means that there is no limit. Elsewhere null says that, or nothing does."""
LARGEST_INT = 2**63 - 1
"""What tensors, Arrow and every reader of JSON can hold."""


def require_as_written(document: Any, config: BaseModel) -> None:
    """Refuse a value that was taken for something else. Raises ``ValueError``: field, value, next move."""
    _compare(document, config.model_dump(), "")


def _compare(written: Any, taken: Any, path: str) -> None:
    if isinstance(written, Mapping) and isinstance(taken, Mapping):
        for name, value in written.items():
            if name in taken:
                _compare(value, taken[name], f"{path}.{name}" if path else str(name))
    elif isinstance(written, list | tuple) and isinstance(taken, list | tuple):
        for position, (value, other) in enumerate(zip(written, taken, strict=False)):
            _compare(value, other, f"{path}.{position}")
    elif isinstance(taken, bool):
        if not isinstance(written, bool):
            raise ValueError(f"{path}={written!r:.80}: write true or false, without quotes")
    elif isinstance(taken, int | float):
        _require_number(written, taken, path)


def _require_number(written: Any, taken: float, path: str) -> None:
    shown = f"{path}={written!r:.80}"
    if isinstance(written, bool):
        raise ValueError(f"{shown}: a number is needed; {written!s:.5} is none")
    if isinstance(written, str) and INFINITE.get(written) != taken:
        raise ValueError(f"{shown}: a number is needed, not a text; write it without quotes")
    if isinstance(taken, int) and isinstance(written, float):
        raise ValueError(f"{shown}: a whole number is needed; write {taken!r:.30}")
    if isinstance(taken, int) and abs(taken) > LARGEST_INT:
        raise ValueError(f"{path}: the number has {len(str(abs(taken)))} digits; give one below 2^63")
    if math.isnan(taken):
        raise ValueError(f"{shown}: is not a number; give one")
    if math.isinf(taken) and not any(part in path for part in MAY_BE_INFINITE):
        raise ValueError(f"{shown}: must be finite; leave it out for the default, or give a number")
