"""Reward functions of the user: what they are called with, and what they may return.

A function is ``(prompts, responses, rows) -> list[float]``. What else it wants to see of a response it asks for by having a
parameter of that name. It may be ``async``.
"""

import asyncio
import inspect
import json
import math
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from tasks.config.rewards import FunctionReward
from tasks.contract import is_a_service_s
from tasks.data import TOKEN_IDS, WITH_SPECIAL_TOKENS, reward_function
from tasks.errors import RewardError, TransientError, shorten
from tasks.models import Models
from tasks.scoring.scorer import Scorer
from tasks.store import Ref, Table
from tasks.text import decode_response

OURS = ("prompt", "response", "rollout_id", "prompt_id", "sample_index", "finish_reason")
"""What a row has besides the columns of the user's data; a column of the same name stays the user's."""


def function_scores(models: Models, field: str, import_path: str, rollouts: Table, policy: Ref) -> list[float]:
    """Scores by the Python function of the reward at ``field``, checked before anything is stored. The tokenizer is the
    policy's."""
    function, asked = reward_function(import_path, field=f"{field}.function")
    table = rollouts.select([*OURS, "extra"]).to_pylist()
    prompts, responses = [row["prompt"] for row in table], [row["response"] for row in table]
    rows = [{**row, **json.loads(row.pop("extra") or "{}")} for row in table]
    more: dict[str, Any] = {}
    if asked:
        more[TOKEN_IDS] = rollouts.column("response_token_ids").to_pylist()
    if WITH_SPECIAL_TOKENS in asked:
        tokenizer = models.policy_tokenizer(policy)
        more[WITH_SPECIAL_TOKENS] = [
            decode_response(tokenizer, ids, finished=False, special_tokens=True) for ids in more[TOKEN_IDS]
        ]
    where = f"{field}: {import_path}"
    try:
        returned = function(prompts, responses, rows, **{key: more[key] for key in asked})
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
    except Exception as error:
        raised = f"{where} raised {told(error, import_path)}"
        if is_a_service_s(error):
            raise TransientError(raised) from error
        raise RewardError(f"{raised}; mend it and run again") from error
    return numbers(returned, table, where=where)


def told(error: Exception, import_path: str) -> str:
    """The last line of an error's traceback, with the last file and line of it that are the function's own."""
    line = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    own = getattr(sys.modules.get(import_path.partition(":")[0]), "__file__", None)
    # The first step of them all is our call; where the function's module has none, it named a function of another one.
    steps = traceback.extract_tb(error.__traceback__)[1:]
    places = [step for step in steps if step.filename == own] or steps
    return f"{line} ({places[-1].filename}, line {places[-1].lineno})" if places else line


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def numbers(returned: Any, rows: list[dict[str, Any]], *, where: str) -> list[float]:
    """What a function returned as one finite number per row.

    Raises:
        RewardError: it is anything else; of single values, names the first by its rollout and counts the others.
    """
    # A set has no order, a mapping's items are its keys, and a text's are its letters, which may be digits.
    if isinstance(returned, str | bytes | Mapping | set | frozenset) or not hasattr(returned, "__iter__"):
        raise RewardError(f"{where} returned {shorten(returned)}, not a list of numbers; return one float per response")
    try:
        values = list(returned)
    except Exception as error:
        raise RewardError(
            f"{where} returned {shorten(returned)}, which is no list ({error}); return one float per response"
        ) from error
    if len(values) != len(rows):
        raise RewardError(f"{where} returned {len(values)} scores for {len(rows)} responses; return one per response")
    scores = [_number(value) for value in values]
    wrong = [row for row, score in enumerate(scores) if score is None or not math.isfinite(score)]
    if wrong:
        first, others = wrong[0], f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        advice = ", or 0 where it has nothing to say" if values[first] is None else ""
        raise RewardError(
            f"{where} returned {shorten(values[first])} for rollout {rows[first]['rollout_id']} "
            f"({rows[first]['response']!r:.60}){others}; mend it so that it returns a finite score for each{advice}"
        )
    return [score for score in scores if score is not None]


def _number(value: Any) -> float | None:
    """A number, also one of numpy's or torch's; None for anything else, texts that could be read as one among them."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


class FunctionScorer(Scorer[FunctionReward]):
    """Scores by a Python function of the user's."""

    def score(self, rollouts: Table) -> list[float]:
        return function_scores(self.models, self.field, self.reward.function, rollouts, self.policy)
