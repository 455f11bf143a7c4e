"""What MLflow's page of a run and of a round says: a note, the metrics that stand first, tables of texts.

A table, not traces: why is in the README of ``tasks/tracking``.
"""

from collections.abc import Sequence
from typing import Any

from flows.addresses import base_address, page_path
from flows.config import RunConfig
from flows.outcomes import warnings_of
from flows.outcomes.results import sentence_of
from flows.runs import CommittedRound, Run
from flows.text import marked_literal, printable_lines
from tasks import environment
from tasks.store import read_dataset, read_json

HEADLINE = "0 headline"
"""The group of metrics that MLflow's pages show first: they sort groups by name."""
PROMPTS_SHOWN = 100
# What MLflow's Markdown takes as markup. Before other signs it would show the backslash too.
MARKUP = "\\`*_{}[]()<>#+-.!|~="


def headline(config: RunConfig) -> dict[str, str]:
    """The metrics to look at first, and what they are called in the group that stands first."""
    found = {
        "score/mean": "score",
        "evaluation/score_gain": "score_gain",
        "kl/mean": "kl",
        "kl/coef": "kl_coef",
        "rollouts/response_length": "response_length",
        "update/entropy": "entropy",
        "update/explained_variance": "explained_variance",
        "reward_model/accuracy": "reward_model_accuracy",
    }
    for name in config.evaluation.held_out_rewards:
        found[f"audit/{name}"] = f"held_out_{name}"
        found[f"audit/{name}_gap"] = f"held_out_{name}_gap"
        found[f"evaluation/{name}_gain"] = f"held_out_{name}_gain"
    return {metric: f"{HEADLINE}/{called}" for metric, called in found.items()}


def run_note(run: Run, config: RunConfig, rounds: Sequence[CommittedRound], prefect: str | None) -> str:
    """The run's sentence, where to look closer, and all warnings."""
    summaries = [read_json(committed.report / "summary.json") for committed in rounds]
    warnings = [text for summary in summaries for text in warnings_of(summary)]
    state = "finished" if rounds[-1].number >= config.rounds else "running"
    pages = base_address(run.home) + page_path("runs", run.name)
    home = environment.home_option(run.home)
    links = [f"[Pages of the run]({pages}) (`rounds {home}ui` serves them)", f"`rounds {home}status {run.name}`"]
    if prefect:
        links.append(f"[Prefect]({prefect})")
    sentence = f"**{shown(sentence_of(config, state, summaries, len(warnings)))}**"
    return "\n\n".join([sentence, " · ".join(links), *warning_list(warnings)])


def round_note(run: Run, committed: CommittedRound) -> str:
    """Where to read the round's rollouts, and its warnings."""
    warnings = warnings_of(read_json(committed.report / "summary.json"))
    pages = base_address(run.home) + page_path("runs", run.name, "rollouts", round=committed.number, iteration="all")
    command = f"rounds {environment.home_option(run.home)}rollouts {run.name} --round {committed.number}"
    count = f"**{len(warnings) or 'No'} warning{'s' * (len(warnings) != 1)}**"
    return "\n\n".join([f"{count} · [Rollouts]({pages}) · `{command}`", *warning_list(warnings)])


def warning_list(sentences: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {shown(text)}" for text in sentences)] if sentences else []


def shown(text: str) -> str:
    """Text as MLflow's Markdown shows it without reading it."""
    return marked_literal(text, MARKUP)


def sample_rows(committed: CommittedRound) -> list[dict[str, Any]]:
    """Rollouts of the round's last iteration from best to worst, the score and the texts first."""
    rows = read_json(committed.report / "samples.json")
    first = ("score", "prompt", "response")
    return [as_shown({**{name: row[name] for name in first}, **row}) for row in rows]


def evaluation_rows(committed: CommittedRound) -> list[dict[str, Any]]:
    """What policy and reference answer to the same held-out prompts, and every score of both."""
    table = read_dataset(committed.evaluated)
    scores = [name for name in table.column_names if name == "score" or name.startswith("score_")]
    table = table.select(["prompt_id", "sampled_by", "sample_index", "prompt", "response", *scores])
    wanted = table.column("sample_index").to_numpy() == 0
    by_policy = table.column("sampled_by").to_numpy() == "policy"
    of_policy = table.take((wanted & by_policy).nonzero()[0][:PROMPTS_SHOWN]).to_pylist()
    of_reference = table.take((wanted & ~by_policy).nonzero()[0][:PROMPTS_SHOWN]).to_pylist()
    other = {row["prompt_id"]: row for row in of_reference}
    found = []
    for row in of_policy:
        beside = other.get(row["prompt_id"], {})
        texts = {"prompt": row["prompt"], "response": row["response"], "reference_response": beside.get("response")}
        pairs = [(name, row[name], beside.get(name)) for name in scores]
        found.append(as_shown(texts | {k: v for n, a, b in pairs for k, v in ((n, a), (f"reference_{n}", b))}))
    return found


def as_shown(row: dict[str, Any]) -> dict[str, Any]:
    """Texts with their control characters and those that turn its direction as escapes: a table would obey them."""
    return {name: printable_lines(value) if isinstance(value, str) else value for name, value in row.items()}
