"""A crash, a flipped bit or a full disk costs only what it touched: kills at every commit point, damage in every file."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from direct_run import run_directly

from flows.config.reading import load_config
from flows.launch import set_damaged_aside
from flows.outcomes.export import export_model
from flows.outcomes.outputs import latest_variants
from flows.outcomes.upkeep import clean, verify
from flows.plan.attempts import attempts_of
from flows.plan.plan import forced_by, make_plan
from flows.runs.workspace import Run
from tasks.environment import OFFLINE, QUIET
from tasks.errors import DamagedError
from tasks.store.manifest import SEAL, Manifest

TINY = Path(__file__).parent / "tiny.yaml"
ONE_ROUND = ["rounds=1"]
# As few stages as a run can have: each of its commit points is killed at.
SMALLEST = [
    "rounds=1",
    "iterations=1",
    "algorithm=reinforce",
    "warm_up=null",
    "reward_model=null",
    "data.preferences=[]",
    "rewards={quality: {function: 'flows.presets.quickstart:true_quality'}}",
    "rollouts.shards=1",
]


def attempts(home, name, overrides, *arguments):
    """Run with kills, then to the end; the points that each attempt passed, None for one that was killed."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "direct_run.py", TINY, home, name, *map(str, arguments)]
        + [part for override in overrides for part in ("--set", override)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **QUIET, **OFFLINE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def committed(run):
    """Every committed file but the manifests, by its name, and of those what is no time, host or place."""
    root = run.root / "stages"
    content = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = str(path.relative_to(root))
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            content[name] = {k: v for k, v in manifest.items() if k not in ("seconds", "origin", SEAL)}
        else:
            content[name] = path.read_bytes()
    return content


def left_over(run):
    return [path for path in (run.root / "scratch").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing has interrupted, and how many points it passed."""
    home = tmp_path_factory.mktemp("whole")
    (points,) = attempts(home, "run", ONE_ROUND)
    return Run(home / "runs" / "run"), points


def test_eight_kills_change_no_byte(finished, tmp_path):
    whole, points = finished
    draw = random.Random(1)
    kills = [draw.randint(points // 16, points // 6) for _ in range(6)]
    passed = attempts(tmp_path, "run", ONE_ROUND, "--kill-at", *kills, "--kill-after", 0.5, 1.4)
    assert passed[:6].count(None) >= 5
    run = Run(tmp_path / "runs" / "run")
    assert committed(run) == committed(whole)
    assert left_over(run) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_every_commit_point_changes_no_byte(tmp_path):
    (points,) = attempts(tmp_path, "whole", SMALLEST)
    expected = committed(Run(tmp_path / "runs" / "whole"))
    assert points > 100
    passed = attempts(tmp_path, "killed", SMALLEST, "--kill-each", 1, points)
    assert passed == [None] * points
    for point in range(1, points + 1):
        run = Run(tmp_path / "runs" / f"killed-{point}")
        assert committed(run) == expected, f"killed before point {point}"
        assert left_over(run) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_at_random_moments_change_no_byte(finished, tmp_path):
    whole, _ = finished
    draw = random.Random(2)
    for number in range(10):
        kills = [round(draw.uniform(0.05, 2.5), 2) for _ in range(10)]
        attempts(tmp_path, f"run-{number}", ONE_ROUND, "--kill-after", *kills)
        assert committed(Run(tmp_path / "runs" / f"run-{number}")) == committed(whole)


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run of one's own."""
    whole, _ = finished
    shutil.copytree(whole.root, tmp_path / "runs" / "run", symlinks=True)
    return Run(tmp_path / "runs" / "run")


def flip(path, position):
    """Turn one bit over."""
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    path.write_bytes(content)


def files_of(run):
    """Every file that a manifest names and that holds something, with its stage's manifest."""
    for path in sorted((run.root / "stages").rglob("manifest.json")):
        manifest = Manifest.read(path.parent)
        for name, entry in manifest.files.items():
            if entry["size"]:
                yield path.parent / name, manifest


def test_one_flipped_bit_in_any_file_is_found_and_its_stage_named(copied):
    draw = random.Random(3)
    assert verify(copied).damaged == []
    count = 0
    for path, manifest in files_of(copied):
        before = path.read_bytes()
        flip(path, draw.randrange(10**6))
        (damage,) = verify(copied).damaged
        assert damage.file == str(path)
        assert damage.remedy.startswith(f"rounds rerun --from {manifest.stage} --round 1")
        path.write_bytes(before)
        count += 1
    assert count > 80
    assert verify(copied).damaged == []


def test_150_flipped_bits_in_manifests_are_all_found_and_stop_no_command(copied):
    draw = random.Random(5)
    manifests = sorted((copied.root / "stages").rglob("manifest.json"))
    for number in range(150):
        path = draw.choice(manifests)
        before = path.read_bytes()
        flip(path, draw.randrange(10**6))
        (damage,) = verify(copied).damaged
        assert damage.file == str(path)
        assert damage.remedy.startswith("rounds rerun makes the output anew, or rounds clean")
        if number % 10 == 0:
            plan = make_plan(copied, copied.config)
            (damaged,) = [planned for planned in plan.stages if planned.reason == "output is damaged"]
            assert copied.root / "stages" / damaged.key == path.parents[1]
            assert attempts_of(copied, plan) == []
            assert len(latest_variants(copied)) == len(manifests) - 1
        path.write_bytes(before)
    assert verify(copied).damaged == []


def made_again(run):
    """What ``rounds rerun`` does, without Prefect."""
    run_directly(run.root.parents[1], run.name, run.config)


@pytest.mark.parametrize("stage", ["generate_rollouts", "update_policy", "report_round"])
def test_a_damaged_manifest_costs_its_stage_alone(finished, copied, stage):
    whole, _ = finished
    path = sorted((copied.root / "stages").rglob(f"{stage}/**/manifest.json"))[0]
    others = {p: p.stat().st_ino for p in (copied.root / "stages").rglob("manifest.json") if p != path}
    flip(path, 333)
    made_again(copied)
    assert verify(copied).damaged == []
    assert committed(copied) == committed(whole)
    assert {p: p.stat().st_ino for p in others} == others


@pytest.mark.parametrize("stage", ["generate_rollouts", "update_policy", "report_round"])
def test_a_damaged_file_is_gone_after_the_rerun_that_is_named(copied, stage):
    path, manifest = next((path, own) for path, own in files_of(copied) if own.stage == stage)
    flip(path, 77)
    (damage,) = verify(copied).damaged
    place = manifest.place
    named = f"rounds rerun --from {stage} --round 1" + f" --iteration {place.iteration}" * bool(place.iteration)
    assert damage.remedy.startswith(f"{named} makes it anew")
    plan = make_plan(copied, copied.config)
    forced = forced_by(plan, stage, round=1, iteration=place.iteration or None)
    keys = [planned.key for planned in forced]
    set_damaged_aside(copied, plan, keys)
    copied.raise_generations(keys)
    made_again(copied)
    assert verify(copied).damaged == []


def test_a_stage_that_reads_a_damaged_file_says_which_stage_to_rerun(finished, copied):
    config = load_config(str(TINY), ONE_ROUND)
    whole, _ = finished
    readers = {
        "generate_rollouts": "update_policy",
        "score_rollouts": "generate_rollouts",
        "compute_advantages": "score_rollouts",
        "update_policy": "compute_advantages",
        "audit_rollouts": "score_rollouts",
        "evaluate_policy": "train_reward_model",
        "report_round": "evaluate_policy",
    }
    for reader, writer in readers.items():
        # The reader's output is gone, so that it reads again what it was made from.
        (output,) = {p.parent for p in (copied.root / "stages").rglob(f"{reader}/**/manifest.json") if last(p)}
        manifest = Manifest.read(output)
        shutil.rmtree(output)
        sources = [
            path for path, m in files_of(copied) if m.stage == writer and path.parent.is_relative_to(copied.root)
        ]
        paths = [p for value in manifest.input_paths.values() for p in (value if isinstance(value, list) else [value])]
        source = next(s for s in sources if any(p and s.is_relative_to(copied.root / p) for p in paths))
        before = source.read_bytes()
        flip(source, 12345)
        with pytest.raises(
            DamagedError, match=rf"has another content than was committed; rounds rerun --from {writer} "
        ):
            run_directly(copied.home, copied.name, config)
        source.write_bytes(before)
        run_directly(copied.home, copied.name, config)
    assert committed(copied) == committed(whole)


def last(path):
    """Of the stages that there are several of, the last iteration's first shard."""
    text = str(path)
    return ("iteration-" not in text or "iteration-002" in text) and "shard-001" not in text


def test_a_file_that_may_not_grow_stops_the_stage_and_loses_nothing(finished, copied, tmp_path):
    whole, _ = finished
    for path in (copied.root / "stages" / "round-001").glob("iteration-002/update_policy"):
        shutil.rmtree(path)
    command = [
        sys.executable,
        Path(__file__).parent / "direct_run.py",
        TINY,
        copied.home,
        copied.name,
        "--set",
        "rounds=1",
    ]
    stopped = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **QUIET, **OFFLINE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert stopped.returncode == 1
    assert "File too large" in stopped.stderr
    assert not list((copied.root / "stages").rglob("iteration-002/update_policy/*/manifest.json"))
    run_directly(copied.home, copied.name, load_config(str(TINY), ONE_ROUND))
    assert committed(copied) == committed(whole)


# What need not be kept


def test_checkpoints_that_are_not_kept_come_back_to_the_last_bit(tmp_path):
    overrides = ["rounds=1", "iterations=4", "warm_up=null"]
    lean_config = load_config(str(TINY), [*overrides, "checkpoint_every=3"])
    whole = run_directly(tmp_path, "whole", load_config(str(TINY), overrides))
    lean = run_directly(tmp_path, "lean", lean_config)
    assert kept_checkpoints(lean) == {"iteration-003", "iteration-004"}
    assert digests(lean) == digests(whole)
    assert verify(lean).damaged == []
    # Without the third iteration's checkpoint, the last one is recomputed from the start.
    for path in lean.root.rglob("iteration-003/update_policy/**/*.safetensors"):
        path.unlink()
    shutil.rmtree(next(lean.root.rglob("iteration-004/update_policy")))
    run_directly(tmp_path, "lean", lean_config)
    assert digests(lean) == digests(whole)
    # A model whose weights are not there any more is exported with those that were committed.
    for path in lean.root.rglob("iteration-004/update_policy/**/*.safetensors"):
        path.unlink()
    weights = []
    for run in (lean, whole):
        exported = export_model(run, tmp_path / f"{run.name}-policy", part="policy", round=None)
        weights.append((exported.directory / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lean-policy", "runs", "whole-policy"]


def test_a_checkpoint_that_was_not_kept_comes_back_in_the_micro_batches_that_made_it(tmp_path):
    overrides = ["rounds=1", "iterations=2", "warm_up=null", "checkpoint_every=2"]
    small, large = (
        load_config(str(TINY), [*overrides, f"execution.micro_batch_tokens={size}"]) for size in (80, 16384)
    )
    run = run_directly(tmp_path, "run", small)
    before = digests(run)
    assert before != digests(run_directly(tmp_path, "other", large))
    shutil.rmtree(next(run.root.rglob("iteration-002/update_policy")))
    for output in run.root.rglob("iteration-002/*_rollouts"):
        shutil.rmtree(output)
    run_directly(tmp_path, "run", large)
    # It was needed for the second iteration, and had it come out otherwise, that would have been refused.
    assert kept_checkpoints(run) == {"iteration-002"}


def test_a_checkpoint_that_comes_out_otherwise_is_refused(tmp_path):
    overrides = ["rounds=1", "iterations=2", "warm_up=null", "checkpoint_every=2"]
    run = run_directly(tmp_path, "run", load_config(str(TINY), overrides))
    (path,) = run.root.rglob("iteration-001/update_policy/*/manifest.json")
    manifest = Manifest.read(path.parent)
    manifest.files["policy/model.safetensors"]["sha256"] = "0" * 64
    manifest.write(path.parent)
    for output in run.root.rglob("iteration-002/*_rollouts"):
        shutil.rmtree(output)
    with pytest.raises(
        DamagedError, match=r"was not kept, and .* other bytes .*; rounds rerun --from update_policy --ro"
    ):
        run_directly(tmp_path, "run", load_config(str(TINY), overrides))


@pytest.mark.slow
def test_a_run_keeps_its_newest_checkpoints_and_can_be_replayed_verified_and_cleaned(home, tmp_path):
    settings = ["--set", "rounds=1", "--set", "iterations=3", "--set", "warm_up=null", "--set", "keep_checkpoints=1"]
    home.rounds("run", TINY, "--name", "newest", *settings)
    run = Run(home.path / "runs" / "newest")
    assert kept_checkpoints(run) == {"iteration-003"}
    overrides = ["rounds=1", "iterations=3", "warm_up=null"]
    assert digests(run) == digests(run_directly(tmp_path, "whole", load_config(str(TINY), overrides)))

    replayed = home.json("replay", "newest", "--iteration", "2")["stages"]
    assert [stage["stage"] for stage in replayed] == ["score_rollouts"] * 2 + ["compute_advantages", "update_policy"]
    assert all(stage["differences"] == [] for stage in replayed)
    assert "0 damaged" in home.rounds("verify", "newest").stdout
    assert "removed 0 directories" in home.rounds("clean", "newest").stdout

    # Something in the stored advantages changes, and their digest with it: as if they had been made by other code.
    (path,) = run.root.rglob("iteration-003/score_rollouts/shard-001/*/rollouts/*.arrow")
    flip(path, 12345)
    shown = home.rounds("verify", "newest", code=1).stdout
    assert f"{path} has another content than was committed; rounds rerun --from score_rollouts --round 1" in shown
    refused = home.rounds("replay", "newest", code=1)
    assert "has another content than was committed" in refused.stderr
    assert "Traceback" not in refused.stderr


def kept_checkpoints(run):
    return {path.parts[-5] for path in run.root.rglob("update_policy/*/policy/model.safetensors")}


def digests(run):
    manifests = [Manifest.read(path.parent) for path in sorted((run.root / "stages").rglob("manifest.json"))]
    return {(m.stage, str(m.place), m.fingerprint): m.digest for m in manifests}


# Cleaning


def test_cleaning_removes_what_was_replaced_and_nothing_that_is_used(finished, copied):
    whole, _ = finished
    assert clean(copied, dry_run=False).directories == []
    run_directly(copied.home, copied.name, load_config(str(TINY), [*ONE_ROUND, "advantages.lam=0.5"]))
    would = clean(copied, dry_run=True)
    replaced = {directory.split("/")[-2] for directory in would.directories}
    assert {"compute_advantages", "update_policy", "report_round"} <= replaced
    assert "prepare_data" not in replaced
    assert all((copied.root / directory).exists() for directory in would.directories)
    assert clean(copied, dry_run=False) == would
    assert not any((copied.root / directory).exists() for directory in would.directories)
    before = committed(copied)
    run_directly(copied.home, copied.name, load_config(str(TINY), [*ONE_ROUND, "advantages.lam=0.5"]))
    assert committed(copied) == before
    # Going back to the old setting, its outputs have to be made again: and they are the same.
    run_directly(copied.home, copied.name, load_config(str(TINY), ONE_ROUND))
    assert committed(whole).items() <= committed(copied).items()


def test_cleaning_keeps_what_nothing_has_replaced_yet(copied):
    shutil.rmtree(next((copied.root / "stages").rglob("prepare_data")))
    # Nothing of the plan is committed now, but all of it may be all that there is to look at.
    assert clean(copied, dry_run=True).directories == []
