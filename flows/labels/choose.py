"""Which prompts and responses people are asked about: those that teach most, some at random, and some twice."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from flows.analysis.duplicates import LEAST_SHARED, jaccard, shingles_of
from flows.analysis.hacking import HELD_OUT, standardized
from flows.analysis.joined import NUMBER_OF_COPY
from flows.labels.tasks import LabelTask
from flows.query import DataSet
from tasks.errors import ConfigError
from tasks.store import digest_text

By = Literal["uncertainty", "disagreement", "gap", "random"]
WAYS: tuple[By, ...] = ("uncertainty", "disagreement", "gap", "random")
SHARE_AT_RANDOM = 0.1
"""Of the prompts, so that what is learned of them holds for all."""
SHARE_REPEATED = 0.05
"""Of the tasks, which each person is asked twice."""
Row = Mapping[str, Any]


def choose_tasks(rollouts: DataSet, *, prompts: int, candidates: int, by: By, seed: int) -> list[LabelTask]:
    """Tasks of committed rollouts; responses to a prompt are taken from all places that are given, later ones first.

    - ``uncertainty``: the score of the candidates is nearest to a tie, so that the reward model cannot tell them apart;
    - ``disagreement``: score and held-out rewards judge two candidates most differently;
    - ``gap``: the score of a candidate is highest above its held-out rewards;
    - ``random``: any.

    Raises:
        ConfigError: no prompt has two different responses, or what ``by`` needs is not there.
    """
    groups = different_responses(rows_of(rollouts, by))
    if not groups:
        raise ConfigError("no prompt has two different responses there; name more iterations, or add --generate")
    ranked = sorted(
        (chosen_of(rows, candidates, by=by, seed=seed) for rows in groups.values()),
        key=lambda found: (-found[0], digest_text(f"{seed} prompts {found[1][0]['prompt_id']}")),
    )
    at_random = 0 if by == "random" else round(SHARE_AT_RANDOM * min(prompts, len(ranked)))
    taught = min(prompts, len(ranked)) - at_random
    rest = sorted(ranked[taught:], key=lambda found: digest_text(f"{seed} rest {found[1][0]['prompt_id']}"))
    chosen = [(by, rows) for _, rows in ranked[:taught]] + [("random", rows) for _, rows in rest[:at_random]]
    # In an order that says nothing of why they were chosen.
    chosen.sort(key=lambda found: digest_text(f"{seed} order {found[1][0]['prompt_id']}"))
    tasks = [task_of(f"t{number:04d}", why, rows) for number, (why, rows) in enumerate(chosen, 1)]
    repeated = tasks[: math.ceil(SHARE_REPEATED * len(tasks))] if len(tasks) > 1 else []
    return [*tasks, *(replace(task, task_id=f"{task.task_id}-again", repeats=task.task_id) for task in repeated)]


def rows_of(rollouts: DataSet, by: By) -> list[dict[str, Any]]:
    """All rollouts with what they are chosen by: ``score``, and ``gap`` in standard deviations."""
    names = [name for name in rollouts.columns if name.startswith(HELD_OUT)]
    has_score = "score" in rollouts.columns
    if by in ("disagreement", "gap") and not (names and has_score):
        need = "names no held-out reward" if has_score else "has no scores yet"
        raise ConfigError(f"--by {by}: the run {need} to hold against the score; choose --by uncertainty or random")
    if by == "uncertainty" and not has_score:
        raise ConfigError("--by uncertainty: the rollouts have no scores yet; choose --by random")
    columns = ["rollout_id", "prompt_id", "prompt", "messages", "response", "round", "iteration"]
    rows = rollouts.search().dicts([*columns, *(["score", *names] if has_score else [])])
    rows = [row for row in rows if row["response"].strip()]
    if by in ("disagreement", "gap"):
        rows = [row for row in rows if all(row.get(name) is not None for name in ("score", *names))]
        scores = standardized([row["score"] for row in rows])
        others = [standardized([row[name] for row in rows]) for name in names]
        for i, row in enumerate(rows):
            row["gap"] = float(scores[i] - sum(other[i] for other in others) / len(others))
    elif by == "uncertainty":
        rows = [row for row in rows if row.get("score") is not None]
    return rows


def different_responses(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each prompt that has two and more responses which differ in more than a few words; later ones stay."""
    groups: dict[str, list[Row]] = {}
    seen: dict[str, list[frozenset[int]]] = {}
    for row in sorted(rows, key=lambda row: (-row["round"], -row["iteration"])):
        prompt = re.sub(NUMBER_OF_COPY, "", row["prompt_id"])
        shingles = shingles_of(row["response"])
        before = seen.setdefault(prompt, [])
        if any(shingles == own or jaccard(shingles, own) >= LEAST_SHARED for own in before):
            continue
        before.append(shingles)
        groups.setdefault(prompt, []).append(row)
    return {prompt: own for prompt, own in groups.items() if len(own) > 1}


def chosen_of(rows: Sequence[Row], candidates: int, *, by: By, seed: int) -> tuple[float, list[Row]]:
    """Candidates of one prompt, and how much they teach."""
    if by == "random":
        ranked = sorted(rows, key=lambda row: digest_text(f"{seed} candidate {row['rollout_id']}"))
        return 0.0, ranked[:candidates]
    if by == "uncertainty":
        ranked = sorted(rows, key=lambda row: row["score"])
        number = min(candidates, len(ranked))
        windows = [ranked[start : start + number] for start in range(len(ranked) - number + 1)]
        nearest = min(windows, key=lambda own: own[-1]["score"] - own[0]["score"])
        return nearest[0]["score"] - nearest[-1]["score"], nearest
    ranked = sorted(rows, key=lambda row: -row["gap"])
    chosen = evenly(ranked, candidates)
    return ranked[0]["gap"] - (ranked[-1]["gap"] if by == "disagreement" else 0.0), chosen


def evenly(rows: Sequence[Row], number: int) -> list[Row]:
    """So many rows of a sorted list, first and last among them."""
    if len(rows) <= number:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (number - 1))] for i in range(number)]


def task_of(task_id: str, why: str, rows: Sequence[Row]) -> LabelTask:
    first = rows[0]
    scores = tuple(row.get("score") for row in rows)
    return LabelTask(
        task_id=task_id,
        prompt=json.loads(first["messages"]) if first["messages"] else first["prompt"],
        responses=tuple(row["response"] for row in rows),
        rollout_ids=tuple(row["rollout_id"] for row in rows),
        scores=scores if all(score is not None for score in scores) else (),
        why=why,
    )
