"""Several workers behind one interface: how they are dealt, and what becomes of the others when one of them dies."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_worker import a_call

from tasks import environment
from tasks.config.execution import ExecutionConfig
from tasks.contract.failures import StageError
from tasks.store.manifest import Place, Ref
from tasks.worker import local_pool
from tasks.worker.dealer import FIRST, Dealer, Request
from tasks.worker.pool import Pool, samples_ahead

PATIENCE_S = 30.0


# Who gets a worker


@given(
    workers=st.integers(1, 4),
    steps=st.lists(st.tuples(st.booleans(), st.one_of(st.none(), st.integers(0, 5)))),
    data=st.data(),
)
def test_no_shard_waits_while_a_worker_is_idle_and_no_worker_has_two_requests(workers, steps, data):
    dealer, asked, busy = Dealer(workers), [], []
    for is_return, shard in steps:
        if is_return and busy:
            done = busy.pop(data.draw(st.integers(0, len(busy) - 1)))
            asked.remove(done)
            dealer.give_back(done.worker)
        else:
            asked.append(dealer.ask(Request(shard)))
        busy = [request for request in asked if request.worker is not None]
        waiting = [request for request in asked if request.worker is None]
        taken = [request.worker for request in busy]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(workers))
        assert all(request.has_worker.is_set() for request in busy)
        if any(request.shard is not None for request in waiting):
            assert len(taken) == workers
        if any(request.shard is None for request in waiting):
            assert FIRST in taken
        assert all(request.worker == FIRST for request in busy if request.shard is None)


def test_a_shard_goes_on_where_its_models_are_and_elsewhere_rather_than_wait():
    dealer = Dealer(2)
    generated = [dealer.ask(Request(shard)) for shard in (0, 1)]
    assert [request.worker for request in generated] == [0, 1]
    for worker in (0, 1):
        dealer.give_back(worker)
    # Whichever comes first.
    assert [dealer.ask(Request(1)).worker, dealer.ask(Request(0)).worker] == [1, 0]
    dealer.give_back(0)
    elsewhere = dealer.ask(Request(1))
    assert elsewhere.worker == 0
    dealer.give_back(1)
    dealer.give_back(0)
    assert dealer.ask(Request(1)).worker == 0, "that is where it was last"


def test_of_those_that_wait_an_idle_worker_takes_what_only_it_may_then_what_it_has_models_for_then_the_oldest():
    dealer = Dealer(2)
    held = [dealer.ask(Request(shard)) for shard in (0, 1)]
    other, own, for_the_first = dealer.ask(Request(3)), dealer.ask(Request(2)), dealer.ask(Request(None))
    assert [request.worker for request in (other, own, for_the_first)] == [None, None, None]
    dealer.give_back(held[0].worker)
    assert for_the_first.worker == 0
    dealer.give_back(0)
    assert own.worker == 0, "shard 2 is at home at the first of two"
    dealer.give_back(0)
    assert other.worker == 0, "nobody else waits"


def test_shards_leave_the_first_worker_to_what_has_no_other_where_they_may():
    dealer = Dealer(3)
    held = dealer.ask(Request(2))
    assert held.worker == 2
    assert dealer.ask(Request(5)).worker == 1


def test_the_earliest_iteration_comes_first_and_what_is_ahead_leaves_the_first_worker_to_the_next_update():
    dealer = Dealer(2)
    rollouts = dealer.ask(Request(0, (1, 2), is_ahead=True))
    assert rollouts.worker == 1
    more = dealer.ask(Request(1, (1, 2), is_ahead=True))
    scores = dealer.ask(Request(1, (1, 1)))
    assert (more.worker, scores.worker) == (None, FIRST)
    dealer.give_back(FIRST)
    assert more.worker is None, "the update of iteration 1 will need it at once"
    update = dealer.ask(Request(None, (1, 1)))
    assert update.worker == FIRST
    dealer.updated((1, 1))
    dealer.give_back(FIRST)
    assert more.worker == FIRST, "now the next update waits for these"
    assert dealer.ask(Request(2, (1, 3), is_ahead=True)).worker is None
    last, earlier = dealer.ask(Request(3, (1, 3))), dealer.ask(Request(5, (1, 2)))
    dealer.give_back(1)
    assert (last.worker, earlier.worker) == (None, 1)


def test_one_worker_does_what_is_ahead_too():
    assert Dealer(1).ask(Request(0, (1, 2), is_ahead=True)).worker == FIRST


@pytest.mark.parametrize(
    ("stage", "iteration", "made_at", "expected"),
    [
        ("generate_rollouts", 3, "round-001/iteration-002/update_policy", False),
        ("generate_rollouts", 3, "round-001/iteration-001/update_policy", True),
        ("generate_rollouts", 2, "round-001/warm_up", True),
        # What every round begins with, whatever made it.
        ("generate_rollouts", 1, "models/round-best", False),
        ("score_rollouts", 3, "round-001/iteration-001/update_policy", False),
    ],
)
def test_rollouts_of_an_earlier_policy_are_ahead_of_the_next_update(tmp_path, stage, iteration, made_at, expected):
    policy = Ref(str(tmp_path / made_at / "fingerprint"), "d")
    call = replace(shard_call(tmp_path, 0, iteration=iteration), stage=stage, inputs={"policy": policy})
    assert samples_ahead(call) is expected


def test_who_gives_up_waits_no_more_and_keeps_nobody_waiting():
    dealer = Dealer(1)
    held = dealer.ask(Request(0))
    assert dealer.take(Request(1), gives_up=lambda: True) is None
    dealer.give_back(held.worker)
    assert dealer.take(Request(2), gives_up=lambda: True) == 0


# A pool, whatever its members are


class Member:
    """A worker in this process: a stage is a function of its call."""

    def __init__(self, stage):
        self.stage = stage
        self.begun = self.cancelled = self.closed = 0

    def begin(self):
        self.begun += 1

    def run(self, call, *, report, timeout_s, is_cancelled):
        report({"done": 1, "total": 1, "unit": "rows"})
        return self.stage(call)

    def check_models(self, checks, *, timeout_s, is_cancelled):
        self.stage(checks)

    def preview(self, config, *, report, timeout_s):
        return {"asked": config}

    def cancel(self):
        self.cancelled += 1

    def close(self):
        self.closed += 1


def shard_call(root, shard, *, iteration=1):
    return replace(a_call(root), place=Place(1, iteration, shard))


def run(pool, call, *, events=None, is_cancelled=lambda: False):
    report = events.append if events is not None else lambda event: None
    return pool.run(call, report=report, timeout_s=None, is_cancelled=is_cancelled)


def test_shards_run_side_by_side_and_each_says_who_has_it(tmp_path):
    together = threading.Barrier(3, timeout=PATIENCE_S)

    def stage(call):
        together.wait()
        return Ref(call.label, "digest")

    pool = Pool([Member(stage) for _ in range(3)])
    told = {shard: [] for shard in range(3)}
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda n: run(pool, shard_call(tmp_path, n), events=told[n]), range(3)))
    assert [ref.path for ref in found] == ["prepare_data-r1.i1.s0", "prepare_data-r1.i1.s1", "prepare_data-r1.i1.s2"]
    assert [events[0] for events in told.values()] == [{"worker": 0}, {"worker": 1}, {"worker": 2}]
    assert all(events[1]["done"] == 1 for events in told.values())


def test_what_has_no_shard_is_the_first_ones(tmp_path):
    refuse = Member(lambda call: pytest.fail("not this one"))
    pool = Pool([Member(lambda call: call), refuse, refuse])
    for _ in range(3):
        assert run(pool, a_call(tmp_path)).stage == "prepare_data"
        pool.check_models(None, timeout_s=None, is_cancelled=lambda: False)
    assert pool.preview("this", report=lambda event: None, timeout_s=None) == {"asked": "this"}


@pytest.mark.parametrize(
    ("kind", "begun", "cancelled"), [("transient", 1, 0), ("memory", 1, 0), ("user", 0, 0), ("cancelled", 0, 1)]
)
def test_a_member_that_failed_is_free_again_and_replaced_if_another_attempt_follows(tmp_path, kind, begun, cancelled):
    def fail(call):
        raise StageError(kind, "no")

    members = [Member(fail), Member(fail)]
    pool = Pool(members)
    for _ in range(2):
        with pytest.raises(StageError, match="no"):
            run(pool, shard_call(tmp_path, 0))
    assert [member.begun for member in members] == [2 * begun, 0]
    assert [member.cancelled for member in members] == [2 * cancelled] * 2, "one that is cancelled cancels all"


def test_cancelling_ends_all_members_and_refuses_those_that_wait(tmp_path):
    cancelled = threading.Event()

    def until_cancelled(call):
        assert cancelled.wait(PATIENCE_S)
        raise StageError("cancelled", "the run was cancelled")

    class Cancellable(Member):
        def cancel(self):
            super().cancel()
            cancelled.set()

    members = [Cancellable(until_cancelled), Cancellable(until_cancelled)]
    pool = Pool(members)
    with ThreadPoolExecutor() as threads:
        calls = [threads.submit(run, pool, shard_call(tmp_path, shard)) for shard in range(4)]
        threading.Timer(0.2, pool.cancel).start()
        for call in calls:
            with pytest.raises(StageError, match="cancelled"):
                call.result(timeout=PATIENCE_S)
    assert all(member.cancelled for member in members)


def test_who_waits_hears_that_the_flow_run_was_cancelled(tmp_path):
    begun, ended = threading.Event(), threading.Event()

    def stage(call):
        begun.set()
        assert ended.wait(PATIENCE_S)
        return Ref("there", "digest")

    (member,) = members = [Member(stage)]
    pool = Pool(members)
    with ThreadPoolExecutor() as threads:
        held = threads.submit(run, pool, shard_call(tmp_path, 0))
        assert begun.wait(PATIENCE_S)
        with pytest.raises(StageError, match="cancelled"):
            run(pool, shard_call(tmp_path, 1), is_cancelled=lambda: True)
        assert member.cancelled
        ended.set()
        held.result(timeout=PATIENCE_S)


# Processes


def test_a_worker_that_is_killed_in_its_shard_is_replaced_and_the_others_go_on(tmp_path):
    pool = local_pool(tmp_path / "worker.log", ExecutionConfig(device="cpu", workers=2))
    try:
        pool.begin()
        first, second = (member._process.pid for member in pool._members)
        os.kill(second, signal.SIGSTOP)
        with ThreadPoolExecutor() as threads:
            robbed = threads.submit(run, pool, shard_call(tmp_path, 1))
            other = run(pool, shard_call(tmp_path, 0))
            os.killpg(second, signal.SIGKILL)
            with pytest.raises(StageError, match="was killed by signal SIGKILL") as caught:
                robbed.result(timeout=PATIENCE_S)
        assert caught.value.kind == "transient"
        assert str(tmp_path / "worker-2.log") in caught.value.message
        assert pool._members[0]._process.pid == first
        # Before anybody asks for it.
        assert pool._members[1]._process.pid != second
        assert pool._members[1]._process.poll() is None
        again = run(pool, shard_call(tmp_path, 1))
        # The stage's random draws know no shard.
        assert again.digest == other.digest
    finally:
        pool.close()
    assert all(member._process is None for member in pool._members)


# What sets one worker apart


def test_one_worker_has_the_environment_that_it_always_had(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert environment.of_worker(0, 1) == {}


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [None, "1", "2"]), ("5,GPU-a,7", [None, "GPU-a", "7"]), ("5,6", [None, "6", ""]), ("", [None, "", ""])],
)
def test_each_worker_but_the_first_sees_its_own_device_alone(monkeypatch, visible, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [environment.of_worker(number, 3).get("CUDA_VISIBLE_DEVICES") for number in range(3)] == expected


def test_what_is_whole_for_a_moment_goes_back_to_the_kernel_where_a_model_is_in_parts():
    kept = environment.worker_environment()["MALLOC_MMAP_THRESHOLD_"]
    whole, in_parts = (
        {**environment.worker_environment(), **environment.of_rank(0, in_parts=is_so)} for is_so in (0, 1)
    )
    assert whole["MALLOC_MMAP_THRESHOLD_"] == kept
    # Less than a layer.
    assert int(in_parts["MALLOC_MMAP_THRESHOLD_"]) <= 2**20 < int(kept)


def test_no_worker_is_told_how_many_threads_it_has(monkeypatch):
    # A sum over a tensor has a part for each thread, so that another number of threads rounds otherwise.
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for number in range(2):
        settings = environment.of_worker(number, 2)
        assert settings["OMP_WAIT_POLICY"] == "PASSIVE"
        assert not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & set(settings)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment.of_worker(0, 2)["OMP_WAIT_POLICY"] == "ACTIVE", "what the user has set wins"
