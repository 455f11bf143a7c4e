"""What the tables say of a run whose outputs were made by hand."""

import json
import re
import shutil

import pyarrow as pa
import pytest
from fake_runs import HOSTILE, document, finished_run, recommit
from rich.console import Console

from flows.config.reading import load_config
from flows.outcomes.outputs import find_outputs
from flows.outcomes.results import result_columns, result_rows, summary_of
from flows.outcomes.status import overview, reports_of, run_state, stage_statuses, steps
from flows.plan.attempts import attempts_of
from flows.plan.plan import forced_by, make_plan
from flows.query import LATEST, Span, one_rollout, select
from flows.terminal.views.rollouts import rollout_view, rows_table
from flows.terminal.views.runs import attempts_table, results_table, runs_table, steps_table
from flows.terminal.views.status import round_table, status_view
from flows.text import duration, json_text, number, printable, printable_lines
from tasks.errors import ConfigError, RunError
from tasks.store.data_sets import read_dataset, write_dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return finished_run(home, "fake", document(home))


@pytest.fixture
def stopped(tmp_path):
    """One that stopped when the second shard of iteration 2 was to be scored."""
    return finished_run(tmp_path, "stopped", document(tmp_path), stop_before=("compute_advantages", 1, 2))


def shown(renderable, width=200):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_text_from_a_model_can_neither_act_on_the_terminal_nor_break_a_line():
    assert printable(HOSTILE) == "[red]good[/red]\\x1b[2J⏎ dog"
    assert printable("right\u202eleft\x9b1m\ud800") == "right\\u202eleft\\x9b1m\\ud800"
    assert printable("café 猫 \U0001f600") == "café 猫 \U0001f600"
    assert printable("abcdef", 4) == "abc…"
    assert printable_lines("a\n\tb\x1b") == "a\n\tb\\x1b"


def test_json_keeps_the_text_and_escapes_what_would_act_on_the_terminal():
    value = {"text": HOSTILE + "\u202e\x9b猫"}
    text = json_text(value)
    assert json.loads(text) == value
    assert "猫" in text
    assert not any(character in text for character in "\x1b\u202e\x9b")


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(1234.5678, 2, "1,234.57"), (-0.0001, 2, "0.00"), (-0.5, 1, "-0.5"), (None, 2, "–")]
)
def test_numbers(value, digits, text):
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.34, "8.3 s"), (125.2, "2 min 05 s"), (3720, "1 h 02 min"), (None, "–")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_final_table_has_the_reference_then_each_round(run):
    plan = make_plan(run, run.config)
    columns = result_columns(run.config)
    assert [column.title for column in columns] == [
        "score",
        "ref. score",
        "gain (sd)",
        "true_quality",
        "gain (sd)",
        "KL",
        "entropy",
        "length",
        "RM acc.",
    ]
    rows = result_rows(columns, [summary_of(report) for report in reports_of(plan)])
    assert rows == [
        ["reference", "0.125", "", "", "3.500", "", "", "", "9.0", ""],
        ["round 1", "1.000", "0.125", "0.50", "4.500", "1.50", "0.25", "4.000", "7.0", "0.800"],
        ["round 2", "2.000", "0.125", "1.00", "4.500", "1.50", "0.25", "4.000", "7.0", "0.800"],
    ]
    assert "round 2" in shown(results_table(columns, [summary_of(report) for report in reports_of(plan)]))


@pytest.mark.parametrize("preset", ["quickstart", "grpo"])
def test_the_final_table_of_a_preset_fits_a_terminal_of_80_columns(preset):
    columns = result_columns(load_config(preset))
    widest = {"evaluation/reference_score": -0.073, "evaluation/kl": 12.34, "evaluation/response_length": 13.5}
    keys = {key for column in columns for key in (column.key, column.reference_key) if key}
    summaries = [{"round": number, **{key: widest.get(key, 0.755) for key in keys}} for number in (1, 2)]
    narrow, wide = (shown(results_table(columns, summaries), width) for width in (80, 200))
    assert [line.split() for line in narrow.splitlines() if "─" not in line] == [
        line.split() for line in wide.splitlines() if "─" not in line
    ]


