"""Two places of one run or of two, prompt by prompt."""

import math
from dataclasses import asdict
from typing import Any

from flows.addresses import page_path
from flows.analysis.compare import Comparison, SideSummary, compared
from flows.analysis.joined import Answer
from flows.analysis.sides import side_of
from flows.pages.site import Asked, Site
from flows.runs import Run
from tasks.charts import histogram
from tasks.errors import ConfigError, RunError

ROWS_OF_A_PAGE = 50


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """What differs between two places, which ``a`` and ``b`` name, or ``run`` twice."""
    ticked = asked.repeated.get("run", ())
    a, b = asked.text("a", ticked[0] if ticked else ""), asked.text("b", ticked[1] if len(ticked) > 1 else "")
    runs = [called for called, _ in site.runs()]
    if not a or not b:
        return {"a": a, "b": b, "runs": runs, "comparison": None}

    def find(name: str | None) -> Run:
        if name is None and not runs:
            raise RunError("there are no runs yet; start one with: rounds run quickstart")
        return site.run(runs[0] if name is None else name)

    found = compared(side_of(a, find), side_of(b, find))
    last_page = 1 + (found.prompts - 1) // ROWS_OF_A_PAGE
    number = asked.number("page", 1, low=1, high=last_page)
    return {
        "a": a,
        "b": b,
        "runs": runs,
        "comparison": {
            "names": [side.name for side in found.sides],
            "prompts": found.prompts,
            "num_prompts": [side.prompts for side in found.sides],
            "doubtful": found.doubtful,
            "has_one_scale": found.has_one_scale,
            "held_out": found.held_out,
            "summary": [asdict(change) for change in found.changes],
            "settings": [setting.as_dict() for setting in found.settings],
            "chart": chart_of(found),
            "page_number": number,
            "pages": last_page,
            "rows": rows_of(found, (number - 1) * ROWS_OF_A_PAGE),
        },
        "swapped": page_path("compare", a=b, b=a),
    }


def chart_of(found: Comparison) -> dict[str, Any] | None:
    """How the scores of both sides lie."""
    names = [side.name for side in found.sides]
    if names[0] == names[1]:
        raise ConfigError(f"both sides are {names[0]}; name two places")
    values = [[score for score in own.tolist() if math.isfinite(score)] for own in found.values("score")]
    return histogram("Scores, mean over the responses to a prompt", "score", dict(zip(names, values, strict=True)))


def rows_of(found: Comparison, start: int) -> list[dict[str, Any]]:
    """The prompts of this page with a response of each side, and the words that only one of them has."""
    return [
        {
            "prompt": pair.prompt,
            "responses": [response_of(side, own) for side, own in zip(found.sides, (pair.a, pair.b), strict=True)],
            "changes": pair.changes,
            "is_doubtful": pair.is_doubtful,
            "words": pair.words,
        }
        for pair in found.pairs(start, start + ROWS_OF_A_PAGE)
    ]


def response_of(side: SideSummary, answer: Answer) -> dict[str, Any]:
    """The response that is shown of a side, with the address of its page."""
    data = {"data": side.data, "by": answer.sampled_by} if side.data != "rollouts" else {}
    path = page_path("runs", side.run, "rollouts", answer.rollout_id, **data)
    return {**asdict(answer), "address": path}
