"""A run without Prefect, in one process that can be killed at a chosen point and started again at no cost.

    python direct_run.py CONFIG HOME NAME [--kill-at N … | --kill-after SECONDS … | --kill-each FIRST LAST]

Forks a child for each kill, which dies by SIGKILL at the Nth time that it flushes or renames something (or after so many
seconds), and in the end one that goes through. Prints what each child came to as JSON lines: the points that it passed,
or null where it was killed. With --kill-each, each point from the first to the last has a run of its own, ``NAME-POINT``.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from threading import Lock

import torch

from flows.config.reading import load_config
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.round import rlhf_round
from flows.runs.workspace import create_or_open
from tasks.contract.execution import execute
from tasks.contract.resident import ResidentModels
from tasks.store import background, store


def run_directly(home, name, config, after_stage=lambda call: None):
    """All rounds, stage after stage."""
    run = create_or_open(home, name)
    with run.locked():
        run.set_config(config)
        run.store.sweep()
        config = with_code_digests(config)
        models = ResidentModels()

        def caller(stage, place, settings, **inputs):
            call = stage_call(run, config, stage, place, settings, run.generations)
            ref = execute(call.with_inputs(inputs), models, lambda event: None)
            after_stage(call)
            return ref

        state = None
        externals = external_models(config, run.home)
        for number in range(1, config.rounds + 1):
            state = rlhf_round(caller, config, number, state, externals)
    return run


def die_at(point):
    """Count flushes and renames, the moments at which a crash could leave something half done; die before one of them."""
    passed = [0]
    flush, rename = store.flush, Path.rename
    one_at_a_time = Lock()

    def count():
        with one_at_a_time:
            passed[0] += 1
            if passed[0] == point:
                os.kill(os.getpid(), signal.SIGKILL)

    def counting_flush(path):
        count()
        flush(path)

    def counting_rename(self, target):
        count()
        return rename(self, target)

    store.flush = background.flush = counting_flush
    Path.rename = counting_rename
    return passed


def child(home, name, config, point=None, seconds=None):
    """One attempt in a process of its own; the points that it passed, None if it was killed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        if seconds is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, seconds)
        passed = die_at(point)
        try:
            run_directly(home, name, config)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os.write(write_end, str(passed[0]).encode())
        os._exit(0)
    os.close(write_end)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read_end) as stream:
        text = stream.read()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit(f"an attempt failed instead of being killed (status {status})")
    return int(text) if text else None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("home", type=Path)
    parser.add_argument("name")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--kill-at", nargs="*", type=int, default=[])
    parser.add_argument("--kill-after", nargs="*", type=float, default=[])
    parser.add_argument("--kill-each", nargs=2, type=int, metavar=("FIRST", "LAST"))
    arguments = parser.parse_args()
    # Threads that were there before a fork are not there after it.
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.set)
    home, name = arguments.home, arguments.name
    if arguments.kill_each:
        first, last = arguments.kill_each
        for point in range(first, last + 1):
            print(json.dumps(child(home, f"{name}-{point}", config, point=point)), flush=True)
            child(home, f"{name}-{point}", config)
        return
    for point in arguments.kill_at:
        print(json.dumps(child(home, name, config, point=point)), flush=True)
    for seconds in arguments.kill_after:
        print(json.dumps(child(home, name, config, seconds=seconds)), flush=True)
    print(json.dumps(child(home, name, config)), flush=True)


if __name__ == "__main__":
    main()
