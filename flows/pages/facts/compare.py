"""Two places of one run or of two, prompt by prompt."""

from typing import Any

from flows.addresses import page_path
from flows.analysis.compare import Comparison, Side, compared, responses_of, side_of, word_differences
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
    number = asked.number("page", 1, low=1, high=1 + (len(found.rows) - 1) // ROWS_OF_A_PAGE)
    return {
        "a": a,
        "b": b,
        "runs": runs,
        "comparison": {
            "names": [side.name for side in found.sides],
            "prompts": len(found.rows),
            "num_prompts": found.num_prompts,
            "held_out": found.held_out,
            "summary": found.summary(),
            "settings": [{"name": name, "a": x, "b": y} for name, x, y in found.settings],
            "chart": chart_of(found),
            "page_number": number,
            "pages": 1 + (len(found.rows) - 1) // ROWS_OF_A_PAGE,
            "rows": rows_of(found, (number - 1) * ROWS_OF_A_PAGE),
        },
        "swapped": page_path("compare", a=b, b=a),
    }


def chart_of(found: Comparison) -> dict[str, Any] | None:
    """How the scores of both sides lie."""
    a, b = (side.name for side in found.sides)
    if a == b:
        raise ConfigError(f"both sides are {a}; name two places")
    values = {a: [row.score[0] for row in found.rows], b: [row.score[1] for row in found.rows]}
    return histogram("Scores, mean over the responses to a prompt", "score", values)


def rows_of(found: Comparison, start: int) -> list[dict[str, Any]]:
    """The prompts of this page with a response of each side, and the words that only one of them has."""
    rows = found.rows[start : start + ROWS_OF_A_PAGE]
    texts = [responses_of(side, [row.prompt_id for row in rows]) for side in found.sides]
    return [
        {
            **row.as_dict(),
            "prompt": texts[0][row.prompt_id]["prompt"],
            "responses": [response_of(side, own[row.prompt_id]) for side, own in zip(found.sides, texts, strict=True)],
            "words": word_differences(*(own[row.prompt_id]["response"] for own in texts)),
        }
        for row in rows
    ]


def response_of(side: Side, row: dict[str, Any]) -> dict[str, Any]:
    data = {} if side.iteration else {"data": "evaluation", "by": row.get("sampled_by")}
    path = page_path("runs", side.run.name, "rollouts", row["rollout_id"], **data)
    return {"rollout_id": row["rollout_id"], "response": row["response"], "score": row["score"], "address": path}
