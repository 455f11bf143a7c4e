"""Stage: what a round came to, as numbers and samples that other programs only need to show."""

import json
from pathlib import Path
from typing import Any

from tasks.config import ReportRoundConfig
from tasks.contract import StageContext, StageOutput
from tasks.metrics import combine, diagnose, warnings_at
from tasks.store import Manifest, Ref, read_dataset, write_json


def report_round(
    context: StageContext,
    config: ReportRoundConfig,
    *,
    rollouts: list[Ref],
    scored: list[Ref],
    experience: list[Ref],
    checkpoints: list[Ref],
    audits: list[Ref],
    evaluation: Ref,
    reward_model: Ref | None,
    previous: Ref | None,
    pretraining: Ref | None = None,
) -> StageOutput:
    """Write summary.json, metrics.json (all iterations so far) and samples.json. Charts are made of them by
    whoever shows them."""
    history: list[dict[str, Any]] = (
        json.loads((previous.directory / "metrics.json").read_text()) if previous is not None else []
    )
    history += [
        iteration_metrics([Manifest.read(ref.directory) for ref in group])
        for group in by_iteration([*rollouts, *scored, *experience, *checkpoints, *audits])
    ]
    number = context.place.round
    evaluated = Manifest.read(evaluation.directory).metrics
    trained = Manifest.read(reward_model.directory) if reward_model is not None else None
    of_this_round = [trained.metrics] if trained is not None and trained.place.round == number else []
    of_round = combine((1, metrics) for metrics in [*of_this_round, evaluated])
    warnings = [found for found in diagnose(history, {number: of_round}) if found.round == number]
    counts = [len(warnings_at(history[: position + 1], of_round)) for position in range(len(history))]
    for row, count in zip(history, counts, strict=True):
        if row["round"] == number:
            row["health/warnings"] = float(count)
    summary = {
        "round": number,
        "iterations": len(experience),
        **{name: value for name, value in history[-1].items() if name not in ("round", "iteration")},
        **(trained.metrics if trained is not None else {}),
        **(Manifest.read(pretraining.directory).metrics if pretraining is not None else {}),
        **evaluated,
        "health/warnings": float(len(warnings)),
        "warnings": [found.as_dict() for found in warnings],
    }
    samples = sample_rows(experience[-1].directory / "rollouts", config.num_samples)
    write_json(context.output / "metrics.json", history)
    write_json(context.output / "summary.json", summary)
    write_json(context.output / "samples.json", samples)
    # The numbers are those of other stages: logged again, they would count twice.
    return StageOutput(rows=len(history))


def by_iteration(refs: list[Ref]) -> list[list[Ref]]:
    """The outputs of each iteration together, in the order of the iterations."""
    groups: dict[int, list[Ref]] = {}
    for ref in refs:
        groups.setdefault(Manifest.read(ref.directory).place.iteration, []).append(ref)
    return [groups[iteration] for iteration in sorted(groups)]


def iteration_metrics(manifests: list[Manifest]) -> dict[str, Any]:
    """One row of the metric history."""
    place = manifests[0].place
    return {
        "round": place.round,
        "iteration": place.iteration,
        **combine((manifest.rows, manifest.metrics) for manifest in manifests),
    }


def sample_rows(directory: Path, num_samples: int) -> list[dict[str, Any]]:
    """Rollouts from best to worst score, evenly spaced over all of them."""
    table = read_dataset(directory)
    names = [
        "rollout_id",
        "prompt",
        "response",
        "finish_reason",
        *(n for n in table.column_names if n.startswith("score")),
    ]
    table = table.select(names).take(table.column("score").to_numpy().argsort(kind="stable")[::-1])
    last = table.num_rows - 1
    chosen = sorted({round(i * last / max(1, num_samples - 1)) for i in range(num_samples)})
    return list(table.take(chosen).to_pylist())
