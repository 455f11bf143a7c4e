"""What a run's numbers say against it: the ranges that the README's table of metrics calls healthy, as rules.

A rule is broken where a metric is out of its range by more than chance explains, ``Z`` standard errors of what was
measured. Nothing stops: limits that stop a stage are those of ``health``, and far wider. The functions are pure, so that
the report of a round, the live display and ``rounds status`` say the same of the same numbers.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from tasks.config import SUFFIX

Z = 2.0
"""Standard errors by which a value must be out of its range."""
Z_OF_A_TREND = 3.0
"""Of a fall, which is looked for anew in every iteration: of four values that only scatter, the first and last of a falling
order are 2 standard errors apart once in 120 times, 3 once in 1,700."""
FALLS = 3
NEEDED = FALLS + 1
"""Iterations that a rule looks at, the judged one included, beside the run's first."""
LEAST_CORRELATION = 0.3
"""Of a score with what is wanted, within a sample of responses."""
HIGH_APPROX_KL = 0.05
"""Nats a token above which an update is large enough to be the cause of what follows it."""
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
        pattern = re.compile(re.escape(self.metric).replace("<reward>", r"\w+"))
        names = [name for name in seen.now if pattern.fullmatch(name) and not name.endswith(SUFFIX)]
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
    return None if value is None else Measured(value, row.get(f"{name}{SUFFIX}", 0.0))


def fixed(limit: float) -> Bound:
    def bound(_seen: Seen, _name: str) -> Measured:
        return Measured(limit)

    return bound


def of_the_reference(share: float = 1.0, plus: float = 0.0) -> Bound:
    """``share`` of what the reference has, and ``plus``: of the run's first iteration, or in the same evaluation."""

    def bound(seen: Seen, name: str) -> Measured | None:
        found = (
            measured(seen.first, name)
            if seen.rows
            else measured(seen.of_round, name.replace("evaluation/", "evaluation/reference_"))
        )
        return found and Measured(share * found.value + plus, share * found.stderr)

    return bound


def window(seen: Seen) -> Sequence[Row]:
    """The iterations of the last ``FALLS`` steps and the one before them; empty where the round has not so many."""
    rows = seen.rows[-NEEDED:]
    at = [(row["round"], row["iteration"]) for row in rows]
    # A round's reward model is its own, and so is the scale of its rewards.
    follow = all(b == (a[0], a[1] + 1) for a, b in pairwise(at))
    return rows if len(rows) == NEEDED and follow else ()


def reward_at_one_scale(row: Row, start: Row) -> float:
    """An iteration's mean reward as ``start`` would have counted it.

    With its KL coefficient, since one that is steered may rise; and where only the running normalisation lowers scores
    that really rise, with the score that ``start`` had.
    """
    reward: float = row["rewards/mean"]
    reward += (row.get("kl/coef", 0.0) - start.get("kl/coef", 0.0)) * row.get("kl/mean", 0.0)
    fallen = start.get("rewards/treated_score", 0.0) - row.get("rewards/treated_score", 0.0)
    if fallen > 0 and row.get("score/mean", 0.0) >= start.get("score/mean", 0.0):
        reward += fallen
    return reward


def falls(seen: Seen, _name: str) -> bool:
    """Whether each of the last ``FALLS`` iterations has a lower mean reward than the one before."""
    rows = window(seen)
    if not all("rewards/mean" in row for row in rows):
        return False
    rewards = [reward_at_one_scale(row, rows[0]) for row in rows]
    return bool(rewards) and all(b < a for a, b in pairwise(rewards))


def before_the_falls(seen: Seen, name: str) -> Measured | None:
    """The mean reward at the window's start, less what the scale alone has taken since."""
    start, now = window(seen)[0], seen.now
    found = measured(start, name)
    return found and Measured(found.value - (reward_at_one_scale(now, start) - now[name]), found.stderr)


def rate(seen: Seen) -> str:
    now = (seen.rows or seen.led_here or (seen.now,))[-1].get("update/learning_rate")
    return "optimizers.learning_rate" + (f" (now {now:.2g})" if now is not None else "")


