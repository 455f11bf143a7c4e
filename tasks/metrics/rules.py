"""From where on the declarations say that a metric warns, as rules, and the likely cause where it does."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from tasks.metrics.declared import HIGH_APPROX_KL, LEAST_CORRELATION, Limit, declaration, named
from tasks.metrics.warnings import Bound, Measured, Row, Rule, Seen, Z, measured

Z_OF_A_TREND = 3.0
"""Of a fall, which is looked for anew in every iteration: of four values that only scatter, the first and last of a falling
order are 2 standard errors apart once in 120 times, 3 once in 1,700."""
FALLS = 3
NEEDED = FALLS + 1
"""Iterations that a rule looks at, the judged one included, beside the run's first."""


def declared_rule(
    metric: str,
    *,
    kind: str,
    because: Callable[[Seen], str],
    applies: Callable[[Seen, str], bool] = lambda _seen, _name: True,
) -> Rule:
    """A rule whose limits are those from where on the metric is declared to warn."""
    warns = declaration(metric).warns
    assert warns is not None, f"{metric} is not declared to warn"
    above, below = (bound_of(limit) if limit is not None else None for limit in (warns.above, warns.below))
    return Rule(kind=kind, metric=metric, above=above, below=below, because=because, applies=applies)


def bound_of(limit: Limit) -> Bound:
    """A declared limit. The reference is that of the run's first iteration, or of the same evaluation."""

    def bound(seen: Seen, name: str) -> Measured | None:
        if not limit.of_reference:
            return Measured(limit.number)
        found = (
            measured(seen.first, name)
            if seen.rows
            else measured(seen.of_round, name.replace("evaluation/", "evaluation/reference_"))
        )
        return found and Measured(limit.of_reference * found.value + limit.number, limit.of_reference * found.stderr)

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


def is_the_reference_scored_by_a_model(seen: Seen, _name: str) -> bool:
    """Whether this is the reference's own iteration, and its whole score that of the reward model."""
    is_alone = len(named("score/<reward>", seen.now)) == 1
    return seen.now is seen.first and is_alone and "reward_model/accuracy" in seen.of_round


PER_ITERATION: tuple[Rule, ...] = (
    declared_rule(
        "update/approx_kl",
        kind="approx_kl",
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
    declared_rule("rollouts/empty_share", kind="empty responses", because=of_short_responses),
    declared_rule("rollouts/response_length", kind="short responses", because=of_short_responses),
    declared_rule("audit/<reward>_gap", kind="gap", because=says(GAMED), applies=lags_behind),
    declared_rule("audit/distinct_2", kind="repetition", because=says(REPEATS), applies=something_wanted_does_not_rise),
    declared_rule(
        "update/explained_variance",
        kind="critic",
        because=says("the critic is worse than a constant: higher optimizers.critic_learning_rate, ppo.critic_epochs"),
        # A critic meets its policy, and in a later round a new reward model, without having learned of it.
        applies=lambda seen, _name: seen.now["iteration"] > FALLS,
    ),
    declared_rule(
        "audit/<reward>_correlation",
        kind="reward model",
        because=says(UNRELATED),
        applies=is_the_reference_scored_by_a_model,
    ),
    declared_rule(
        "health/warnings",
        kind="limit",
        because=says(
            "limits of health were passed, and health.action: warn let the stage go on; its own line says more"
        ),
    ),
)
"""Looked at in each iteration."""
PER_ROUND: tuple[Rule, ...] = (
    declared_rule("evaluation/empty_share", kind="empty responses", because=of_short_responses),
    declared_rule("evaluation/response_length", kind="short responses", because=of_short_responses),
    declared_rule("evaluation/<reward>_gap", kind="gap", because=says(GAMED), applies=lags_behind),
    declared_rule(
        "evaluation/distinct_2", kind="repetition", because=says(REPEATS), applies=something_wanted_does_not_rise
    ),
    declared_rule("evaluation/reference_<reward>_correlation", kind="reward model", because=says(UNRELATED)),
    declared_rule(
        "health/warnings",
        kind="limit",
        because=says(
            "limits of health were passed, and health.action: warn let the stage go on; its own line says more"
        ),
    ),
)
"""Looked at when a round is evaluated."""
