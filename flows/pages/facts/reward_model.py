"""How far a run's reward model can be believed, and the pairs that it gets most wrong."""

from typing import Any

from flows.analysis.reward_model import judgement_of
from flows.analysis.words import word_differences
from flows.pages.site import Asked, Site
from flows.plan import plan_of
from flows.query import Span, select
from tasks.charts import calibration_chart, histogram
from tasks.errors import RunError
from tasks.store import read_json, require_undamaged


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """The reward model of a round, by default of the last one that has trained one."""
    run = site.run(asked.path["run"])
    trained = [p for p in plan_of(run).select("train_reward_model") if p.ref is not None]
    if not trained:
        raise RunError(f"run {run.name} has trained no reward model; its rewards are models or functions of their own")
    numbers = [planned.place.round for planned in trained]
    number = asked.number("round", numbers[-1], low=1, high=max(numbers))
    if number not in numbers:
        raise RunError(f"round={number}: no reward model was trained in that round; name one of {numbers}")
    planned = trained[numbers.index(number)]
    assert planned.ref is not None
    require_undamaged(planned.ref, "calibration.json")
    calibration = read_json(planned.ref.directory / "calibration.json")
    found = judgement_of(select(run, "held_out_pairs", rounds=Span(number, number)).data_set)
    metrics = {p.place.round: manifest.metrics for p in trained if (manifest := p.manifest()) is not None}
    return {
        "called": asked.path["run"],
        "round": number,
        "rounds": [
            {
                "round": n,
                "accuracy": own.get("reward_model/accuracy"),
                "stderr": own.get("reward_model/accuracy_error"),
                "longer": own.get("reward_model/accuracy_chosen_longer"),
                "shorter": own.get("reward_model/accuracy_chosen_shorter"),
                "calibration_error": own.get("reward_model/calibration_error"),
                "fingerprint": trained[numbers.index(n)].ref.directory.name,  # type: ignore[union-attr]
            }
            for n, own in metrics.items()
        ],
        "pairs": calibration["pairs"],
        "calibration": calibration_chart(calibration),
        "scores": histogram(
            "Scores of what people chose and rejected",
            "score, on the scale of training",
            {"chosen": found.chosen, "rejected": found.rejected},
        ),
        "by_length": [own.as_dict() for own in found.by_length],
        "by_margin": [own.as_dict() for own in found.by_margin],
        "num_wrong": found.num_wrong,
        "wrong": [{**row, "words": word_differences(row["rejected"], row["chosen"])} for row in found.wrong],
    }
