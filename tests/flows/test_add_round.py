"""Rounds that are added by hand, and files that are not any more what a run was made from."""

import json
import re

import pytest
from fake_runs import document, finished_run
from typer.testing import CliRunner

from flows import launch
from flows.cli import main as cli
from flows.config.reading import dump
from flows.outcomes.outputs import latest_variants
from flows.plan.changed_data import require_same_data
from flows.plan.plan import make_plan
from flows.runs.workspace import Run
from tasks.config.data import Source
from tasks.data.growth import how_changed
from tasks.data.sources import source_digest

ROW = '{"prompt": "say", "chosen": "good", "rejected": "bad"}\n'
OTHER = '{"prompt": "tell", "chosen": "good", "rejected": "bad"}\n'


class World:
    """A home with one run, ``fake``, of one round; what is executed commits without a model."""

    def __init__(self, directory, monkeypatch):
        self.directory, self.home = directory, directory / "home"
        self.document = document(directory, rounds=1)
        self.stop_before = None
        monkeypatch.setattr(launch, "execute", self.execute)

    @property
    def run(self):
        return Run(self.home / "runs" / "fake", self.home)

    def make(self, **options):
        finished_run(self.home, "fake", self.document, **options)

    def execute(self, run, config, plan):
        finished_run(self.home, "fake", dump(config), stop_before=self.stop_before)
        reports = [found.ref for found in latest_variants(run, "report_round")]
        return launch.Outcome(run=run, plan=plan, reports=reports, unreported=[], lost_server=False)

    def file(self, name, text=OTHER):
        (self.directory / name).write_text(text)
        return self.directory / name

    def rounds(self, *args, code=0):
        result = CliRunner().invoke(cli.app, ["--home", str(self.home), *map(str, args)])
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    def refused(self, *args):
        """The sentence with which a command ends that leaves the run as it was."""
        before = sorted((path, path.stat().st_size) for path in self.run.root.rglob("*") if path.name != "lock")
        (line,) = self.rounds(*args, code=2).stderr.splitlines()
        assert sorted((p, p.stat().st_size) for p in self.run.root.rglob("*") if p.name != "lock") == before
        return line.removeprefix("error: ")

    def used(self):
        """File and first round of each source of preferences."""
        return [(source.path.rpartition("/")[2], source.from_round) for source in self.run.config.data.preferences]


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    world.make()
    return world


def test_a_file_adds_one_round_in_which_it_counts_and_nothing_before_it_is_executed(world):
    before = set(world.run.store.outputs())
    told = world.rounds("add-round", "fake", "--preferences", world.file("july.jsonl"))
    assert re.match(r"adds round 2 with \S+/july.jsonl\n", told.stderr)
    assert re.search(r"^round 2 ", told.stdout, re.M), "the table of results"
    assert world.used() == [("preferences.jsonl", 1), ("july.jsonl", 2)]
    new = set(world.run.store.outputs()) - before
    assert len(before) + len(new) == len(world.run.store.outputs())
    assert all("round-002" in path.parts for path in new)
    assert {"prepare_data", "train_reward_model"} <= {path.parent.name for path in new}


def test_several_files_of_both_kinds_count_from_the_same_round(world):
    names = ("june.jsonl", "july.jsonl")
    files = [part for name in names for part in ("--preferences", world.file(name, OTHER.replace("tell", name)))]
    world.rounds("add-round", *files, "--prompts", world.file("questions.jsonl", '{"prompt": "tell"}\n'))
    assert world.used() == [("preferences.jsonl", 1), ("june.jsonl", 2), ("july.jsonl", 2)]
    assert [source.from_round for source in world.run.config.data.prompts] == [1, 2]


def test_a_quoted_pattern_stands_for_the_files_that_match_it_now(world):
    for name in ("new-a.jsonl", "new-b.jsonl"):
        world.file(name, OTHER.replace("tell", name))
    world.rounds("add-round", "--preferences", f"{world.directory}/new-*.jsonl")
    assert world.used() == [("preferences.jsonl", 1), ("new-a.jsonl", 2), ("new-b.jsonl", 2)]


def test_without_a_file_a_round_is_added_with_the_data_that_there_is(world):
    told = world.rounds("add-round")
    assert told.stderr.startswith("adds round 2 with the data that there is\n")
    assert (world.used(), world.run.config.rounds) == ([("preferences.jsonl", 1)], 2)