def test_without_a_reward_model_the_final_table_has_no_column_for_it(run):
    config = run.config.model_copy(update={"reward_model": None})
    assert "RM acc." not in [column.title for column in result_columns(config)]


def test_a_finished_run_says_so_and_its_shards_count_together(run):
    plan = make_plan(run, run.config)
    assert run_state(run, plan) == "finished"
    statuses = stage_statuses(plan)
    generated = next(s for s in statuses if (s.stage, s.round, s.iteration) == ("generate_rollouts", 2, 1))
    assert (generated.state, generated.shards, generated.rows, generated.seconds) == ("committed", 2, 4, 3.0)
    assert generated.metrics == {"rollouts/response_length": 2.0}
    text = shown(status_view(statuses))
    assert "pending" not in text
    assert "reward model" in text
    assert "accuracy 0.800" in text


def test_a_stopped_run_says_how_far_it_is(stopped):
    plan = make_plan(stopped, stopped.config)
    statuses = {(s.stage, s.round, s.iteration): s for s in stage_statuses(plan)}
    assert statuses["score_rollouts", 1, 2].state == "committed"
    assert statuses["compute_advantages", 1, 2].state == "pending"
    assert statuses["compute_advantages", 1, 2].reason == "not run yet"
    assert "not run yet" in shown(round_table([s for s in statuses.values() if not s.iteration]))
    # Data, reward model, seven stages of iteration 1, and generating and scoring of iteration 2 in two shards each.
    assert run_state(stopped, plan) == "14 of 35 stages committed"


def test_one_shard_of_two_shows_as_such(stopped):
    plan = make_plan(stopped, stopped.config)
    second = plan.select("score_rollouts", round=1, iteration=2)[1]
    (second.ref.directory / "manifest.json").unlink()
    statuses = stage_statuses(make_plan(stopped, stopped.config))
    state = next(s.state for s in statuses if (s.stage, s.round, s.iteration) == ("score_rollouts", 1, 2))
    assert state == "1/2 shards"
    assert "1/2 shards" in shown(status_view(statuses))


def test_a_changed_setting_is_named_as_the_reason(run):
    config = run.config.model_copy(update={"advantages": run.config.advantages.model_copy(update={"kl_coef": 0.5})})
    text = shown(status_view(stage_statuses(make_plan(run, config))))
    assert "pending: round 1 iteration 1 compute advantages: kl_coef: 0.05 → 0.5" in text


def test_a_running_run_says_so(run):
    with run.locked():
        assert run_state(run, make_plan(run, run.config)) == "running"
        assert overview(run).state == "running"
    assert overview(run).state == "finished"


def test_the_list_shows_rounds_and_last_score(run):
    item = overview(run)
    assert (item.name, item.rounds_done, item.rounds, item.score, item.score_gain) == ("fake", 2, 2, 2.0, 1.0)
    assert "2/2" in shown(runs_table([item]))


def test_a_run_whose_configuration_cannot_be_read_is_listed_all_the_same(stopped):
    written = json.loads((stopped.root / "run.json").read_text())
    written["config"]["no_such_field"] = 1
    (stopped.root / "run.json").write_text(json.dumps(written))
    assert overview(stopped).state == "unreadable"
    assert "0/?" in shown(runs_table([overview(stopped)]))


def test_a_forced_stage_executes_with_all_below_it_and_nothing_above(run):
    plan = make_plan(run, run.config)
    forced = forced_by(plan, "update_policy", round=2, iteration=2)
    found = steps(run, plan, forced)
    executed = [(step.stage, step.place) for step in found if step.executes]
    assert executed == [("update_policy", "r2.i2"), ("evaluate_policy", "r2"), ("report_round", "r2")]
    assert all(step.expected_seconds == 1.5 for step in found)
    text = shown(steps_table(found))
    assert text.count("execute") == 3
    assert text.count("forced") == 3


