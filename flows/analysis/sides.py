"""The two sides of a comparison: where in which run the rows of each come from."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flows.query import LATEST, Query, Selection, Span, Words, select, span
from flows.runs import Run
from tasks.errors import ConfigError, RunError
from tasks.store import HELD_OUT, Manifest

COMPONENT = "score_"
NO_PLACE = "not a place; write RUN, RUN:ROUND, RUN:ROUND.ITERATION, or ROUND.ITERATION"
_NUMBERS = r"\d{1,9}(?:-\d{1,9})?|all"
_PLACE = rf"(?P<rounds>{_NUMBERS})?(?:\.(?P<iterations>{_NUMBERS}))?(?:@(?P<attempt>[0-9a-f]+))?"
# A name may hold what a place may not, such as the colon of a directory.
_WRITTEN = re.compile(rf"(?P<name>.+):(?P<place>{_PLACE})")
_OF_THE_LATEST = re.compile(rf"(?=.*\.)(?P<place>{_PLACE})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A place in a run: the evaluation of a round, rollouts of iterations, or an attempt at them."""

    run: Run
    rounds: Span = LATEST
    iterations: Span | None = None
    """None is the evaluation, whose prompts are held out, and the same in every round."""
    attempt: str | None = None
    place: str = ""
    """As it was written."""

    @property
    def data(self) -> str:
        """The data set that the side's rows are of."""
        return "evaluation" if self.iterations is None and self.attempt is None else "rollouts"

    def select(self) -> Selection:
        """The committed data sets of the side."""
        return select(
            self.run, self.data, rounds=self.rounds, iterations=self.iterations or LATEST, attempt=self.attempt
        )

    def held_out_columns(self) -> dict[str, str]:
        """The run's held-out rewards, and the column of each: rollouts have the audit's, an evaluation its own."""
        mark = COMPONENT if self.data == "evaluation" else HELD_OUT
        return {name: mark + name for name in self.run.config.evaluation.held_out_rewards}


def side_of(text: str, find: Callable[[str | None], Run]) -> Side:
    """``RUN`` or ``RUN:ROUND`` for the evaluation of a round, by default the last; ``RUN:ROUND.ITERATION``, or
    ``ROUND.ITERATION`` of the latest run, for rollouts.

    A round or an iteration may be a range, as in ``2-3``, or ``all``; ``@ID`` behind it names an attempt. A run that is
    called like a place is written with a colon behind its name.

    Raises:
        ConfigError: the text cannot be read.
        RunError: there is no such run.
    """
    match = _OF_THE_LATEST.fullmatch(text) or _WRITTEN.fullmatch(text)
    if match is None:
        return Side(run=_run_called(text, find), place=text)
    iterations = match["iterations"]
    return Side(
        run=find(match.groupdict().get("name")),
        rounds=span(match["rounds"], option="round"),
        iterations=None if iterations is None else span(iterations, option="iteration"),
        attempt=match["attempt"],
        place=text,
    )


def _run_called(text: str, find: Callable[[str | None], Run]) -> Run:
    """The run of a text that names no place in it."""
    if not text:
        raise ConfigError(f"{text!r}: {NO_PLACE}")
    try:
        return find(text)
    except RunError as error:
        # A directory's name may have a colon too, but this is none.
        if ":" in text:
            raise ConfigError(f"{text}: {NO_PLACE}") from error
        raise


def conditions_of(side: Side, query: Query) -> Query:
    """A search's conditions; of an evaluation the policy's rows are meant, unless the search says whose."""
    is_said = any(condition.column == "sampled_by" for condition in query.conditions)
    own = () if side.data != "evaluation" or is_said else (Words(text="policy", column="sampled_by"),)
    return Query(conditions=(*query.conditions, *own))


def reward_models_of(run: Run, selection: Selection) -> set[str]:
    """The digests of the reward models that gave the scores, as far as the manifests say."""
    found: set[str] = set()
    for part in selection.parts:
        manifest = Manifest.read(part.ref.directory)
        inputs: list[Mapping[str, Any]] = [manifest.recipe["inputs"]]
        scored = manifest.input_paths.get("scored", [])
        for path in [scored] if isinstance(scored, str) else scored:
            made = Manifest.read_if_sound(run.root / path)
            inputs += [] if made is None else [made.recipe["inputs"]]
        found |= {str(own["reward_model"]) for own in inputs if own.get("reward_model")}
    return found