def test_a_dry_run_says_what_would_be_executed_and_touches_nothing(world):
    before = {path: path.stat().st_mtime_ns for path in world.run.root.rglob("*")}
    args = ("add-round", "--preferences", world.file("july.jsonl"), "--dry-run")
    told = world.rounds(*args)
    assert re.match(r"adds round 2 with \S+/july.jsonl\n", told.stderr)
    stages = json.loads(world.rounds(*args, "--json").stdout)["stages"]
    assert {(stage["place"][:2], stage["executes"]) for stage in stages} == {("r1", False), ("r2", True)}
    # A round has its data, reward model, evaluation and report, and twice: two shards of rollouts and of scores,
    # advantages, update and audit. The first one has a critic that is pretrained, and starts from a warm-up of its own.
    executed = [stage for stage in stages if stage["executes"]]
    assert len(executed) == 4 + 2 * 7
    assert told.stdout.splitlines()[-1].startswith("execute 18, reuse ")
    assert {path: path.stat().st_mtime_ns for path in world.run.root.rglob("*")} == before


def test_a_file_that_the_run_has_already_is_refused_with_the_round_since_when(world):
    (world.directory / "link.jsonl").symlink_to(world.directory / "preferences.jsonl")
    for name in ("preferences.jsonl", "link.jsonl"):
        told = world.refused("add-round", "--preferences", world.directory / name)
        assert re.fullmatch(rf"--preferences \S+/{name}: run fake has used it since round 1; put what is new .*", told)


def test_a_file_that_is_not_there_is_named_with_its_option(world):
    told = world.refused("add-round", "--prompts", world.directory / "prompt.jsonl")
    assert re.match(r"--prompts \S+/prompt.jsonl does not exist \(\S+ has .*prompts.jsonl.*\)", told)
    assert "no file matches" in world.refused("add-round", "--preferences", world.directory / "none-*.jsonl")


def test_bad_rows_are_told_before_the_run_hears_of_the_file(world):
    told = world.refused("add-round", "--preferences", world.file("july.jsonl", OTHER + '{"prompt": "say"}\n'))
    assert "july.jsonl, row 2" in told


def test_new_files_are_read_with_the_columns_of_the_last_of_their_kind(world):
    column = {"path": str(world.file("named.jsonl", ROW.replace("chosen", "better"))), "columns": {"chosen": "better"}}
    world.document["data"]["preferences"] = [column]
    world.make()
    world.rounds("add-round", "--preferences", world.file("july.jsonl", OTHER.replace("chosen", "better")))
    assert [source.columns for source in world.run.config.data.preferences] == [{"chosen": "better"}] * 2


def test_a_run_at_work_is_left_alone(world):
    with world.run.locked():
        for option in ([], ["--dry-run"]):
            assert "run fake is in progress in process" in world.refused("add-round", *option)


def test_a_run_that_is_not_finished_is_continued_first(world):
    world.document["rounds"] = 2
    world.make(stop_before=("update_policy", 2, 1))
    told = world.refused("add-round", "--preferences", world.file("july.jsonl"))
    assert re.match(
        r"run fake is not finished \(\d+ of \d+ stages are committed\); continue it first with: rounds ", told
    )


def test_the_same_command_again_continues_the_round_that_was_stopped(world):
    world.stop_before = ("update_policy", 2, 2)
    command = ("add-round", "--preferences", world.file("july.jsonl"))
    world.rounds(*command)
    world.stop_before = None
    assert world.rounds(*command).stderr.startswith("goes on: ")
    assert (world.used(), world.run.config.rounds) == ([("preferences.jsonl", 1), ("july.jsonl", 2)], 2)
    assert "has used it since round 2" in world.refused(*command)


def test_settings_that_decide_results_cannot_change_with_a_round(world):
    file = world.file("july.jsonl")
    told = world.refused("add-round", "--preferences", file, "--set", "advantages.lam=0.5")
    assert re.match(r"run fake has finished rounds with other settings \(advantages.lam: 0.95 → 0.5\)", told)
    assert "name files with --preferences" in world.refused("add-round", "--set", "data.num_held_out_prompts=3")
    world.rounds("add-round", "--preferences", file, "--set", "execution.micro_batch_tokens=64")
    assert world.run.config.execution.micro_batch_tokens == 64


# Files that changed


