"""All metrics, by the stage that logs them; which of them a logged number is, and how it combines."""

from collections.abc import Iterable, Mapping
from functools import cache

from tasks.metrics.declared.metric import INDEPENDENT_ERRORS, STDERR, Combination, Metric
from tasks.metrics.declared.of_doubts import OF_AUDIT, OF_EVALUATION
from tasks.metrics.declared.of_experience import OF_ADVANTAGES, OF_ROLLOUTS, OF_SCORES
from tasks.metrics.declared.of_preparation import OF_CRITIC_PRETRAINING, OF_DATA, OF_REWARD_MODEL, OF_WARM_UP
from tasks.metrics.declared.of_run import OF_ANY_STAGE
from tasks.metrics.declared.of_update import OF_UPDATE

LOGGED_BY: Mapping[str, tuple[Metric, ...]] = {
    "prepare_data": OF_DATA,
    "warm_up": OF_WARM_UP,
    "train_reward_model": OF_REWARD_MODEL,
    "critic_pretraining": OF_CRITIC_PRETRAINING,
    "generate_rollouts": OF_ROLLOUTS,
    "generate_candidates": (),
    "score_rollouts": OF_SCORES,
    "compute_advantages": OF_ADVANTAGES,
    "update_policy": OF_UPDATE,
    "audit_rollouts": OF_AUDIT,
    "evaluate_policy": OF_EVALUATION,
    "report_round": (),
}
"""``health/warnings`` is logged by each stage that has limits, ``seconds`` where a round is published."""
OF_STAGES = [metric for own in LOGGED_BY.values() for metric in own if metric not in OF_ANY_STAGE]
GLOSSARY: Mapping[str, Metric] = {metric.name: metric for metric in (*OF_STAGES, *OF_ANY_STAGE)}
# Those with more of their own letters first: `audit/<reward>_gap` before `audit/<reward>`.
PATTERNS = sorted((metric for metric in GLOSSARY.values() if metric.is_pattern), key=lambda metric: -len(metric.name))


@cache
def declared(name: str) -> Metric | None:
    """Which metric a logged number of this name is, or is the standard error of; None where nothing declares it."""
    bare = name.removesuffix(STDERR)
    metric = GLOSSARY.get(bare) or next((pattern for pattern in PATTERNS if pattern.match(bare)), None)
    return None if metric is None or (bare != name and not metric.has_stderr) else metric


def declaration(name: str) -> Metric:
    """The metric of this name, of which we know that it is declared."""
    metric = declared(name)
    assert metric is not None, f"the metric {name} is declared nowhere in tasks/metrics/declared"
    return metric


def require_declared(names: Iterable[str]) -> None:
    """Refuse to log what nobody could look up, or combine over shards."""
    for name in names:
        declaration(name)


def named(declared_name: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are this metric; of ``score/<reward>`` the scores of all rewards, without standard errors."""
    return [
        name
        for name in names
        if not name.endswith(STDERR) and (metric := declared(name)) is not None and metric.name == declared_name
    ]


def combination(name: str) -> Combination:
    """How the number of this name combines, with the name beside it that is this one's."""
    metric = declaration(name)
    if name.endswith(STDERR):
        return INDEPENDENT_ERRORS
    found = metric.match(name)
    if not found or not found.groups():
        return metric.combines
    return Combination(metric.combines.way, metric.combines.beside.replace("<reward>", found[1]))
