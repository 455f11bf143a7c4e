"""A whole run whose models are trained by two processes, one of which is killed in each kind of training."""

import os

import pytest
from conftest import ROOT, TINY, overrides

# Imported by every process: the second of those that train together dies at its first attempt of each stage.
KILLED_ONCE = """
import sys

if "tasks.worker.rank" in sys.orig_argv:
    import os, pathlib, signal
    import tasks.contract

    run_stage = tasks.contract.run_stage

    def killed_once(name, context, *others):
        noted = pathlib.Path(os.environ["NOTED"]) / f"killed-{name}"
        if context.rank == 1 and not noted.exists():
            noted.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run_stage(name, context, *others)

    tasks.contract.run_stage = killed_once
"""


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_once_in_each_training_has_the_digests_of_one_process(home, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(KILLED_ONCE)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "NOTED": str(tmp_path)}
    own = {"rounds": 1, "execution.shares": 2, "execution.device": "cpu", "checkpoint_every": 2}
    home.rounds("run", TINY, "--name", "one-process", *overrides(own), env=env)
    told = home.rounds(
        "run", TINY, "--name", "two-processes", *overrides({**own, "execution.train_processes": 2}), env=env
    )
    assert home.digests("two-processes") == home.digests("one-process")
    trained = {"warm_up", "train_reward_model", "critic_pretraining", "update_policy"}
    assert {path.name for path in tmp_path.glob("killed-*")} == {f"killed-{stage}" for stage in trained}
    assert told.stderr.count("process 2 of 2 that train together was killed by signal SIGKILL") == len(trained)