def configuration(world):
    path = world.directory / "fake.yaml"
    path.write_text(json.dumps(world.document))
    return path


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (ROW + OTHER * 3, "has 3 more lines at its end"),
        (ROW + OTHER, "has 1 more line at its end"),
        (OTHER, "has changed"),
        (OTHER + ROW, "has changed"),
    ],
)
def test_a_file_that_grew_or_changed_is_told_with_the_next_move_and_nothing_is_made_anew(world, text, how):
    world.file("preferences.jsonl", text)
    for command in (("run", configuration(world)), ("rerun", "fake"), ("rerun", "--dry-run"), ("add-round",)):
        told = world.refused(*command)
        assert re.match(rf"\S+/preferences.jsonl {how} since round 1 of run fake was made from it; put it back", told)
        assert f"rounds --home {world.home} add-round fake --preferences FILE" in told
        assert told.endswith(f"rounds --home {world.home} rerun fake --from prepare_data --round 1")


def test_what_the_sentence_names_makes_the_run_anew_from_the_file(world):
    world.file("preferences.jsonl", ROW + OTHER)
    old = set(world.run.store.outputs())
    world.rounds("rerun", "fake", "--from", "prepare_data", "--round", 1)
    (digest,) = {
        manifest.recipe["settings"]["source_digests"][1]
        for path, manifest in world.run.store.manifests()
        if manifest.stage == "prepare_data" and path not in old
    }
    assert digest == source_digest(Source(path=str(world.directory / "preferences.jsonl")), seed=0)
    assert not [planned for planned in make_plan(world.run, world.run.config).stages if planned.ref is None]
    # From then on it is what the run was made from.
    world.rounds("run", configuration(world))


def test_to_force_a_later_stage_does_not_make_the_data_anew(world):
    world.file("preferences.jsonl", ROW + OTHER)
    assert "1 more line" in world.refused("rerun", "--from", "update_policy")


def test_a_rerun_from_the_data_that_was_interrupted_goes_on_without_being_asked_again(world):
    world.file("preferences.jsonl", ROW + OTHER)
    world.run.raise_generations(["round-001/prepare_data"])
    world.rounds("rerun", "fake")


def test_data_that_nothing_was_made_from_may_be_mended(world, tmp_path):
    (tmp_path / "other").mkdir()
    world.document = document(tmp_path / "other", rounds=1)
    finished_run(world.home, "mended", world.document, stop_before=("train_reward_model", 1, 0))
    (tmp_path / "other" / "preferences.jsonl").write_text(OTHER)
    run = Run(world.home / "runs" / "mended", world.home)
    require_same_data(run, run.config.data, make_plan(run, run.config))


def test_other_data_that_the_configuration_names_is_taken_as_it_is_meant(world):
    world.file("preferences.jsonl", ROW + OTHER)
    world.rounds("rerun", "--set", f"data.preferences=[{world.file('other.jsonl')}]")
    assert world.used() == [("other.jsonl", 1)]


@pytest.mark.parametrize(
    ("name", "before", "after", "how"),
    [
        ("a.jsonl", ROW, ROW, None),
        ("a.jsonl", ROW.rstrip("\n"), ROW + OTHER, "has 1 more line at its end"),
        ("a.jsonl", ROW.rstrip("\n"), ROW, "has changed"),
        ("a.jsonl", ROW + OTHER, ROW, "has changed"),
        ("a.jsonl", ROW.rstrip("\n"), ROW.rstrip("\n") + OTHER, "has changed"),
        ("a.csv", "prompt,chosen\na,b\n", "prompt,chosen\na,b\nc,d\ne,f\n", "has 2 more lines at its end"),
        ("a.json", '["a"]', '["a", "b"]', "has changed"),
    ],
)
def test_growth_is_known_where_the_old_lines_are_the_first_of_the_new_ones(tmp_path, name, before, after, how):
    source = Source(path=str(tmp_path / name))
    (tmp_path / name).write_text(before)
    digest = source_digest(source, seed=0)
    (tmp_path / name).write_text(after)
    assert how_changed(source, digest, seed=0) == how


def test_a_pattern_that_matches_a_new_file_is_not_what_it_was(tmp_path):
    (tmp_path / "a.jsonl").write_text(ROW)
    source = Source(path=f"{tmp_path}/*.jsonl")
    digest = source_digest(source, seed=0)
    (tmp_path / "b.jsonl").write_text(ROW)
    assert how_changed(source, digest, seed=0) == "matches other files, or changed ones,"
