"""The worker as its supervisor sees it: a real child process, real stages, real deaths."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError
from small_world import SAMPLING, generate, make_world

import tasks
from ppo_core import NonFiniteError
from tasks.config.data import DataConfig, FromScratchConfig, PrepareDataConfig, Source
from tasks.config.execution import ExecutionConfig
from tasks.config.rewards import FunctionReward, ScoreRolloutsConfig
from tasks.contract.call import StageCall
from tasks.contract.failures import StageError, classify, describe, is_a_service_s, worth_retrying
from tasks.errors import DamagedError, TransientError, UnhealthyError, UserError
from tasks.store.manifest import Manifest, Place, Ref
from tasks.store.store import Store
from tasks.worker.protocol import decode_call, encode_call
from tasks.worker.supervisor import Supervisor


def a_call(root: Path, *, prompts=None, count=8):
    source = prompts or Source(function="flows.presets.quickstart:prompts", arguments={"count": count})
    config = PrepareDataConfig(
        data=DataConfig(
            prompts=(source,),
            texts=(Source(function="flows.presets.quickstart:texts", arguments={"count": 20}),),
            num_held_out_prompts=2,
        ),
        from_scratch=FromScratchConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1),
        response_tokens=8,
    )
    return StageCall(
        stage="prepare_data",
        place=Place(1),
        settings=config.model_dump(mode="json"),
        seed=0,
        run_root=str(root),
        execution=ExecutionConfig(device="cpu").model_dump(mode="json"),
        inputs={"base": None},
    )


def run(worker, call, *, timeout_s=None, is_cancelled=lambda: False, events=None):
    report = events.append if events is not None else lambda event: None
    return worker.run(call, report=report, timeout_s=timeout_s, is_cancelled=is_cancelled)


@pytest.fixture
def worker(tmp_path):
    worker = Supervisor(tmp_path / "worker.log")
    yield worker
    worker.close()


def test_a_stage_is_executed_committed_and_reported(worker, tmp_path):
    events = []
    call = a_call(tmp_path)
    ref = run(worker, call, events=events)
    assert Store(tmp_path).find(call.recipe()) == ref
    assert Manifest.read(ref.directory).stage == "prepare_data"
    assert events
    assert {"done", "total", "unit", "tokens"} <= set(events[0])


def test_the_child_executes_one_stage_after_another(worker, tmp_path):
    run(worker, a_call(tmp_path))
    child = worker._process.pid
    run(worker, a_call(tmp_path, count=9))
    assert worker._process.pid == child


def test_a_users_mistake_comes_back_as_its_own_sentence(worker, tmp_path):
    missing = Source(path=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(StageError, match=r"nowhere\.jsonl does not exist") as caught:
        run(worker, a_call(tmp_path, prompts=missing))
    assert caught.value.kind == "user"
    assert not worth_retrying(caught.value)
    # The worker lives on.
    run(worker, a_call(tmp_path))


REWARD = """
import json

def verdict(row):
    return json.loads(row["prompt"])

def broken(prompts, responses, rows):
    return [verdict(row) for row in rows]
