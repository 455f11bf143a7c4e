"""One rollout: its tokens, its rewards, its siblings, and what else was said to its prompt."""

import shlex
from dataclasses import asdict
from typing import Any

from flows.pages.facts.rollouts import ROWS_OF_A_PAGE
from flows.pages.site import Asked, Site
from flows.query import DataSet, OneRollout, Selection, Span, Words, beside, one_rollout, parse, quoted, select, span
from flows.query.grammar import Query
from flows.query.tints import TINTS, tints_of
from flows.runs import Run
from ppo_core.config import COMPARES_SAMPLES
from tasks import environment
from tasks.charts import lines
from tasks.errors import ConfigError, RunError
from tasks.stages import STAGES
from tasks.store import Manifest

MOST_ANSWERS = 200
"""Answers to the same prompt that are shown, the latest ones."""


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """All that is known of a rollout."""
    run, rollout_id = site.run(asked.path["run"]), asked.path["rollout_id"]
    data = asked.one_of("data", STAGES.data_sets, "rollouts")
    attempt, sampled_by = asked.text("attempt"), asked.text("by")
    everywhere = select(run, data, rounds=span("all", option="round"), iterations=span("all", option="iteration"))
    one = one_rollout(run, rollout_id, attempt or None, data=data, sampled_by=sampled_by, everywhere=everywhere)
    known = [name for name in TINTS if one.tokens and name in one.tokens[0]]
    tint = asked.one_of("tint", tuple(TINTS), "advantage")
    # What colours a table's rollouts is not known of all of them.
    tint = tint if tint in known or not known else known[0]
    tokens, scale = tints_of(one.tokens, tint)
    row = one.row
    return {
        "called": asked.path["run"],
        "data": data,
        "q": asked.text("q"),
        "rounds": asked.text("rounds"),
        "iterations": asked.text("iterations"),
        "attempt": attempt,
        "by": one.row.get("sampled_by") or "",
        "rollout_id": rollout_id,
        "round": one.part.place.round,
        "iteration": one.part.place.iteration,
        "row": {name: value for name, value in row.items() if name not in ("messages",)},
        "prompt": row["prompt"],
        "response": row["response"],
        "tint": tint,
        "tint_asked": asked.text("tint"),
        "tints": known,
        "scale": scale,
        "tokens": tokens,
        "numbers": one.names,
        "chart": chart_of(one),
        "components": components_of(run, row),
        **of_the_prompt(run, one, everywhere),
        "origin": origin_of(run, one, attempt),
        "beside": beside_in_search(run, one, everywhere, asked),
    }


def beside_in_search(run: Run, one: OneRollout, everywhere: Selection, asked: Asked) -> dict[str, Any] | None:
    """Where the rollout stands in the search from which it was opened, else in its iteration, and those beside it; None
    where the search does not find it, or cannot be carried out any more."""
    try:
        query = parse(asked.text("q"))
        rows = searched_in(run, one, everywhere, asked).matching(query).sorted_by(query.order)
    except (ConfigError, RunError):
        return None
    found = beside(rows, one.part, one.index, ["rollout_id", "sampled_by"])
    if found is None:
        return None
    return {**asdict(found), "found": rows.found, "page": 1 + found.place // ROWS_OF_A_PAGE}


def searched_in(run: Run, one: OneRollout, everywhere: Selection, asked: Asked) -> DataSet:
    """The rows among which the rollout was found."""
    if asked.text("attempt"):
        return DataSet(parts=(one.part,))
    if asked.text("rounds") or asked.text("iterations"):
        rounds = span(asked.text("rounds") or None, option="rounds")
        iterations = span(asked.text("iterations") or None, option="iterations")
        return select(run, one.part.name, rounds=rounds, iterations=iterations).data_set
    place = one.part.place
    here = everywhere.at(Span(place.round, place.round), Span(place.iteration, place.iteration)).data_set
    # Of an iteration that is not current, where others are, its own part alone is known.
    return here if here.parts else DataSet(parts=(one.part,))


def chart_of(one: OneRollout) -> dict[str, Any] | None:
    """What the critic expected at each token, and what came."""
    found: dict[str, list[float]] = {
        name: [token[name] for token in one.tokens] for name in ("value", "return") if name in one.names
    }
    return lines("Value and return by token", "token of the response", found) if found else None


def components_of(run: Run, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of the score with their weights, then the rewards that training never sees."""
    rewards = run.config.rewards
    inside = [
        {"name": name, "value": row.get(f"score_{name}"), "weight": reward.weight, "is_held_out": False}
        for name, reward in rewards.items()
    ]
    outside = [
        {
            "name": name,
            "value": row.get(f"held_out_{name}", row.get(f"score_{name}")),
            "weight": None,
            "is_held_out": True,
        }
        for name in run.config.evaluation.held_out_rewards
    ]
    return [part for part in [*inside, *outside] if part["value"] is not None]


def of_the_prompt(run: Run, one: OneRollout, everywhere: Selection) -> dict[str, Any]:
    """The other responses to the prompt: in the same place, and in all other places, the reference's first."""
    own = Query(conditions=(Words(text=one.row["prompt_id"], column="prompt_id"),))
    sampled_by = one.row.get("sampled_by")
    is_training = one.part.name == "rollouts"
    found = everywhere.data_set.matching(own)
    start = max(0, found.found - MOST_ANSWERS)
    names = ["rollout_id", "round", "iteration", "score", "length", "response", "sampled_by"]
    # The first answers are the reference's, whatever else is cut off.
    answers = found.window(0, 1).dicts(names) if start else []
    answers += found.window(start, found.found).dicts(names)
    for answer in answers:
        first = (answer["round"], answer["iteration"]) == (1, 1)
        answer["is_reference"] = answer.get("sampled_by") == "reference" or (first and is_training)
    answers.sort(key=lambda answer: not answer["is_reference"])
    place = (one.part.place.round, one.part.place.iteration)
    siblings = [
        answer
        for answer in answers
        if (answer["round"], answer["iteration"]) == place and answer.get("sampled_by") == sampled_by
    ]
    scores = {answer["score"] for answer in siblings if answer.get("score") is not None}
    return {
        "answers": answers,
        "answers_left_out": max(0, found.found - len(answers)),
        "siblings": siblings,
        "no_spread": len(siblings) > 1 and len(scores) == 1,
        "is_compared": run.config.algorithm in COMPARES_SAMPLES and is_training,
    }


def origin_of(run: Run, one: OneRollout, attempt: str) -> dict[str, Any]:
    """Where the rollout came from, and the commands that show and replay it."""
    manifest = Manifest.read(one.part.ref.directory)
    place = one.part.place
    rounds, rollout_id = f"rounds {environment.home_option(run.home)}", shlex.quote(one.row["rollout_id"])
    # In an id of an evaluation's response no iteration is named, by which show could find it.
    if place.iteration:
        of_attempt = f" --attempt {attempt}" if attempt else ""
        commands = [f"{rounds}show {rollout_id} --run {run.name}{of_attempt}"]
    else:
        search = shlex.quote(f"rollout_id:{quoted(one.row['rollout_id'])}")
        commands = [f"{rounds}rollouts {run.name} --data {one.part.name} --round {place.round} --where {search}"]
    if manifest.stage in STAGES.replayed:
        commands.append(f"{rounds}replay {run.name} --round {place.round} --iteration {place.iteration}")
    return {
        "stage": manifest.stage,
        "fingerprint": manifest.fingerprint,
        "policy_version": one.row.get("policy_version"),
        "seed": manifest.recipe["seed"],
        "commands": commands,
    }
