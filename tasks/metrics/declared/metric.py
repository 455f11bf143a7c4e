"""What is said of a metric where it is declared."""

import re
from dataclasses import dataclass
from typing import Literal

STDERR = "_stderr"
"""Ends the name of the metric that is another one's standard error."""
PLACEHOLDER = re.compile(r"<\w+>")


@dataclass(frozen=True, slots=True)
class Combination:
    """How the metric of several outputs, shards or iterations, is that of all their rows."""

    way: Literal["mean by rows", "mean by tokens", "sum", "max", "last", "std from moments", "independent errors"]
    beside: str = ""
    """The metric of the same output that this one needs: the tokens of a row, or the mean that the values lie around."""


BY_ROWS = Combination("mean by rows")
BY_TOKENS = Combination("mean by tokens", beside="rollouts/response_length")
SUM = Combination("sum")
MAX = Combination("max")
LAST = Combination("last")
INDEPENDENT_ERRORS = Combination("independent errors")


def std_around(mean: str) -> Combination:
    return Combination("std from moments", beside=mean)


@dataclass(frozen=True, slots=True)
class Range:
    """Where the values of a metric usually lie while all is well."""

    low: float | None = None
    high: float | None = None
    words: str = ""
    """What numbers do not say."""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self._numbers, self.words)))

    @property
    def _numbers(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}".replace("-", "−")
        if self.high is not None:
            return f"below {self.high:g}"
        return "" if self.low is None else f"above {self.low:g}"


@dataclass(frozen=True, slots=True)
class Limit:
    """``number``, added to so much of what the reference has: ``Limit(0.05, of_reference=1)`` is 0.05 above it."""

    number: float = 0.0
    of_reference: float = 0.0

    def __str__(self) -> str:
        if not self.of_reference:
            return f"{self.number:g}"
        reference = "the reference's" if self.of_reference == 1 else f"{self.of_reference:g} × the reference's"
        return f"{reference} + {self.number:g}" if self.number else reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Warns:
    """From where on a rule of ``tasks.metrics.rules`` warns of a metric."""

    above: Limit | None = None
    below: Limit | None = None
    when: str = ""
    """In which cases alone, or the whole condition where it is no fixed limit."""

    def __str__(self) -> str:
        limits = [f"{side} {limit}" for side, limit in (("above", self.above), ("below", self.below)) if limit]
        return ", ".join([*limits, *filter(None, [self.when])])


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a stage logs."""

    name: str
    """``<reward>`` in it stands for any name of the user's."""
    unit: str
    meaning: str
    """What is measured, as a formula where there is one. E is a mean over responses, Eₜ over response tokens."""
    healthy: Range = Range()
    advice: str = ""
    """The likely cause and the next move where it is not healthy."""
    combines: Combination = BY_ROWS
    warns: Warns | None = None
    has_stderr: bool = False
    """Whether its standard error is logged beside it."""

    @property
    def is_pattern(self) -> bool:
        return PLACEHOLDER.search(self.name) is not None

    def match(self, name: str) -> re.Match[str] | None:
        """``name`` as one of this metric's; its first group is what stands for the placeholder."""
        return re.fullmatch(PLACEHOLDER.sub(r"(\\w+)", re.escape(self.name)), name)
