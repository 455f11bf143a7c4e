"""What a reward may be called: no two metrics of a run may have one name, or one of them is lost without a word."""

from collections.abc import Iterable

OF_A_REWARD = (
    "score/{}",
    "evaluation/{}",
    "evaluation/{}_gain",
    "evaluation/{}_gap",
    "evaluation/reference_{}",
    "evaluation/reference_{}_std",
    "evaluation/reference_{}_correlation",
    "audit/{}",
    "audit/{}_correlation",
    "audit/{}_gain",
    "audit/{}_gap",
)
"""What is measured of a reward, trained on or held out: which of the two it is may change from run to run."""
OURS = (
    "score/mean",
    "score/std",
    "audit/length_correlation",
    "audit/distinct_1",
    "audit/distinct_2",
    "audit/distinct_3",
    "evaluation/score",
    "evaluation/score_gain",
    "evaluation/reference_score",
    "evaluation/reference_score_std",
    "evaluation/kl",
    "evaluation/response_length",
    "evaluation/reference_response_length",
    "evaluation/empty_share",
    "evaluation/reference_empty_share",
    "evaluation/distinct_2",
    "evaluation/reference_distinct_2",
)
"""What else is measured under the same headings."""


def collision(names: Iterable[str]) -> str | None:
    """Why these rewards cannot stand together, as a sentence; None where they can."""
    owners = {f"{metric}{suffix}": "" for metric in OURS for suffix in ("", SUFFIX)}
    for name in names:
        if name.endswith(SUFFIX):
            return f"the name {name!r} ends in {SUFFIX}, which stands for a standard error; name it differently"
        own = {f"{template.format(name)}{suffix}" for template in OF_A_REWARD for suffix in ("", SUFFIX)}
        if taken := sorted(own & owners.keys(), key=lambda metric: (len(metric), metric)):
            other = f"the reward {owners[taken[0]]!r} makes" if owners[taken[0]] else "every run has"
            return f"the name {name!r} would make a metric {taken[0]}, which {other} too; name it differently"
        owners |= dict.fromkeys(own, name)
    return None


SUFFIX = "_stderr"
"""Of the metric beside another one that is its standard error."""
