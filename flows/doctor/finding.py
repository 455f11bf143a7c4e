"""What one check found."""

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]
OK: State = "ok"
WARNING: State = "warning"
PROBLEM: State = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem stops runs or makes their results wrong; a warning need not."""

    check: str
    state: State
    found: str
    next_move: str = ""
    """What mends it, as a command where there is one; nothing where all is well."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)