def steps_are_too_large(seen: Seen) -> str:
    """The cause that goes before others, where the latest updates moved the policy far; else nothing."""
    latest = seen.rows[-NEEDED:] or seen.led_here
    highest = max((row.get("update/approx_kl", 0.0) for row in latest), default=0.0)
    if highest <= HIGH_APPROX_KL:
        return ""
    return (
        f"updates are too large (approx_kl up to {highest:.2g} nats a token), so lower {rate(seen)} first, not kl_coef"
    )


def of_a_fall(seen: Seen) -> str:
    if cause := steps_are_too_large(seen):
        return cause
    rows = window(seen)
    if rows[-1].get("score/mean", 0.0) >= rows[0].get("score/mean", 0.0):
        return "the KL penalty grows faster than the score: lower advantages.kl_coef, or the learning rate"
    if rows[-1].get("update/explained_variance", 0.0) < 0:
        return "the critic is worse than a constant, so advantages mislead: train it longer, optimizers.critic_warmup"
    return f"training makes the policy worse: lower {rate(seen)}, or look at the rollouts and their scores"


def of_short_responses(seen: Seen) -> str:
    usual = (
        "unless short answers are wanted, the reward pays for ending early: look at rollouts, raise advantages.kl_coef"
    )
    return steps_are_too_large(seen) or usual


def says(text: str) -> Callable[[Seen], str]:
    return lambda _seen: text


GAMED = "the score rises without what is wanted: higher advantages.kl_coef, fewer iterations, or other rewards"
REPEATS = "responses repeat themselves and the score lets them: higher advantages.kl_coef, or a penalty for it"
UNRELATED = (
    "on the reference's own responses the reward model does not follow it: more or better preferences, more epochs, or "
    "another base; training on this score does not raise it"
)


def lags_behind(seen: Seen, gap: str) -> bool:
    """Whether a held-out reward rises by less than a score would bring that follows it as little as is still healthy.

    A score that goes with another reward at a correlation r takes it along by r of its own gain, so a gap alone is no
    illness: of a gain of 2 and r = 1/2 it is 1.
    """
    own = seen.now.get(gap.removesuffix("_gap") + "_gain", 0.0)
    return not (own > 0 and own >= LEAST_CORRELATION * (own + seen.now[gap]))


def something_wanted_does_not_rise(seen: Seen, _name: str) -> bool:
    """Whether some held-out reward is not above the reference's, or there is none: then nothing speaks for repetition."""
    gaps = [name for name in seen.now if name.endswith("_gap")]
    if not seen.rows:
        return not gaps or any(lags_behind(seen, gap) for gap in gaps)
    pairs = [[measured(row, gap.removesuffix("_gap")) for row in (seen.first, seen.now)] for gap in gaps]
    return not pairs or not all(
        start and now and now.value - start.value > Z * math.hypot(now.stderr, start.stderr) for start, now in pairs
    )


def is_the_reference_scored_by_a_model(seen: Seen, name: str) -> bool:
    """Whether this is the reference's own iteration, and its whole score that of the reward model."""
    is_of_a_reward = name.removesuffix("_correlation") in seen.now
    components = {name for name in seen.now if name.startswith("score/")} - {"score/mean", "score/std"}
    is_alone = len({name for name in components if not name.endswith(SUFFIX)}) == 1
    return is_of_a_reward and seen.now is seen.first and is_alone and "reward_model/accuracy" in seen.of_round


