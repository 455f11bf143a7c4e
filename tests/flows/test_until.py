"""The first stages of a run alone: ``rounds run --until STAGE``."""

import pytest
from conftest import TINY
from fake_runs import Committer, document
from typer.testing import CliRunner

from flows.cli import main as cli
from flows.config.reading import checked
from flows.orchestration import absent_server
from flows.plan import external_models, make_plan, with_code_digests
from flows.round import rlhf_round
from flows.runs import create_or_open
from flows.state import EnoughError, FirstStages

BEFORE_AND_WITH = ["prepare_data", "train_reward_model", "critic_pretraining", "generate_rollouts", "generate_rollouts"]


@pytest.fixture
def begun(tmp_path):
    """A run of which nothing is committed, its configuration, and what commits its stages."""
    run = create_or_open(tmp_path, "begun")
    run.set_config(checked(document(tmp_path), where="test"))
    config = with_code_digests(run.config)
    return run, config, Committer(run, config, None)


def stages_of(run):
    return sorted(path.parent.name.replace("shard-000", "0") for path in run.store.outputs())


def test_a_plan_ends_with_all_shards_of_the_first_output_of_a_stage(begun):
    run, config, _ = begun
    plan = make_plan(run, config)
    first = plan.until("generate_rollouts")
    assert [planned.stage for planned in first.stages] == BEFORE_AND_WITH
    assert [planned.place.shard for planned in first.stages[-2:]] == [0, 1]
    assert (plan.is_whole, first.is_whole) == (True, False)
    assert first.stages == plan.stages[: len(first.stages)]
    assert [p.place.round for p in plan.until("report_round").stages if p.stage == "report_round"] == [1]


def test_a_flow_ends_where_all_that_is_wanted_has_been_called(begun):
    run, config, commit = begun
    call = FirstStages(commit, len(BEFORE_AND_WITH))
    with pytest.raises(EnoughError):
        rlhf_round(call, config, 1, None, external_models(config, run.home))
    assert call.is_done
    there = [planned.stage for planned in make_plan(run, config).stages if planned.ref is not None]
    assert there == BEFORE_AND_WITH
    whole = FirstStages(commit, None)
    rlhf_round(whole, config, 1, None, external_models(config, run.home))
    assert not whole.is_done


@pytest.mark.parametrize(("stage", "reports"), [("generate_rollouts", 0), ("report_round", 1)])
def test_the_first_stages_are_done_without_a_server_that_does_not_come(begun, monkeypatch, stage, reports):
    run, config, commit = begun
    monkeypatch.setattr(absent_server, "running_server", lambda home: None)
    wanted = make_plan(run, config).until(stage).stages
    externals = external_models(config, run.home)
    is_done, report = absent_server.until_it_answers(commit, run, config, externals, len(wanted))
    assert is_done
    assert (report is not None) == bool(reports)
    assert sum(planned.ref is not None for planned in make_plan(run, config).stages) == len(wanted)


def test_a_stage_that_is_none_or_that_the_run_has_not_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(TINY.parent)

    def said(stage, *settings):
        words = ["--home", str(tmp_path), "run", str(TINY), "--until", stage, *settings]
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 2
        assert not (tmp_path / "runs").exists()
        return result.stderr

    assert said("warm") == (
        "error: --until warm: no such stage; stages are prepare_data, warm_up, train_reward_model, critic_pretraining, "
        "generate_rollouts, score_rollouts, compute_advantages, update_policy, audit_rollouts, evaluate_policy, "
        "report_round\n"
    )
    assert said("warm_up", "--set", "warm_up=null").startswith(
        "error: --until warm_up: this configuration has no such stage; it has prepare_data, train_reward_model, "
    )


@pytest.mark.slow
def test_a_reward_model_alone_is_what_the_whole_run_begins_with(home, tiny):
    done = home.rounds("run", TINY, "--name", "first-stages", "--until", "train_reward_model")
    assert done.stdout.startswith("round 1 · train reward model is there: accuracy ")
    assert "go on       the same command without --until" in done.stdout
    made = home.digests("first-stages")
    names = sorted(name.split("/")[1] for name in made)
    assert names == ["prepare_data", "train_reward_model", "warm_up"]
    assert made.items() <= home.digests(tiny).items()
    statuses = home.json("status", "first-stages")["stages"]
    assert {status["stage"] for status in statuses if status["state"] == "committed"} == set(names)
    # Further on, nothing of it is made again.
    found = home.json("run", TINY, "--name", "first-stages", "--until", "generate_rollouts")
    assert (found["rounds"], found["until"]["stage"], found["until"]["rows"]) == ([], "generate_rollouts", 8)
    assert len(found["until"]["outputs"]) == 2
    later = home.stages("first-stages")
    assert made.items() <= home.digests("first-stages").items()
    assert all(later[name]["origin"] == home.stages("first-stages")[name]["origin"] for name in made)