"""


def test_a_reward_function_that_raises_is_told_with_its_file_and_line_and_the_log_has_the_whole_traceback(
    tmp_path, monkeypatch
):
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(tasks.__file__).parents[1]))
    bench, base, data, _ = make_world(tmp_path)
    (rollouts,) = generate(bench, base, data)
    config = ScoreRolloutsConfig(
        rewards={"own": FunctionReward(function="my_reward:broken")}, temperature=SAMPLING.temperature
    )
    call = StageCall(
        stage="score_rollouts",
        place=Place(1, 1, 0),
        settings=config.model_dump(mode="json"),
        seed=0,
        run_root=str(tmp_path / "run"),
        execution=ExecutionConfig(device="cpu").model_dump(mode="json"),
        inputs={"critic": None, "reward_model": None, "external": {}}
        | {"rollouts": rollouts, "policy": base, "reference": base},
    )
    log = tmp_path / "worker.log"
    worker = Supervisor(log)
    with pytest.raises(StageError) as caught:
        run(worker, call)
    worker.close()
    assert caught.value.kind == "user"
    # Its own line, not that in the library which raised.
    assert caught.value.message == (
        "rewards.own: my_reward:broken raised JSONDecodeError: Expecting value: line 1 column 1 (char 0) "
        f"({tmp_path / 'my_reward.py'}, line 5); mend it and run again; the whole traceback is in {log}"
    )
    written = log.read_text()
    for step in ("line 8, in broken", "line 5, in verdict", "in raw_decode", "json.decoder.JSONDecodeError: Expecting"):
        assert step in written


def test_a_killed_child_is_a_transient_error_and_the_next_call_gets_a_new_one(worker, tmp_path):
    run(worker, a_call(tmp_path))
    child = worker._process.pid
    os.kill(child, signal.SIGSTOP)
    threading.Timer(0.3, os.killpg, (child, signal.SIGKILL)).start()
    with pytest.raises(StageError, match="was killed by signal SIGKILL") as caught:
        run(worker, a_call(tmp_path, count=9))
    assert worth_retrying(caught.value)
    run(worker, a_call(tmp_path, count=9))
    assert worker._process.pid != child


def test_a_child_that_the_kernel_killed_for_its_memory_is_told_from_one_that_somebody_killed(
    worker, tmp_path, monkeypatch
):
    counter = tmp_path / "vmstat"
    counter.write_text("pgfault 9\noom_kill 3\n")
    monkeypatch.setattr("tasks.worker.supervisor.VMSTAT", counter)
    run(worker, a_call(tmp_path))
    child = worker._process.pid
    os.kill(child, signal.SIGSTOP)
    counter.write_text("pgfault 99\noom_kill 4\n")
    threading.Timer(0.3, os.killpg, (child, signal.SIGKILL)).start()
    with pytest.raises(StageError, match="was killed by signal SIGKILL, since the machine's memory ran out") as caught:
        run(worker, a_call(tmp_path, count=9))
    assert caught.value.kind == "memory"
    # That one is counted now: the next child was not killed for its memory.
    run(worker, a_call(tmp_path, count=9))
    child = worker._process.pid
    os.kill(child, signal.SIGSTOP)
    threading.Timer(0.3, os.killpg, (child, signal.SIGKILL)).start()
    with pytest.raises(StageError) as caught:
        run(worker, a_call(tmp_path, count=10))
    assert caught.value.kind == "transient"


def test_a_hung_child_is_killed_after_the_time_out(worker, tmp_path):
    run(worker, a_call(tmp_path))
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(StageError, match=r"no progress for 0\.5 s") as caught:
        run(worker, a_call(tmp_path, count=9), timeout_s=0.5)
    assert worth_retrying(caught.value)
    assert worker._process.poll() is not None


def test_a_run_that_says_nothing_has_a_limit():
    assert ExecutionConfig().stage_timeout_s == 7200


def test_cancelling_kills_the_child_and_refuses_further_calls(worker, tmp_path):
    run(worker, a_call(tmp_path))
    os.kill(worker._process.pid, signal.SIGSTOP)
    threading.Timer(0.3, worker.cancel).start()
    with pytest.raises(StageError, match="cancelled") as caught:
        run(worker, a_call(tmp_path, count=9))
    assert caught.value.kind == "cancelled"
    assert not worth_retrying(caught.value)
    with pytest.raises(StageError, match="cancelled"):
        run(worker, a_call(tmp_path))


def test_a_cancelled_flow_run_cancels_the_stage(worker, tmp_path):
    with pytest.raises(StageError, match="cancelled"):
        run(worker, a_call(tmp_path), is_cancelled=lambda: True)


def test_the_child_ends_when_its_supervisor_is_gone(worker, tmp_path):
    run(worker, a_call(tmp_path))
    child = worker._process
    child.stdin.close()
    assert child.wait(timeout=10) == 0


def test_closing_leaves_no_process(tmp_path):
    worker = Supervisor(tmp_path / "worker.log")
    run(worker, a_call(tmp_path))
    child = worker._process.pid
    worker.close()
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_call_survives_the_way_to_the_child(tmp_path):
    inputs = {"one": Ref("/a", "1"), "many": [Ref("/b", "2"), Ref("/c", "3")], "none": None}
    by_name = {"named": {"path": Ref("/d", "4"), "digest": Ref("/e", "5")}, "nothing": {}}
    call = a_call(tmp_path).with_inputs({**inputs, **by_name})
    assert decode_call(encode_call(call)) == call


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("a bug"), "defect"),
        (OSError(5, "Input/output error"), "transient"),
        (OSError(28, "No space left on device"), "refused"),
        (FileNotFoundError(2, "No such file"), "refused"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "refused"),
        (SafetensorError("Error while deserializing header: invalid JSON"), "defect"),
        (OSError("No such device (os error 19)"), "transient"),
        (OSError(12, "Cannot allocate memory"), "memory"),
        # What looks like an error of the system, and is none.
        (RuntimeError("I/O error: No space left on device (os error 28)"), "defect"),
        (ValueError("[Errno 5] Input/output error"), "defect"),
        (KeyError("Error code 12 (Cannot allocate memory)"), "defect"),
        (ValueError("the answer is: out of memory"), "defect"),
        (UserError("'[Errno 28] No space left on device' is no number"), "user"),
        (TransientError("the service said: [Errno 28] No space left on device"), "transient"),
        (NonFiniteError("loss nan"), "refused"),
        (UnhealthyError("entropy 0"), "refused"),
        (DamagedError("a file has changed"), "refused"),
        (ConnectionResetError("peer"), "transient"),
        (TimeoutError("slow"), "transient"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried. Error code 12 (Cannot allocate)"),
            "memory",
        ),
        (RuntimeError("CUDA error: device lost"), "transient"),
        (ArithmeticError("loss nan"), "defect"),
    ],
)
def test_errors_are_told_apart_by_who_has_to_act(error, kind):
    assert classify(error) == kind


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device", "/run/x"), "No space left on device (/run/x); make room on that disk"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on device; make room on that",
        ),
        (RuntimeError("No space left on device (os error 28)"), "RuntimeError: No space left on device (os error 28)"),
        (
            OSError(30, "Read-only file system", "/run/x"),
            "Read-only file system (/run/x); make the file system writable",
        ),
        (DamagedError("a file has changed"), "a file has changed"),
        (ValueError("a bug"), "ValueError: a bug"),
    ],
)
def test_what_the_machine_refuses_is_told_with_the_next_move(error, text):
    assert describe(error).startswith(text)


class APITimeoutError(Exception):
    """As HTTP clients name theirs."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("slow"), True),
        (ConnectionRefusedError(111, "refused"), True),
        (APITimeoutError("slow"), True),
        (FileNotFoundError(2, "No such file"), False),
        (KeyError("answer"), False),
        (KeyError("[Errno 110] Connection timed out"), False),
    ],
)
def test_a_service_that_does_not_answer_is_no_mistake_of_the_function(error, expected):
    assert is_a_service_s(error) is expected
    assert (classify(error) == "transient") is expected


def test_less_memory_is_another_call_of_the_same_recipe(tmp_path):
    call = a_call(tmp_path)
    smaller = call.with_smaller_micro_batch(4)
    assert smaller.execution["micro_batch_tokens"] == call.execution["micro_batch_tokens"] // 4
    assert smaller.recipe().fingerprint == call.recipe().fingerprint


def test_a_worker_that_was_begun_and_never_asked_is_gone_at_once(tmp_path):
    worker = Supervisor(tmp_path / "worker.log")
    worker.begin()
    process = worker._process
    assert process.poll() is None
    worker.close()
    assert process.returncode == -signal.SIGKILL, "it was importing libraries that nobody needs"
