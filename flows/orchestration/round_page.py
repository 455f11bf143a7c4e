"""A round on Prefect's pages: a table, its iterations, some rollouts, and where MLflow has the rest."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flows.addresses import base_address, page_path
from flows.outcomes import warning_markdown, warnings_of
from flows.outcomes.results import sentence_of
from flows.runs import CommittedRound, Run, history_of
from flows.text import escaped_character
from tasks import environment
from tasks.metrics import STDERR
from tasks.store import read_json
from tasks.tracking import Published, run_page, where_to_look

ITERATIONS_SHOWN = 50
SAMPLES_SHOWN = 12
SAMPLE_LENGTH = 400
# The columns of the table of iterations on Prefect's page.
COLUMNS: Mapping[str, str] = {
    "score/mean": "score",
    "score/std": "std",
    "kl/mean": "KL, nats per response",
    "rollouts/response_length": "length, tokens",
    "update/entropy": "entropy, nats per token",
    "update/explained_variance": "explained variance",
    "update/clipfrac": "clipped",
    "audit/length_correlation": "score ~ length",
    "audit/distinct_2": "distinct-2",
}


def show_round(run: Run, committed: CommittedRound, published: Published | None) -> None:
    """The round's table and links as artifacts of this Prefect task; nothing where no flow is running."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact
    from prefect.runtime import flow_run

    if not flow_run.id:
        return
    key = artifact_key(f"{run.name}-round-{committed.number}")
    create_markdown_artifact(
        markdown=round_markdown(run, committed, published),
        key=key,
        description=f"Round {committed.number} of {run.name}",
    )
    if published is not None and (url := run_page(run.home, published, published.rounds[committed.number])):
        create_link_artifact(link=url, link_text="MLflow", key=f"{key}-mlflow", description=f"{key} in MLflow")


def artifact_key(text: str) -> str:
    """The nearest key that Prefect takes: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def round_markdown(run: Run, committed: CommittedRound, published: Published | None) -> str:
    """A round on one page: what it came to, how it got there, and what the policy says now."""
    summary = read_json(committed.report / "summary.json")
    samples = read_json(committed.report / "samples.json")
    history = history_of(committed)
    known = {name: title for name, title in COLUMNS.items() if any(name in row for row in history)}
    progress = [
        [str(row["iteration"]), *(number(row.get(name)) for name in known)] for row in history[-ITERATIONS_SHOWN:]
    ]
    pages = base_address(run.home) + page_path("runs", run.name)
    rollouts = base_address(run.home) + page_path("runs", run.name, "rollouts", round=committed.number, iteration="all")
    parts = [
        f"# {escaped(run.name)}, round {committed.number}",
        escaped(sentence_of(run.config, "done", [summary], len(warnings_of(summary)))),
        f"[Pages of the run]({pages}) · [rollouts of the round]({rollouts}) · {mlflow_line(run, committed, published)}",
        f"`rounds {environment.home_option(run.home)}ui` serves the pages.",
        "## Held-out prompts",
        *table(["", "reference", "policy", "gain, reference std"], comparison(summary)),
        *warning_markdown(warnings_of(summary)),
    ]
    if "reward_model/accuracy" in summary:
        parts.append(
            f"Reward model: {summary['reward_model/accuracy']:.1%} of held-out pairs ranked rightly, "
            f"calibration error {summary.get('reward_model/calibration_error', float('nan')):.1%}."
        )
    if "critic_pretraining/explained_variance" in summary:
        after, before = (summary[f"critic_pretraining/explained_variance{part}"] for part in ("", "_before"))
        parts.append(
            f"Critic: explained variance {number(after)} on held-out prompts after pre-training, {number(before)} before."
        )
    parts += ["## Iterations", *table(["iteration", *known.values()], progress)]
    if samples:
        parts.append("## Rollouts of the last iteration, from best to worst")
        parts += table(["score", "prompt", "response"], sample_rows(samples))
    command = f"rounds {environment.home_option(run.home)}rollouts {run.name} --round {committed.number}"
    parts.append(f"More: `{command}`")
    return "\n\n".join(parts) + "\n"


def mlflow_line(run: Run, committed: CommittedRound, published: Published | None) -> str:
    """Where to see the round in MLflow."""
    if published is None:
        return "not logged to MLflow yet; the next round, or the same command again, logs it."
    run_id = published.rounds[committed.number]
    if url := run_page(run.home, published, run_id):
        return f"[in MLflow]({url})"
    return f"in MLflow: run `{run_id}`, see `{where_to_look(run.home) or 'rounds mlflow'}`"


def comparison(summary: Mapping[str, Any]) -> list[list[str]]:
    """Reference and policy on held-out prompts: every score, the length, and how far apart they are."""
    prefix = "evaluation/reference_"
    # Every metric that policy and reference both have; the others tell how it was measured.
    names = [n.removeprefix(prefix) for n in sorted(summary) if n.startswith(prefix)]
    names = [name for name in names if f"evaluation/{name}" in summary and not name.endswith(STDERR)]
    # The score first: it is what was trained for.
    names.sort(key=lambda name: name != "score")
    rows = [
        [
            escaped(name.replace("_", " ")),
            number(summary[f"{prefix}{name}"]),
            number(summary.get(f"evaluation/{name}")),
            number(summary.get(f"evaluation/{name}_gain"), sign=True),
        ]
        for name in names
    ]
    return [*rows, ["KL, nats per response", "0", number(summary.get("evaluation/kl")), ""]]


def sample_rows(samples: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Some samples, evenly from the best to the worst."""
    last = len(samples) - 1
    chosen = sorted({round(i * last / (SAMPLES_SHOWN - 1)) for i in range(SAMPLES_SHOWN)})
    return [[number(s["score"]), escaped(s["prompt"]), escaped(s["response"])] for s in (samples[i] for i in chosen)]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing without rows. Cells are Markdown already."""
    lines = [titles, ["---"] * len(titles), *rows]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)] if rows else []


def number(value: Any, *, sign: bool = False) -> str:
    """A number for people; an empty cell for one that is not known."""
    if not isinstance(value, int | float):
        return ""
    return f"{value:+.3g}" if sign else f"{value:.4g}"


def escaped(text: str) -> str:
    """Text that a model wrote, so that a page shows it and does nothing else with it.

    Markdown shows a sign after a backslash as itself, so a response can be no link, image, tag, table cell or heading.
    Character references would say the same, but Prefect's page shows most of them as they are written.
    """
    shown = text if len(text) <= SAMPLE_LENGTH else text[:SAMPLE_LENGTH] + " …"
    return "".join(escaped_character(char) for char in shown)
