"""The glossary as a Markdown table."""

from tasks.metrics.declared.glossary import GLOSSARY
from tasks.metrics.declared.metric import Metric

TITLES = ("metric", "unit", "meaning", "healthy", "when it is not", "combines by")


LEGEND = """\
± marks a metric whose standard error is logged beside it, as `…_stderr`. The last column says how the numbers of several
shards or iterations combine into one: a mean is weighted by their rows or by their response tokens, a standard deviation
follows from their means and standard deviations, a standard error from theirs, as independent ones. A stage that is tried
again logs only what it commits. A round's summary does not combine its iterations: it has the numbers of the last one."""


def glossary_text() -> str:
    """A row for each metric, in the order of the stages that log them, and how to read it."""
    rows = [TITLES, ["---"] * len(TITLES), *map(cells, GLOSSARY.values())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{LEGEND}"


def cells(metric: Metric) -> list[str]:
    warns = f"warns {metric.warns}" if metric.warns else ""
    found = [
        f"`{metric.name}`" + " ±" * metric.has_stderr,
        metric.unit,
        metric.meaning,
        "; ".join(filter(None, [str(metric.healthy), warns])),
        metric.advice,
        metric.combines.way,
    ]
    return [cell.replace("|", r"\|") for cell in found]
