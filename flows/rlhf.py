"""The flows as Prefect runs them: a run is a flow, a round its subflow, a stage a task."""

from prefect import flow
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.config import RunConfig
from flows.orchestration import interrupts_cancel
from flows.orchestration.absent_server import once_it_answers, with_a_server
from flows.orchestration.flow_run_log import FlowRunLog, LogDisplay, ToldToo
from flows.orchestration.session import Session
from flows.plan import Plan, external_models, what_is_seen, with_code_digests
from flows.round import rlhf_round
from flows.runs import Run
from flows.state import EnoughError, FirstStages, Output, RoundState, RunStage, TrainState
from flows.terminal import Observer
from tasks.contract import StageError
from tasks.worker import Workers


def run_rounds(
    run: Run,
    config: RunConfig,
    observer: Observer,
    workers: Workers,
    *,
    plan: Plan | None = None,
    awaits_server: bool = False,
    has_looked: bool = False,
) -> list[str]:
    """Execute all rounds of a run as a Prefect flow, the present one if there is one; before that without Prefect, if its
    server is awaited. Where a ``plan`` is given, its execution is also told to the log of the flow run, and it is all that
    is executed. ``has_looked`` says that a worker has looked at the models. Returns what could not be reported; raises
    ``StageError``. Long, since the flows within each other share one session."""
    run.remember(what_is_seen(run, config))
    config = with_code_digests(config)
    externals = external_models(config, run.home)
    session = Session(run, config, observer, workers, externals, has_looked=has_looked)
    num_stages = None if plan is None or plan.is_whole else len(plan.stages)

    def one_round(call: RunStage, number: int, before: RoundState | None) -> RoundState | None:
        with interrupts_cancel(workers):
            try:
                state = rlhf_round(call, config, number, before, externals)
            except EnoughError:
                state = None
            session.finish_round()
        return None if state is None else settled(state)

    def rlhf() -> None:
        context = FlowRunContext.get()
        session.belongs_to(context.flow_run.id if context and context.flow_run else None)
        if plan is None:
            all_rounds()
            return
        with LogDisplay(plan, FlowRunLog(run.name, echo=False)) as log:
            session.observer = ToldToo(observer, log)
            all_rounds()
            if log.reports:
                log.show_results(config)

    def all_rounds() -> None:
        call = FirstStages(session, num_stages)
        state: RoundState | None = None
        published = None
        for number in range(1, config.rounds + 1):
            in_round = flow(name="round", flow_run_name=f"{run.name}-round-{number}")(
                lambda n=number, s=state: one_round(call, n, s)
            )
            state = in_round()
            if state is not None:
                published = session.publish(number, state)
            if state is None or call.is_done:
                break
        if published is not None:
            # The last one has caught up on what earlier ones could not say.
            session.unreported = published.result()

    # A served run is a flow already; what it comes to is told by whoever serves it.
    is_served = FlowRunContext.get() is not None
    # Prefect joins a sleeping thread for a second at the end of each flow; the run's own lock tells a dead run.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            if is_served:
                rlhf()
            else:
                as_flow = flow(name="rlhf", flow_run_name=run.name, validate_parameters=False)(rlhf)
                if awaits_server:
                    told_later = (session.at_once, session.finished_unseen)
                    once_it_answers(as_flow, *told_later, run, config, externals, observer, num_stages=num_stages)
                else:
                    with_a_server(as_flow, run, observer)
        except StageError as error:
            if error.kind == "cancelled" and not is_served:
                session.tell_cancelled()
            raise
    if num_stages is None:
        run.finish_rerun()
    return session.unreported


def settled(state: RoundState) -> RoundState:
    """The round's state with futures replaced by what they came to: the next round is another flow."""

    def value(output: Output) -> Output:
        return output.result() if isinstance(output, PrefectFuture) else output

    return RoundState(
        data=value(state.data),
        reference=value(state.reference),
        reward_model=value(state.reward_model),
        train=TrainState(policy=value(state.train.policy), critic=value(state.train.critic)),
        report=value(state.report),
    )
