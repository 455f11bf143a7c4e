"""What a rule is, what it sees of a run, and the warning that it makes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.metrics.declared import STDERR, named

Z = 2.0
"""Standard errors by which a value must be out of its range."""
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a rule looks at: an iteration and those before it, or the end of a round."""

    rows: Sequence[Row]
    """The iterations up to the one that is judged, in order; the run's first and the last ``NEEDED`` are enough."""
    of_round: Row
    """What was measured once in the round: reward model, evaluation."""
    led_here: Sequence[Row] = ()
    """At the end of a round its iterations, which nothing is judged of any more, but a cause may lie in them."""

    @property
    def now(self) -> Row:
        return self.rows[-1] if self.rows else self.of_round

    @property
    def first(self) -> Row:
        """The run's first iteration, whose policy is the reference."""
        is_there = self.rows and (self.rows[0]["round"], self.rows[0]["iteration"]) == (1, 1)
        return self.rows[0] if is_there else {}


@dataclass(frozen=True, slots=True)
class Measured:
    """A number and its standard error."""

    value: float
    stderr: float = 0.0


Bound = Callable[[Seen, str], Measured | None]
"""Where a metric's healthy range ends, by what was seen; None where nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A metric, where its healthy range ends, and what to do about a value beyond."""

    kind: str
    metric: str
    """``<reward>`` stands for any name."""
    above: Bound | None = None
    """Values above it are out of range."""
    below: Bound | None = None
    """Values below it are."""
    because: Callable[[Seen], str]
    """The likely cause, and the next move."""
    applies: Callable[[Seen, str], bool] = lambda _seen, _name: True
    """Whether the rule says anything about the metric of that name here."""
    z: float = Z

    def broken_by(self, seen: Seen) -> "list[RunWarning]":
        """A warning for each metric of that name that is out of range here."""
        names = named(self.metric, seen.now)
        return [found for name in names if self.applies(seen, name) for found in self._judged(seen, name)]

    def _judged(self, seen: Seen, name: str) -> "list[RunWarning]":
        now = measured(seen.now, name)
        found = []
        for bound, sign in ((self.above, 1.0), (self.below, -1.0)):
            limit = bound(seen, name) if bound is not None else None
            if now is None or limit is None:
                continue
            margin = self.z * math.hypot(now.stderr, limit.stderr)
            # Not "inside the range": a value that is no number is in none.
            if not sign * (now.value - limit.value) <= margin:
                found.append(
                    RunWarning(
                        kind=self.kind,
                        metric=name,
                        round=seen.now.get("round", 0),
                        iteration=seen.now.get("iteration"),
                        value=now.value,
                        stderr=now.stderr,
                        limit=limit.value,
                        side="above" if sign > 0 else "below",
                        advice=self.because(seen),
                    )
                )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWarning:
    """A metric out of its healthy range, where it was first seen so."""

    kind: str
    metric: str
    round: int
    iteration: int | None
    """None at the end of a round."""
    value: float
    stderr: float
    limit: float
    side: str
    advice: str
    times: int = 1
    """Iterations of the round in which it was out of range."""

    @property
    def sentence(self) -> str:
        """``audit/kind_gap is 1.41 ± 0.12, above 1 (round 1, iteration 4, and 3 more): the score rises …``."""
        where = f"round {self.round}, iteration {self.iteration}" if self.iteration else f"round {self.round}"
        again = f", and {self.times - 1} more" if self.times > 1 else ""
        spread = f" ± {self.stderr:.2g}" if self.stderr else ""
        found = f"{self.metric} is {self.value:.3g}{spread}, {self.side} {self.limit:.3g}"
        return f"{found} ({where}{again}): {self.advice}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN and the like as text."""
        found = {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return {**found, "sentence": self.sentence}


def measured(row: Row, name: str) -> Measured | None:
    value = row.get(name)
    return None if value is None else Measured(value, row.get(f"{name}{STDERR}", 0.0))