def test_a_stage_that_never_ran_is_expected_to_take_what_it_took_elsewhere(stopped):
    plan = make_plan(stopped, stopped.config)
    found = {(step.stage, step.place): step for step in steps(stopped, plan, [])}
    assert found["update_policy", "r1.i2"].expected_seconds == 1.5
    assert found["evaluate_policy", "r1"].expected_seconds is None


def rollouts_of(run, round=None, iteration=None, attempt=None):
    rounds, iterations = (LATEST if number is None else Span(number, number) for number in (round, iteration))
    return select(run, rounds=rounds, iterations=iterations, attempt=attempt)


def places(selection):
    return [(part.place.round, part.place.iteration, part.stage) for part in selection.parts]


def found(selection, text="", **more):
    return selection.data_set.search(text, **more)


def ids(selection, text=""):
    return [row["rollout_id"] for row in found(selection, text)]


def test_rollouts_come_from_the_latest_iteration_and_its_fullest_data_set(run, stopped):
    assert set(places(rollouts_of(run))) == {(2, 2, "compute_advantages")}
    # Two shards were scored, nothing more was done.
    scored = rollouts_of(stopped)
    assert places(scored) == [(1, 2, "score_rollouts")] * 2
    assert scored.data_set.num_rows == 4
    assert places(rollouts_of(run, 1))[0][:2] == (1, 2)
    assert places(rollouts_of(run, None, 1))[0][:2] == (2, 1)


