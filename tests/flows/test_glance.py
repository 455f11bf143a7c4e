"""A plan at a glance is the plan, whatever happened since somebody last looked."""

import os
import shutil
import sys
import types
from dataclasses import replace

import pytest
from fake_runs import document, finished_run, recommit

from flows.config import checked
from flows.plan import external_models, glance_at, plan_of
from flows.plan.glance import FILE
from flows.runs import Run, find_run
from tasks.stages import STAGES
from tasks.store import Ref


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with a finished run, and one that was broken off."""
    home = tmp_path_factory.mktemp("home")
    own = document(home)
    finished_run(home, "finished", own)
    finished_run(home, "broken", own, stop_before=("score_rollouts", 2, 1))
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.plan.glance.WORTH", 1)
    monkeypatch.chdir(made)
    shutil.copytree(made / "runs", tmp_path / "runs")
    return tmp_path


@pytest.fixture
def run(home):
    """A run that was looked at."""
    found = find_run(home, "finished")
    glance_at(found)
    assert (found.root / FILE).exists()
    return found


def facts(plan):
    numbers = {id(planned): number for number, planned in enumerate(plan.stages)}
    return [
        (p.stage, p.place, p.key, p.ref, p.reason, p.is_executing, p.rows, p.seconds, dict(p.metrics), inputs)
        for p in plan.stages
        for inputs in [[numbers[id(made_from)] for made_from in p.inputs]]
    ]


def require_same(run):
    expected = facts(plan_of(run))
    # Once from what was remembered before, once from what that look remembered.
    assert facts(glance_at(run)) == expected
    assert facts(glance_at(run)) == expected


def configured(run, **changes):
    run.set_config(checked(run.config.model_dump(mode="json") | changes, where="test"))


def output_of(run, stage, **where):
    return plan_of(run).select(stage, **where)[0].ref.directory


def test_nothing_is_followed_that_was_found_before(run, monkeypatch):
    expected = facts(plan_of(run))
    monkeypatch.setattr("flows.plan.plan.stage_call", None)
    assert facts(glance_at(run)) == expected


def remove_manifest(run):
    (output_of(run, "compute_advantages", round=1, iteration=2) / "manifest.json").unlink()


def remove_file(run):
    next(output_of(run, "generate_rollouts", round=2).rglob("*.arrow")).unlink()


def cut_file(run):
    file = next(output_of(run, "update_policy", round=1).rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def remove_what_can_be_made_again(run):
    directory = output_of(run, "update_policy", round=1)
    file = next(directory.rglob("*.safetensors"))
    manifest = next(m for path, m in run.store.manifests() if path == directory)
    replace(manifest, recoverable=(str(file.relative_to(directory)),)).write(directory)
    glance_at(run)
    file.unlink()


def commit_another(run):
    directory = output_of(run, "prepare_data", round=1)
    (directory / "more").write_text("more")
    recommit(directory)


def commit_as_much_of_another(run):
    directory = output_of(run, "prepare_data", round=1)
    recipe = directory / "recipe.json"
    recipe.write_text(recipe.read_text().replace("prepare_data", "prepare_dato", 1))
    before = (directory / "manifest.json").stat().st_size
    recommit(directory)
    assert (directory / "manifest.json").stat().st_size == before


@pytest.mark.parametrize(
    "change",
    [
        lambda run: configured(run, seed=7),
        lambda run: configured(run, rounds=3),
        lambda run: configured(run, iterations=1),
        lambda run: configured(run, advantages={"lam": 0.5}),
        lambda run: configured(run, execution={"dtype": "bfloat16"}),
        lambda run: configured(run, execution={"shares": 2}),
        lambda run: configured(run, rollouts={"shards": 2, "lag": 1, "sampling": {"max_new_tokens": 4}}),
        lambda run: run.raise_generations([plan_of(run).select("score_rollouts")[0].key]),
        remove_manifest,
        remove_file,
        cut_file,
        remove_what_can_be_made_again,
        commit_another,
        commit_as_much_of_another,
        lambda run: (run.root / FILE).write_bytes(b'{"key": "'),
        lambda run: (run.root / FILE).write_bytes(b"[]"),
        lambda run: (run.root / FILE).unlink(),
    ],
)
def test_it_is_the_plan_after(run, change):
    change(run)
    require_same(run)


def test_it_is_the_plan_after_data_changed(run, made):
    content = (made / "prompts.jsonl").read_text()
    try:
        (made / "prompts.jsonl").write_text('{"prompt": "something else"}\n')
        require_same(run)
        assert plan_of(run).stages[0].ref is None
    finally:
        (made / "prompts.jsonl").write_text(content)


def test_it_is_the_plan_of_the_models_that_are_there(run, monkeypatch):
    found = external_models(run.config, run.home)
    other = replace(found, base=Ref("models/other", "0" * 32))
    monkeypatch.setattr("flows.plan.plan.external_models", lambda *_: other)
    require_same(run)
    assert plan_of(run).stages[0].ref is None


def test_it_is_the_plan_of_the_code_that_is_there(run, tmp_path, monkeypatch):
    rows = [replace(row, version="next") if row.name == "evaluate_policy" else row for row in STAGES]
    with monkeypatch.context() as patched:
        patched.setattr(STAGES, "rows", tuple(rows))
        require_same(run)
        assert plan_of(run).stages[-1].ref is None
    glance_at(run)
    (tmp_path / "newer.py").write_text("")
    newer = types.ModuleType("flows.newer")
    newer.__file__ = str(tmp_path / "newer.py")
    os.utime(newer.__file__, (4e9, 4e9))
    monkeypatch.setitem(sys.modules, "flows.newer", newer)
    # Nothing that was remembered is as much as looked at.
    monkeypatch.setattr("flows.plan.glance.Glance._is_there", None)
    assert facts(glance_at(run)) == facts(plan_of(run))


def test_what_a_run_makes_later_is_added(home, made):
    broken = find_run(home, "broken")
    require_same(broken)
    first = (broken.root / FILE).stat().st_size
    finished_run(home, "broken", document(made))
    require_same(broken)
    assert all(planned.ref for planned in glance_at(broken).stages)
    assert (broken.root / FILE).stat().st_size > first


def test_it_is_written_where_it_is_worth_it_and_may_be(home, monkeypatch):
    finished = find_run(home, "finished")
    with monkeypatch.context() as patched:
        patched.setattr("flows.plan.glance.WORTH", 1000)
        require_same(finished)
        assert not (finished.root / FILE).exists()
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(PermissionError()))
        require_same(finished)
    assert not (finished.root / FILE).exists()


def test_a_file_whose_name_is_no_text_is_no_obstacle(run):
    directory = output_of(run, "prepare_data", round=1)
    (directory / "caf\udce9").write_text("more")
    recommit(directory)
    (run.root / FILE).unlink()
    require_same(run)


def test_a_copied_run_is_at_another_place(run, tmp_path):
    shutil.copytree(run.root, tmp_path / "elsewhere" / "runs" / "finished", copy_function=shutil.copy2)
    copied = Run(tmp_path / "elsewhere" / "runs" / "finished")
    shutil.rmtree(run.root)
    require_same(copied)


def test_whoever_executes_or_removes_something_does_not_ask_it(run):
    manifest = output_of(run, "score_rollouts", round=1) / "manifest.json"
    before = manifest.stat()
    manifest.write_bytes(manifest.read_bytes().replace(b"sha256", b"sha255", 1))
    os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert all(planned.ref for planned in glance_at(run).stages)
    assert not all(planned.ref for planned in plan_of(run).stages)