PER_ITERATION: tuple[Rule, ...] = (
    Rule(
        kind="approx_kl",
        metric="update/approx_kl",
        above=fixed(0.1),
        because=lambda seen: (
            f"each update moves the policy far from the one that sampled: lower {rate(seen)}, take fewer ppo.epochs, or "
            "set ppo.target_kl"
        ),
    ),
    Rule(
        kind="falling rewards",
        metric="rewards/mean",
        below=before_the_falls,
        because=of_a_fall,
        applies=falls,
        z=Z_OF_A_TREND,
    ),
    Rule(
        kind="empty responses",
        metric="rollouts/empty_share",
        above=of_the_reference(plus=0.05),
        because=of_short_responses,
    ),
    Rule(
        kind="short responses",
        metric="rollouts/response_length",
        below=of_the_reference(0.5),
        because=of_short_responses,
    ),
    Rule(
        kind="gap",
        metric="audit/<reward>_gap",
        above=fixed(1.0),
        because=says(GAMED),
        applies=lags_behind,
    ),
    Rule(
        kind="repetition",
        metric="audit/distinct_2",
        below=of_the_reference(0.9),
        because=says(REPEATS),
        applies=something_wanted_does_not_rise,
    ),
    Rule(
        kind="critic",
        metric="update/explained_variance",
        below=fixed(0.0),
        because=says("the critic is worse than a constant: higher optimizers.critic_learning_rate, ppo.critic_epochs"),
        # A critic meets its policy, and in a later round a new reward model, without having learned of it.
        applies=lambda seen, _name: seen.now["iteration"] > FALLS,
    ),
    Rule(
        kind="reward model",
        metric="audit/<reward>_correlation",
        below=fixed(LEAST_CORRELATION),
        because=says(UNRELATED),
        applies=is_the_reference_scored_by_a_model,
    ),
    Rule(
        kind="limit",
        metric="health/warnings",
        above=fixed(0.0),
        because=says(
            "limits of health were passed, and health.action: warn let the stage go on; its own line says more"
        ),
    ),
)
"""Looked at in each iteration."""
PER_ROUND: tuple[Rule, ...] = (
    Rule(
        kind="empty responses",
        metric="evaluation/empty_share",
        above=of_the_reference(plus=0.05),
        because=of_short_responses,
    ),
    Rule(
        kind="short responses",
        metric="evaluation/response_length",
        below=of_the_reference(0.5),
        because=of_short_responses,
    ),
    Rule(
        kind="gap",
        metric="evaluation/<reward>_gap",
        above=fixed(1.0),
        because=says(GAMED),
        applies=lags_behind,
    ),
    Rule(
        kind="repetition",
        metric="evaluation/distinct_2",
        below=of_the_reference(0.9),
        because=says(REPEATS),
        applies=something_wanted_does_not_rise,
    ),
    Rule(
        kind="reward model",
        metric="evaluation/reference_<reward>_correlation",
        below=fixed(LEAST_CORRELATION),
        because=says(UNRELATED),
    ),
    Rule(
        kind="limit",
        metric="health/warnings",
        above=fixed(0.0),
        because=says(
            "limits of health were passed, and health.action: warn let the stage go on; its own line says more"
        ),
    ),
)
"""Looked at when a round is evaluated."""


def warnings_at(rows: Sequence[Row], of_round: Row) -> list[RunWarning]:
    """What the last of these iterations is ill with. The run's first and the last ``NEEDED`` are enough."""
    seen = Seen(rows=rows, of_round=of_round)
    return [found for rule in PER_ITERATION for found in rule.broken_by(seen)]


def warnings_of_round(number: int, of_round: Row, led_here: Sequence[Row] = ()) -> list[RunWarning]:
    """What was measured once in a round, by reward model and evaluation; ``led_here`` are its iterations."""
    seen = Seen(rows=(), of_round={**of_round, "round": number}, led_here=led_here)
    return [found for rule in PER_ROUND for found in rule.broken_by(seen)]


def diagnose(history: Sequence[Row], rounds: Mapping[int, Row]) -> list[RunWarning]:
    """All warnings of a run, each metric of a round once, by where it was first out of range.

    ``history`` has a row of metrics for each iteration, with its ``round`` and ``iteration``; ``rounds`` what was measured
    once in a round.
    """
    found: list[RunWarning] = []
    for number in sorted({*rounds, *(row["round"] for row in history)}):
        of_round = rounds.get(number, {})
        for position, row in enumerate(history):
            if row["round"] == number:
                found += warnings_at(history[: position + 1], of_round)
        found += warnings_of_round(number, of_round, [row for row in history if row["round"] == number])
    return once_each(found)


def once_each(found: Iterable[RunWarning]) -> list[RunWarning]:
    """The first of each metric in each round, with the number of times that it was seen."""
    first: dict[tuple[int, str], RunWarning] = {}
    times: dict[tuple[int, str], int] = {}
    for warning in found:
        key = (warning.round, warning.metric)
        first.setdefault(key, warning)
        times[key] = times.get(key, 0) + 1
    return [RunWarning(**{**asdict(warning), "times": times[key]}) for key, warning in first.items()]
