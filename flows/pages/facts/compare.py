"""Two places of one run or of two, prompt by prompt."""

import math
from dataclasses import asdict
from typing import Any

from flows.addresses import page_path
from flows.analysis.compare import Comparison, SideSummary, compared
from flows.analysis.joined import DOUBTFUL, Answer
from flows.analysis.sides import side_of
from flows.pages.site import Asked, Site
from flows.runs import Run
from tasks.charts import histogram
from tasks.errors import ConfigError, RunError

ROWS_OF_A_PAGE = 50


def form(site: Site, asked: Asked) -> dict[str, Any]:
    """The two places, which ``a`` and ``b`` name, or ``run`` twice, with search and order."""
    ticked = asked.repeated.get("run", ())
    return {
        "a": asked.text("a", ticked[0] if ticked else ""),
        "b": asked.text("b", ticked[1] if len(ticked) > 1 else ""),
        "q": asked.text("q"),
        "sort": asked.text("sort", DOUBTFUL),
        "runs": [called for called, _ in site.runs()],
        "comparison": None,
    }


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """What differs between two places."""
    here = form(site, asked)
    a, b, q, sort, runs = (here[name] for name in ("a", "b", "q", "sort", "runs"))
    if not a or not b:
        return here

    def find(name: str | None) -> Run:
        if name is None and not runs:
            raise RunError("there are no runs yet; start one with: rounds run quickstart")
        return site.run(runs[0] if name is None else name)

    found = compared(side_of(a, find), side_of(b, find), search=q, order=sort)
    last_page = 1 + (found.prompts - 1) // ROWS_OF_A_PAGE
    number = asked.number("page", 1, low=1, high=last_page)
    shown = ["score", *found.held_out, "length"]
    return {
        **here,
        "comparison": {
            "names": [side.name for side in found.sides],
            "prompts": found.prompts,
            "num_prompts": [side.prompts for side in found.sides],
            "doubtful": found.doubtful,
            "has_one_scale": found.has_one_scale,
            "held_out": found.held_out,
            "summary": [asdict(change) for change in found.changes],
            "settings": [setting.as_dict() for setting in found.settings],
            "charts": charts_of(found),
            "columns": [
                {"name": name, "is_held_out": name in found.held_out, **sorting_of(name, sort)}
                for name in shown
                if name in {change.name for change in found.changes}
            ],
            "page_number": number,
            "pages": last_page,
            "rows": rows_of(found, (number - 1) * ROWS_OF_A_PAGE),
        },
        "swapped": page_path("compare", a=b, b=a, q=q, sort=None if sort == DOUBTFUL else sort),
    }


def sorting_of(name: str, sort: str) -> dict[str, str]:
    """How the prompts lie by a number, and how a click would sort them: the largest fall first, then the largest rise, then
    doubtful ones again."""
    if sort == name:
        return {"sorted": "up", "next": f"-{name}"}
    if sort == f"-{name}":
        return {"sorted": "down", "next": DOUBTFUL}
    return {"sorted": "", "next": name}


def charts_of(found: Comparison) -> dict[str, dict[str, Any]]:
    """How score and held-out rewards of both sides lie."""
    names = [side.name for side in found.sides]
    if names[0] == names[1]:
        raise ConfigError(f"both sides are {names[0]}; name two places")
    charts = {}
    for number in ("score", *found.held_out):
        if number not in {change.name for change in found.changes}:
            continue
        values = [[value for value in own.tolist() if math.isfinite(value)] for own in found.values(number)]
        title = f"{number.replace('_', ' ').capitalize()}, mean over the responses to a prompt"
        sides = dict(zip(names, values, strict=True))
        chart = histogram(title, number.replace("_", " "), sides, counted="prompts")
        if chart is not None:
            charts[number] = chart
    return charts


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
