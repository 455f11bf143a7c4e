"""Runs on disk: whose they are, what they are called, and that only one process works on one."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.config.reading import load_config
from flows.runs.workspace import Run, create_or_open, find_run, list_runs
from tasks.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[2]
TINY = str(Path(__file__).parent / "tiny.yaml")


def tiny(*overrides):
    return load_config(TINY, overrides)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def a_run(home, name="run", **changes):
    run = create_or_open(home, name)
    run.set_config(tiny(*(f"{key}={value}" for key, value in changes.items())))
    return run


# One process at a time

HOLDS = """
import sys
from pathlib import Path
from flows.runs.workspace import Run
with Run(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(run):
    """A process that holds the run's lock until it is told to end, or killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run.root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_another_process_works_on_is_refused_with_whose_it_is(home):
    run = a_run(home)
    with another_process(run) as process:
        said = rf"run run is in progress in process {process.pid} on \S+ \(-c .*\); wait for it, or stop it first"
        for _ in range(2):
            # Being refused does not wipe out whose it is.
            with pytest.raises(RunError, match=said), run.locked():
                pytest.fail("locked twice")
            assert run.is_in_progress()
    with run.locked():
        pass


def test_the_lock_of_a_killed_process_is_free(home):
    run = a_run(home)
    with another_process(run) as process:
        process.kill()
        process.wait()
        assert f"process {process.pid} " in (run.root / "lock").read_text()
        assert not run.is_in_progress()
        with run.locked():
            assert f"process {os.getpid()} " in (run.root / "lock").read_text()
            assert str(process.pid) not in (run.root / "lock").read_text()


def test_a_lock_ends_with_its_block_also_by_an_error(home):
    run = a_run(home)
    assert not run.is_in_progress()

    def fails():
        with run.locked():
            assert run.is_in_progress()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not run.is_in_progress()
    assert (run.root / "lock").read_text() == ""


def test_locks_of_two_runs_are_two(home):
    with a_run(home, "one").locked(), a_run(home, "two").locked():
        pass


def test_asking_whether_a_run_is_in_progress_locks_nothing(home):
    run = a_run(home)
    assert not run.is_in_progress()
    assert not (run.root / "lock").exists()
    with run.locked():
        pass
    before = (run.root / "lock").stat().st_mtime_ns
    assert not run.is_in_progress()
    with run.locked():
        assert [run.is_in_progress() for _ in range(3)] == [True] * 3
    assert (run.root / "lock").stat().st_mtime_ns >= before


def test_a_question_at_the_wrong_moment_does_not_keep_a_run_from_starting(home):
    run = a_run(home)
    with (run.root / "lock").open("a+") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        release = threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN))
        release.start()
        with run.locked():
            assert run.is_in_progress()
        release.join()


# Names


@pytest.mark.parametrize("name", ["a", "7", "quick-start_2.1", "A" * 200])
def test_a_plain_name_is_a_run(home, name):
    run = create_or_open(home, name)
    assert (run.name, run.root, run.home) == (name, home / "runs" / name, home)
    assert run.root.is_dir()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "_x", "a/b", "../a", "a b", "ä", "a\n", "a:b", "a\\b"]
)
def test_a_name_that_is_no_plain_one_is_refused_and_nothing_is_made(home, name):
    with pytest.raises(RunError, match=r"use letters, digits, '\.', '_' and '-', and begin with a letter or digit"):
        create_or_open(home, name)
    assert not home.exists()


def test_opening_a_run_again_leaves_it_as_it_is(home):
    first = a_run(home, seed=5)
    again = create_or_open(home, "run")
    assert again.root == first.root
    assert again.config.seed == 5


def test_a_directory_of_somebody_elses_is_not_taken_for_a_run(home):
    other = home / "runs" / "mine"
    other.mkdir(parents=True)
    # An empty one is as good as none.
    create_or_open(home, "mine")
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"runs/mine is not a run: it has no run\.json; choose another --name"):
        create_or_open(home, "mine")
    assert (other / "thesis.txt").read_text() == "years of work"


# Finding one


def test_a_run_is_found_by_name_by_directory_and_as_the_latest(home, monkeypatch, tmp_path):
    for name in ("old", "new"):
        a_run(home, name)
    os.utime(home / "runs" / "old" / "run.json", (1, 1))
    assert find_run(home, None).name == "new"
    assert [run.name for run in list_runs(home)] == ["new", "old"]
    assert find_run(home, "old").root == home / "runs" / "old"
    assert find_run(tmp_path / "another home", str(home / "runs" / "old")).root == home / "runs" / "old"
    monkeypatch.chdir(home / "runs")
    found = find_run(tmp_path / "another home", "old")
    assert (found.name, found.root, found.home) == ("old", home / "runs" / "old", home)
    monkeypatch.chdir("old")
    assert find_run(tmp_path / "another home", ".").name == "old"


def test_the_run_that_was_worked_on_last_is_the_latest(home):
    for name in ("first", "second"):
        a_run(home, name)
    os.utime(home / "runs" / "second" / "run.json", (1, 1))
    assert find_run(home, None).name == "first"
    Run(home / "runs" / "second").set_config(tiny("seed=9"))
    assert find_run(home, None).name == "second"


def test_a_name_of_the_home_goes_before_a_directory_here(home, tmp_path, monkeypatch):
    a_run(home, "run")
    a_run(tmp_path / "elsewhere", "run")
    monkeypatch.chdir(tmp_path / "elsewhere" / "runs")
    assert find_run(home, "run").root == home / "runs" / "run"


def test_a_home_without_runs_says_how_to_start_one(home):
    with pytest.raises(RunError, match=r"home has no runs yet; start one with: rounds run quickstart"):
        find_run(home, None)
    assert list_runs(home) == []


def test_what_is_no_run_is_told(home, tmp_path):
    a_run(home)
    with pytest.raises(RunError, match=r"^nothing: no run of that name in .*home; rounds list shows the runs"):
        find_run(home, "nothing")
    (tmp_path / "data").mkdir()
    with pytest.raises(
        RunError, match=r"data is not a run's directory: it has no run\.json; rounds list shows the runs"
    ):
        find_run(home, str(tmp_path / "data"))
    (home / "runs" / "scraps").mkdir()
    with pytest.raises(RunError, match=r"^scraps: no run of that name"):
        find_run(home, "scraps")
    assert [run.name for run in list_runs(home)] == ["run"]


# What a run keeps


def test_a_run_keeps_its_configuration_and_when_it_began(home):
    before = time.time()
    run = a_run(home, **{"ppo.max_grad_norm": ".inf", "seed": 5})
    created = run.created_at
    assert before <= created <= time.time()
    assert run.config == tiny("ppo.max_grad_norm=.inf", "seed=5")
    run.set_config(tiny("seed=6"))
    assert run.config == tiny("seed=6")
    assert run.created_at == created


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"run\.json cannot be read .*; restore it, or remove it and run again"),
        ("[]", r"run\.json is not of this version's format; use the version that wrote it"),
        ('{"format": 2}', r"run\.json is not of this version's format; use the version that wrote it"),
        ("", r"run\.json cannot be read"),
    ],
)
def test_a_damaged_run_is_told_and_left_alone(home, text, message):
    run = a_run(home)
    (run.root / "run.json").write_text(text)
    with pytest.raises(RunError, match=message):
        _ = run.config
    with pytest.raises(RunError, match=message):
        run.set_config(tiny())
    assert (run.root / "run.json").read_text() == text


def test_a_stored_configuration_that_no_longer_fits_is_told_with_its_field(home):
    run = a_run(home)
    document = json.loads((run.root / "run.json").read_text())
    document["config"]["ppo"]["cliprang"] = 0.1
    (run.root / "run.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"run\.json: ppo\.cliprang: unknown key; did you mean ppo\.cliprange\?"):
        _ = run.config


def test_generations_count_how_often_a_place_was_forced(home):
    run = a_run(home)
    assert run.generations == {}
    run.raise_generations(["round-001/warm_up", "round-001/evaluate_policy"])
    run.raise_generations(["round-001/warm_up"])
    # On disk: whoever opens the run next sees them.
    assert Run(run.root).generations == {"round-001/warm_up": 2, "round-001/evaluate_policy": 1}


def test_what_a_rerun_forced_is_known_until_it_came_to_its_end(home):
    run = a_run(home)
    assert run.unfinished_rerun == []
    run.raise_generations(["round-001/warm_up", "round-001/evaluate_policy"])
    assert Run(run.root).unfinished_rerun == ["round-001/evaluate_policy", "round-001/warm_up"]
    run.finish_rerun()
    assert Run(run.root).unfinished_rerun == []
    assert Run(run.root).generations == {"round-001/warm_up": 1, "round-001/evaluate_policy": 1}


def test_a_run_is_empty_until_a_stage_commits(home):
    run = a_run(home)
    assert run.is_empty()
    (run.root / "scratch" / "abc" / "output").mkdir(parents=True)
    (run.root / "scratch" / "abc" / "output" / "manifest.json").write_text("{}")
    (run.root / "stages" / "round-001").mkdir(parents=True)
    assert run.is_empty()
    (run.root / "stages" / "round-001" / "prepare_data" / ("0" * 32)).mkdir(parents=True)
    assert not run.is_empty()
    run.remove()
    assert not run.root.exists()
    assert run.home.exists()


# Whose a run is


def test_a_run_is_the_same_by_whatever_link_it_is_reached(home, tmp_path):
    run = a_run(home, "real")
    (home / "runs" / "alias").symlink_to("real")
    (tmp_path / "link").symlink_to(home / "runs" / "real")
    reached = [find_run(home, "alias"), find_run(home, str(tmp_path / "link")), create_or_open(home, "alias")]
    assert {(found.root, found.name, found.home) for found in reached} == {(run.root, "real", home)}
    assert [found.name for found in list_runs(home)] == ["real"], "one run, though it has two names"


def test_a_run_that_lies_elsewhere_and_is_linked_here_belongs_to_this_home(home, tmp_path):
    elsewhere = a_run(tmp_path / "disk" / "home", "big").root.rename(tmp_path / "disk" / "big")
    (home / "runs").mkdir(parents=True)
    (home / "runs" / "big").symlink_to(elsewhere)
    assert [(run.root, run.home) for run in (find_run(home, "big"), *list_runs(home))] == [(elsewhere, home)] * 2


def test_a_run_below_a_backup_directory_is_that_run_and_belongs_to_the_home_in_use(home, tmp_path):
    backup = tmp_path / "backup" / "monday"
    backup.parent.mkdir()
    a_run(home, "run").root.rename(backup)
    found = find_run(home, str(backup))
    assert (found.root, found.home) == (backup, home)


def test_a_run_in_another_home_belongs_to_that_one(home, tmp_path):
    other = a_run(tmp_path / "other", "run")
    assert find_run(home, str(other.root)).home == tmp_path / "other"