def test_rollouts_of_many_places_are_searched_as_one(run):
    everywhere = select(run, rounds=Span(1, 2), iterations=Span(0, None))
    assert [place[:2] for place in places(everywhere)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert ids(everywhere, "round:2 score<0") == ["r2.i1.s0.aa.0", "r2.i2.s0.aa.0"]
    best = found(everywhere, "sort:-score sort:-round sort:iteration", top=2)
    assert [row["rollout_id"] for row in best] == ["r2.i1.s0.bb.0", "r2.i2.s0.bb.0"]
    assert best.found == 8


def test_other_data_sets_are_searched_in_the_same_way(run):
    audited = select(run, "audit", rounds=Span(1, 1), iterations=Span(1, 1))
    assert [row["held_out_true_quality"] for row in found(audited, "sort:held_out_true_quality")] == [2.5, 6.5]
    with pytest.raises(ConfigError, match=r"--data rollout: no such data set; stages write prompts, .*rollouts"):
        select(run, "rollout")


def test_rollouts_that_are_not_there_are_told_with_those_that_are(run):
    with pytest.raises(RunError, match=r"no rollouts of round 3; it has those from round 1, iteration 1 to round 2"):
        rollouts_of(run, 3)


def test_rows_are_chosen_by_columns_and_by_what_follows_from_them(run):
    rollouts = rollouts_of(run, 1, 1)
    # The estimate of the KL is (-1 + 1.5) a token.
    assert [(row["length"], row["kl_sum"]) for row in found(rollouts)] == [(3, 1.5), (1, 0.5)]
    assert ids(rollouts, "length>2 finish_reason:stop") == ["r1.i1.s0.aa.0"]
    assert ids(rollouts, "bad") == ["r1.i1.s0.bb.0"]
    assert ids(rollouts, "kl_sum<1") == ["r1.i1.s0.bb.0"]


@pytest.mark.parametrize("where", ["nope>1", "nope:x", "sort:nope"])
def test_a_column_that_is_none_is_told_with_those_that_are(run, where):
    with pytest.raises(ConfigError, match=r"nope: no such column; columns are rollout_id, .*length, .*kl_sum"):
        found(rollouts_of(run, 1, 1), where)


def test_rows_have_plain_lists_and_what_follows_from_them(run):
    (row,) = found(rollouts_of(run, 1, 1), "sort:-score", top=1).dicts()
    assert row["rollout_id"] == "r1.i1.s0.bb.0"
    assert row["advantages"] == [2.0]
    assert row["kl_sum"] == 0.5
    json.dumps(row)


def test_rollouts_have_what_their_audit_says_of_them(run):
    rollouts = rollouts_of(run, 1, 1)
    assert [row["held_out_true_quality"] for row in found(rollouts)] == [6.5, 2.5]
    assert ids(rollouts, "score>0 held_out_true_quality<3") == ["r1.i1.s0.bb.0"]
    # One token has no pair of tokens: null, which is what JSON knows, and which is last however it is sorted.
    for order in ("sort:-distinct_2", "sort:distinct_2"):
        rows = found(rollouts, order).dicts()
        assert [row["distinct_2"] for row in rows] == [1.0, None]
    assert json.loads(json_text(rows), parse_constant=pytest.fail) == rows
    assert re.search(r"score +quality +KL +length", shown(rows_table(found(rollouts))))
    assert re.search(r"^true_quality +6\.5000", shown(rollout_view(one_rollout(run, "r1.i1.s0.aa.0"))), re.M)


def test_rollouts_whose_audit_is_still_to_come_are_shown_without_it(stopped):
    assert "held_out_true_quality" in rollouts_of(stopped, 1, 1).data_set.columns
    later = rollouts_of(stopped, 1, 2)
    assert {"held_out_true_quality", "distinct_2"}.isdisjoint(later.data_set.columns)
    assert len(found(later)) == 4
    # Of several places, those that have a column are searched by it; the others have no row that fulfils it.
    both = select(stopped, rounds=Span(1, 1), iterations=Span(1, 2))
    assert ids(both, "distinct_2>0") == ["r1.i1.s0.aa.0"]


def test_without_a_critic_a_rollout_has_no_values_and_no_returns(tmp_path):
    rollout_settings = {"samples_per_prompt": 2, "shards": 2, "sampling": {"max_new_tokens": 4}}
    config = document(tmp_path, algorithm="grpo", rounds=1, iterations=1, rollouts=rollout_settings)
    one = one_rollout(finished_run(tmp_path, "alone", config), "r1.i1.s0.aa.0")
    assert list(one.tokens[0]) == ["token", "token_id", "logprob", "ref_logprob", "kl", "reward", "advantage"]
    assert re.search(r"^ *t +token +id +logprob +ref_logprob +kl +reward +advantage *$", shown(rollout_view(one)), re.M)


def test_the_table_of_rollouts_shows_hostile_text_as_text(run):
    text = shown(rows_table(found(rollouts_of(run, 1, 1))))
    assert "[red]good[/red]\\x1b[2J⏎ dog" in text
    assert "say [bold]it" in text
    assert "\x1b" not in text


def test_one_rollout_token_by_token(run):
    one = one_rollout(run, "r2.i1.s0.aa.0")
    assert one.row["rollout_id"] == "r2.i1.s0.aa.0"
    assert [token["token"] for token in one.tokens] == ["good", " dog", "</s>"]
    assert one.tokens[0] == {
        "token": "good",
        "token_id": 2,
        "logprob": -1.0,
        "ref_logprob": -1.5,
        "kl": 0.5,
        "reward": 0.75,
        "value": 0.25,
        "advantage": 2.0,
        "return": 1.25,
    }
    text = shown(rollout_view(one))
    assert "␣dog" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("rollout_id", "next_move"),
    [
        ("r1.i1.s0.zz.0", "rounds rollouts fake --round 1 --iteration 1 lists"),
        ("r9.i1.s0.aa.0", "it has those from round 1"),
        ("nonsense", "rounds rollouts fake lists them"),
    ],
)
def test_an_unknown_rollout_is_told_with_the_next_move(run, rollout_id, next_move):
    with pytest.raises(RunError, match=next_move):
        one_rollout(run, rollout_id)


