"""The numbers of a run's rounds, and what speaks against them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.config import RunConfig
from flows.text import escaped_character, number
from tasks.store import Ref, read_json, require_undamaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the final table: the summary's key for a round, for its reference, and the digits shown."""

    title: str
    key: str
    reference_key: str | None = None
    digits: int = 3


def result_columns(config: RunConfig) -> list[Column]:
    """What the final table shows of a run."""
    columns = [Column(title="score", key="evaluation/score", reference_key="evaluation/reference_score")]
    if config.rounds > 1:
        # Each round has a reward model and samples of its own, so the reference's score moves too.
        columns.append(Column(title="ref. score", key="evaluation/reference_score"))
    columns.append(Column(title="gain (sd)", key="evaluation/score_gain", digits=2))
    for name in config.evaluation.held_out_rewards:
        columns.append(Column(title=name, key=f"evaluation/{name}", reference_key=f"evaluation/reference_{name}"))
        columns.append(Column(title="gain (sd)", key=f"evaluation/{name}_gain", digits=2))
    columns += [
        Column(title="KL", key="evaluation/kl", digits=2),
        Column(title="entropy", key="update/entropy"),
        Column(
            title="length",
            key="evaluation/response_length",
            reference_key="evaluation/reference_response_length",
            digits=1,
        ),
    ]
    if config.reward_model is not None:
        columns.append(Column(title="RM acc.", key="reward_model/accuracy"))
    return columns


def result_rows(columns: Sequence[Column], summaries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The final table's cells: the reference as the first round measured it, then the rounds."""

    def cell(summary: Mapping[str, Any], key: str | None, digits: int) -> str:
        return "" if key is None else number(summary.get(key), digits)

    reference = [["reference", *(cell(first, c.reference_key, c.digits) for c in columns)] for first in summaries[:1]]
    return reference + [[f"round {s['round']}", *(cell(s, c.key, c.digits) for c in columns)] for s in summaries]


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """The sentences of a reported round's warnings."""
    return [warning["sentence"] for warning in summary.get("warnings", [])]


def summary_of(report: Ref) -> dict[str, Any]:
    """A reported round's numbers."""
    require_undamaged(report, "summary.json")
    summary: dict[str, Any] = read_json(report.directory / "summary.json")
    return summary


def warning_markdown(sentences: Sequence[str]) -> list[str]:
    """What speaks against a round's numbers, to stand with them wherever they are shown; nothing where nothing does."""
    if not sentences:
        return []
    title = f"**{len(sentences)} warning{'s' * (len(sentences) > 1)}**"
    return [title, "\n".join(f"- {''.join(map(escaped_character, text))}" for text in sentences)]


def sentence_of(config: RunConfig, state: str, summaries: Sequence[Mapping[str, Any]], num_warnings: int) -> str:
    """A run in a sentence or two: ``Round 2 of 2, finished. Score +1.46 sd, held-out true quality +1.56 sd, KL 5.3 nats; no
    warnings.``"""
    if not summaries:
        return f"No round of {config.rounds} is done yet; {state}."
    last = summaries[-1]
    gains = {"score": "evaluation/score_gain"}
    gains |= {f"held-out {n.replace('_', ' ')}": f"evaluation/{n}_gain" for n in config.evaluation.held_out_rewards}
    found = [f"{name} {last[key]:+.2f} sd" for name, key in gains.items() if last.get(key) is not None]
    found += [f"KL {last['evaluation/kl']:.1f} nats"] if last.get("evaluation/kl") is not None else []
    warned = f"{num_warnings or 'no'} warning{'s' * (num_warnings != 1)}"
    results = ", ".join(found)
    return f"Round {last['round']} of {config.rounds}, {state}. {results[:1].upper()}{results[1:]}; {warned}."
