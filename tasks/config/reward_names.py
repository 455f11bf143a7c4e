"""What a reward may be called: no two metrics of a run may have one name, or one of them is lost without a word."""

from collections.abc import Iterable

from tasks.metrics.declared import GLOSSARY, STDERR

REWARD = "<reward>"
OF_A_REWARD = [name for name in GLOSSARY if REWARD in name]
"""What is measured of a reward, trained on or held out: which of the two it is may change from run to run."""
OURS = [name for name, metric in GLOSSARY.items() if not metric.is_pattern]
"""What else is measured, under the same headings or others."""


def collision(names: Iterable[str]) -> str | None:
    """Why these rewards cannot stand together, as a sentence; None where they can."""
    owners = {f"{metric}{suffix}": "" for metric in OURS for suffix in ("", STDERR)}
    for name in names:
        if name.endswith(STDERR):
            return f"the name {name!r} ends in {STDERR}, which stands for a standard error; name it differently"
        own = {f"{template.replace(REWARD, name)}{suffix}" for template in OF_A_REWARD for suffix in ("", STDERR)}
        if taken := sorted(own & owners.keys(), key=lambda metric: (len(metric), metric)):
            other = f"the reward {owners[taken[0]]!r} makes" if owners[taken[0]] else "every run has"
            return f"the name {name!r} would make a metric {taken[0]}, which {other} too; name it differently"
        owners |= dict.fromkeys(own, name)
    return None