def test_outputs_can_be_looked_at_after_the_data_is_gone(stopped):
    (stopped.home / "prompts.jsonl").unlink()
    assert {found.is_current for found in find_outputs(stopped)} == {False}
    assert not rollouts_of(stopped, None, None).is_current
    assert len(one_rollout(stopped, "r1.i1.s0.aa.0").tokens) == 3


def test_outputs_of_another_configuration_do_not_hide_those_of_this_one(tmp_path):
    ours = finished_run(tmp_path, "changed", document(tmp_path))
    changed = document(tmp_path, advantages={"kl_coef": 0.5})
    finished_run(tmp_path, "changed", changed, stop_before=("generate_rollouts", 1, 2))
    rollouts = rollouts_of(ours)
    assert places(rollouts)[0][:2] == (1, 1)
    assert rollouts.is_current


def test_an_earlier_attempt_is_listed_with_what_sets_it_apart_and_can_be_looked_at(tmp_path):
    before = finished_run(tmp_path, "twice", document(tmp_path))
    assert attempts_of(before, make_plan(before, before.config)) == []
    run = finished_run(tmp_path, "twice", document(tmp_path, advantages={"kl_coef": 0.5}))
    attempts = attempts_of(run, make_plan(run, run.config))
    # Scoring does not depend on the coefficient but where it follows an update.
    listed = [(attempt.stage, attempt.place) for attempt in attempts]
    assert ("score_rollouts", "r1.i1.s0") not in listed
    assert listed[:2] == [("compute_advantages", "r1.i1")] * 2
    assert [attempt.is_current for attempt in attempts[:2]] == [False, True]
    assert [attempt.differs for attempt in attempts[:2]] == ["kl_coef: 0.05 → 0.5", ""]
    table = shown(attempts_table(attempts))
    assert re.search(r"^compute_advantages +r1\.i1 +\w{8} .* kl_coef: 0\.05 → 0\.5 *$", table, re.M)

    (old,) = (run.root / "stages/round-001/iteration-001/compute_advantages").glob(f"{attempts[0].id}*")
    table = read_dataset(old / "rollouts")
    shutil.rmtree(old / "rollouts")
    write_dataset(old / "rollouts", table.set_column(0, "rollout_id", pa.array(["r1.i1.s0.old.0", "r1.i1.s0.old.1"])))
    recommit(old)
    then = rollouts_of(run, None, None, attempts[0].id)
    assert places(then) == [(1, 1, "compute_advantages")]
    assert one_rollout(run, "r1.i1.s0.old.1", attempts[0].id).row["score"] == 3.0
    assert ids(rollouts_of(run, 1, 1)) == ["r1.i1.s0.aa.0", "r1.i1.s0.bb.0"]
    # What an audit found of the same scored rollouts goes with them.
    scoring = run.root / "stages/round-002/iteration-001/score_rollouts/shard-000"
    before, _ = [path.name for path in sorted(scoring.glob("*"), key=lambda path: path.stat().st_mtime_ns)]
    assert [row["held_out_true_quality"] for row in found(rollouts_of(run, attempt=before[:8]))] == [6.5, 2.5]


@pytest.mark.parametrize(
    ("attempt", "round", "error", "told"),
    [
        ("zz", None, RunError, "--attempt zz: run fake has no such output; rounds status fake --attempts lists"),
        ("", None, RunError, "no such output"),
        ("data", None, ConfigError, "an output of prepare_data, which holds no rollouts"),
        ("scores", 1, ConfigError, "is of round 2, iteration 1; ask for those"),
    ],
)
def test_an_attempt_that_is_none_is_told_with_the_next_move(run, attempt, round, error, told):
    stages = run.root / "stages"
    known = {
        "data": next((stages / "round-001/prepare_data").iterdir()).name,
        "scores": next((stages / "round-002/iteration-001/score_rollouts/shard-000").iterdir()).name,
    }
    with pytest.raises(error, match=re.escape(told)):
        rollouts_of(run, round, None, known.get(attempt, attempt))
