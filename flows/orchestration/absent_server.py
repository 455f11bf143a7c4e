"""What a run does while Prefect's server does not answer: it goes on, and tells later what it did.

Committed outputs are the truth, so telling is easy: the flow is run once the server is there, finds what was committed, and
shows it as one task.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.config import RunConfig
from flows.round import rlhf_round
from flows.runs import Run
from flows.server import auth_string, ensure_embedded, is_healthy, kept_alive, running_server
from flows.state import EnoughError, Externals, FirstStages, Output, RoundState, RunStage
from flows.terminal import Observer
from tasks.config import StageConfig
from tasks.contract import StageError, worth_retrying
from tasks.errors import TransientError
from tasks.store import Place

Made = TypeVar("Made")
Rlhf = Callable[[], None]


class _ServerAnswersError(Exception):
    """Not a mistake: ends the part of a run that goes without Prefect, before its next stage."""


def with_a_server(rlhf: Rlhf, run: Run, observer: Observer) -> None:
    """Run the flow; when its server is gone for good, run it again with the home's own: what is committed is found."""
    try:
        rlhf()
    except StageError:
        raise
    except Exception:
        url = PREFECT_API_URL.value() or ""
        if is_healthy(url):
            raise
        embedded = ensure_embedded(run.home)
        observer.server_lost(url, embedded)
        with told_to(run, embedded):
            rlhf()


def once_it_answers(
    rlhf: Rlhf,
    without: RunStage,
    finished_unseen: Callable[[Output | None, str], None],
    run: Run,
    config: RunConfig,
    externals: Externals,
    observer: Observer,
    *,
    num_stages: int | None,
) -> None:
    """Execute stages ``without`` Prefect until the home's server answers, and then run the flow.

    Where it does not answer even after the last stage, ``finished_unseen`` hears of the last report, and why. Of the run's
    stages only the first ``num_stages`` are wanted; None takes all.
    """
    observer.note("the Prefect server takes long to start; training begins, and is shown there later")
    while True:
        is_done, report = until_it_answers(without, run, config, externals, num_stages)
        try:
            url = ensure_embedded(run.home)
        except TransientError as error:
            if is_done:
                finished_unseen(report, str(error))
                return
        else:
            break
    observer.server_found(url)
    with told_to(run, url), kept_alive(run.home, url):
        with_a_server(rlhf, run, observer)


def until_it_answers(
    without: RunStage, run: Run, config: RunConfig, externals: Externals, num_stages: int | None
) -> tuple[bool, Output | None]:
    """Run rounds, looking for the server before each stage: whether all was done before it came, and the last report."""

    def unless_it_answers(stage: str, place: Place, config: StageConfig, **inputs: Any) -> Output:
        if running_server(run.home) is not None:
            raise _ServerAnswersError
        return without(stage, place, config, **inputs)

    call = FirstStages(unless_it_answers, num_stages)
    state: RoundState | None = None
    try:
        for number in range(1, config.rounds + 1):
            state = rlhf_round(call, config, number, state, externals)
            if call.is_done:
                break
    except _ServerAnswersError:
        return False, None
    except EnoughError:
        pass
    return True, None if state is None else state.report


def told_to(run: Run, url: str) -> AbstractContextManager[object]:
    """Have Prefect's clients talk to the home's own server."""
    return temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth_string(run.home)})


def retried(attempt: Callable[[], Made], retries: int) -> Made:
    """Try again what is worth it, as Prefect does with a task: after one second, then two, four …"""
    for number in range(retries):
        try:
            return attempt()
        except StageError as error:
            if not worth_retrying(error):
                raise
        time.sleep(2**number)
    return attempt()
