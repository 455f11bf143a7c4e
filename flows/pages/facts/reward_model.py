"""How far a run's reward model can be believed, and the pairs that it gets most wrong."""

from typing import Any

from flows.analysis.data import source_name
from flows.analysis.reward_model import judgement_of
from flows.analysis.words import word_differences
from flows.outcomes import latest_variants
from flows.outcomes.outputs import Found
from flows.pages.site import Asked, Site
from flows.plan import glance_at
from flows.query import DataSet, Part
from flows.runs import Run
from tasks.charts import calibration_chart, histogram
from tasks.errors import RunError, UserError
from tasks.stages import STAGES
from tasks.store import Manifest, read_json, require_undamaged

STAGE, PAIRS = "train_reward_model", "held_out_pairs"


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """The reward model of a round, by default of the last one that has trained one."""
    run = site.run(asked.path["run"])
    trained = trained_in(run)
    number = asked.number("round", max(trained), low=1, high=max(trained))
    if number not in trained:
        raise RunError(f"round={number}: no reward model was trained in that round; name one of {sorted(trained)}")
    chosen = trained[number]
    require_undamaged(chosen.ref, "calibration.json")
    calibration = read_json(chosen.ref.directory / "calibration.json")
    return {
        "called": asked.path["run"],
        "round": number,
        "rounds": [row_of(found) for _, found in sorted(trained.items())],
        "is_current": chosen.is_current,
        "pairs": calibration["pairs"],
        "calibration": calibration_chart(calibration),
        **judged(run, chosen),
    }


def trained_in(run: Run) -> dict[int, Found]:
    """The reward model of each round that trained one; where the run's plan finds none any more, as after another version
    or another configuration, those that were trained last.

    Raises:
        RunError: there is none.
    """
    try:
        planned = [p for p in glance_at(run).select(STAGE) if p.ref is not None]
    except UserError:
        planned = []
    found = [Found(stage=STAGE, place=p.place, ref=p.ref, is_current=True) for p in planned if p.ref is not None]
    found = found or latest_variants(run, STAGE)
    if not found:
        if run.config.reward_model is None:
            raise RunError(f"run {run.name} trains no reward model; its rewards are models or functions of their own")
        raise RunError(f"run {run.name} has trained no reward model yet; rounds status {run.name} shows how far it is")
    return {one.place.round: one for one in found}


def row_of(found: Found) -> dict[str, Any]:
    """One round's line of the table."""
    metrics = Manifest.read(found.ref.directory).metrics
    return {
        "round": found.place.round,
        "accuracy": metrics.get("reward_model/accuracy"),
        "stderr": metrics.get("reward_model/accuracy_error"),
        "longer": metrics.get("reward_model/accuracy_chosen_longer"),
        "shorter": metrics.get("reward_model/accuracy_chosen_shorter"),
        "calibration_error": metrics.get("reward_model/calibration_error"),
        "fingerprint": found.ref.directory.name,
    }


def judged(run: Run, found: Found) -> dict[str, Any]:
    """What is known of single pairs; nothing where the output is older than the data set that holds them."""
    if not (found.ref.directory / PAIRS).is_dir():
        bins = dict.fromkeys(("by_length", "by_margin", "by_source"), ())
        return {"has_pairs": False, "scores": None, **bins, "num_wrong": 0, "wrong": []}
    part = Part(run=run.name, place=found.place, stage=STAGE, name=PAIRS, ref=found.ref)
    own = judgement_of(DataSet(parts=(part,)), sources_of(run, found))
    return {
        "has_pairs": True,
        "scores": histogram(
            "Scores of what people chose and rejected",
            "score, on the scale of training",
            {"chosen": own.chosen, "rejected": own.rejected},
        ),
        "by_length": [one.as_dict() for one in own.by_length],
        "by_margin": [one.as_dict() for one in own.by_margin],
        "by_source": [one.as_dict() for one in own.by_source],
        "num_wrong": own.num_wrong,
        "wrong": [{**row, "words": word_differences(row["rejected"], row["chosen"])} for row in own.wrong],
    }


def sources_of(run: Run, found: Found) -> list[str]:
    """The sources of preferences that a reward model was trained from; none where the data's manifest is gone."""
    data = Manifest.read(found.ref.directory).input_paths["data"]
    manifest = Manifest.read_if_sound(run.root / data)
    return (
        [] if manifest is None else [source_name(s) for s in STAGES.settings_of(manifest.recipe)["data"]["preferences"]]
    )
