"""The lock of an accelerator, between real processes; the key is made up, for no device is needed to wait for one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tasks.errors import RunError
from tasks.worker import turns as devices
from tasks.worker.turns import alone_on, device_key, lock_directory

KEY = "cuda-made-up"
# Takes the device as one stage after another, with nothing in between, and says when it has it.
HOLDER = """
import sys, time
from pathlib import Path
from tasks.worker.turns import alone_on
while True:
    with alone_on({key!r}, lambda event: None, user="stage-r1 of /runs/other", directory=Path({directory!r})):
        print("has it", flush=True)
        time.sleep({seconds})
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that uses the device; ended with the test."""
    started = []

    def start(seconds):
        code = HOLDER.format(key=KEY, directory=str(tmp_path), seconds=seconds)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "has it\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_stage_at_a_time_and_who_waits_says_for_whom(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "TELL_S", 0.05)
    process = holder(60)
    events = []

    def report(event):
        events.append(event)
        if len(events) == 3:
            # The kernel lets go of what a killed process held.
            process.send_signal(signal.SIGKILL)

    with alone_on(KEY, report, user="mine", directory=tmp_path):
        assert process.wait(10) == -signal.SIGKILL
        text = (tmp_path / f"{KEY}.lock").read_text()
    assert events[0] == {"warning": f"waits for {KEY}, which stage-r1 of /runs/other (process {process.pid}) uses"}
    # Each of these counts as progress, or a stage that waits its turn would be taken for hung.
    assert all(event["unit"] == f"s of waiting for {KEY}" and event["done"] == event["total"] for event in events[1:])
    assert text == f"mine (process {os.getpid()})"


def test_whoever_waits_is_next_though_the_other_run_takes_it_again_at_once(holder, tmp_path):
    holder(0.2)
    for _ in range(3):
        began = time.monotonic()
        with alone_on(KEY, lambda event: None, user="mine", directory=tmp_path):
            assert time.monotonic() - began < 5
        time.sleep(0.05)


def test_other_devices_do_not_wait(holder, tmp_path):
    holder(60)
    events = []
    for key in ("cuda-another", None):
        with alone_on(key, events.append, user="mine", directory=tmp_path):
            pass
    assert events == []


def test_it_is_let_go_when_a_stage_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), alone_on(KEY, print, user="mine", directory=tmp_path):
        raise ZeroDivisionError
    events = []
    with alone_on(KEY, events.append, user="mine", directory=tmp_path):
        assert events == []


def test_the_cpu_is_for_everybody():
    assert device_key(torch.device("cpu")) is None
    assert device_key(torch.device("mps")) == "mps"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_has_one_key_however_it_is_named():
    key = device_key(torch.device("cuda"))
    assert key == device_key(torch.device("cuda:0"))
    assert key.startswith("cuda-")


def test_locks_lie_in_a_directory_of_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    directory = lock_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert lock_directory() == directory
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(RunError, match="belongs to somebody else"):
        lock_directory()
