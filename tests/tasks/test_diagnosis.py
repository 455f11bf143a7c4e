"""When a run is called ill: each rule at its limit, what chance explains, runs that were measured."""

import json
import random
from pathlib import Path

import pytest

from tasks.metrics.diagnosis import diagnose, once_each, warnings_at, warnings_of_round
from tasks.metrics.rules import NEEDED, PER_ITERATION, PER_ROUND

HISTORIES = Path(__file__).parent / "histories"


def a_run(*values, metric="score/mean", round=1, first=1, **constant):
    """A row for each value of a metric; ``constant`` are others, with ``__`` for the slash."""
    others = {name.replace("__", "/"): value for name, value in constant.items()}
    return [
        {"round": round, "iteration": number, metric: value, **others}
        for number, value in enumerate(values, start=first)
    ]


def kinds(history, rounds=None):
    return [(warning.kind, warning.iteration) for warning in diagnose(history, rounds or {})]


# One limit after the other


@pytest.mark.parametrize(
    ("metric", "kind", "well", "ill"),
    [
        ("update/approx_kl", "approx_kl", [0.0, 0.1], 0.101),
        ("rollouts/response_length", "short responses", [20.0, 10.0], 9.9),
        ("rollouts/empty_share", "empty responses", [0.02, 0.07], 0.08),
        ("audit/distinct_2", "repetition", [0.9, 0.82], 0.8),
        ("audit/kind_gap", "gap", [0.0, 1.0], 1.01),
        ("health/warnings", "limit", [0.0, 0.0], 1.0),
    ],
)
def test_a_metric_beyond_its_limit_is_told_with_the_iteration_in_which_it_was_first_seen(metric, kind, well, ill):
    assert kinds(a_run(*well, metric=metric)) == []
    assert kinds(a_run(*well, ill, ill, metric=metric)) == [(kind, 3)]
    (warning,) = diagnose(a_run(*well, ill, ill, metric=metric), {})
    assert (warning.metric, warning.value, warning.times) == (metric, ill, 2)
    assert warning.sentence.startswith(f"{metric} is {ill:.3g}, ")
    assert "(round 1, iteration 3, and 1 more): " in warning.sentence


@pytest.mark.parametrize(
    ("metric", "well", "limit", "ill"),
    [
        ("update/approx_kl", 0.0, 0.1, 0.15),
        ("rollouts/response_length", 20.0, 10.0, 8.0),
        ("rollouts/empty_share", 0.0, 0.05, 0.1),
        ("audit/distinct_2", 0.9, 0.81, 0.7),
        ("audit/kind_gap", 0.0, 1.0, 1.5),
    ],
)
def test_what_two_standard_errors_explain_is_no_illness(metric, well, limit, ill):
    for share, expected in ((0.99, 1), (1.01, 0)):
        history = a_run(well, ill, metric=metric)
        history[1][f"{metric}_stderr"] = share * abs(ill - limit) / 2
        assert len(diagnose(history, {})) == expected


def test_a_limit_that_was_measured_has_a_standard_error_too():
    # Half of 20 ± 4 is 10 ± 2; 7 lies 3 below it, less than two standard errors.
    history = a_run(20.0, 7.0, metric="rollouts/response_length")
    assert kinds(history) == [("short responses", 2)]
    history[0]["rollouts/response_length_stderr"] = 4.0
    assert kinds(history) == []


def test_a_value_that_is_no_number_is_in_no_range():
    assert kinds(a_run(float("nan"), metric="update/approx_kl")) == [("approx_kl", 1)]
    (warning,) = diagnose(a_run(float("nan"), metric="update/approx_kl"), {})
    assert json.loads(json.dumps(warning.as_dict(), allow_nan=False))["value"] == "nan"


def test_the_reference_is_the_runs_first_iteration_also_in_later_rounds():
    history = a_run(20.0, 18.0, metric="rollouts/response_length")
    assert kinds(history + a_run(12.0, 11.0, metric="rollouts/response_length", round=2)) == []
    ill = history + a_run(12.0, 9.0, metric="rollouts/response_length", round=2)
    (warning,) = diagnose(ill, {})
    assert (warning.round, warning.iteration, warning.limit) == (2, 2, 10.0)
    # Where that iteration is not there, nobody knows how the reference was.
    assert kinds(ill[2:]) == []
    assert kinds(a_run(20.0, 9.0, metric="rollouts/response_length", round=2)) == []


def test_a_bad_critic_is_excused_in_the_first_three_iterations_of_each_round():
    assert kinds(a_run(-2.0, -1.0, -0.5, 0.1, metric="update/explained_variance")) == []
    assert kinds(a_run(0.5, 0.5, 0.5, -0.1, metric="update/explained_variance")) == [("critic", 4)]
    two = a_run(0.5, 0.5, 0.5, 0.5, metric="update/explained_variance")
    two += a_run(-2.0, 0.5, 0.5, -1.0, metric="update/explained_variance", round=2)
    assert [(w.round, w.iteration) for w in diagnose(two, {})] == [(2, 4)]


# Rewards that fall


def test_a_mean_reward_that_falls_for_three_iterations_is_told_in_the_third():
    assert kinds(a_run(1.0, 0.8, 0.6, metric="rewards/mean")) == []
    assert kinds(a_run(1.0, 0.8, 0.6, 0.4, metric="rewards/mean")) == [("falling rewards", 4)]
    assert kinds(a_run(1.0, 0.8, 0.81, 0.4, metric="rewards/mean")) == []


def test_falls_that_chance_explains_are_none():
    # A fall of 0.6 in all, between two means of 0.1: 4.2 standard errors. Of 0.15: 2.8.
    fall = (1.0, 0.8, 0.6, 0.4)
    assert kinds(a_run(*fall, metric="rewards/mean", rewards__mean_stderr=0.10)) != []
    assert kinds(a_run(*fall, metric="rewards/mean", rewards__mean_stderr=0.15)) == []


def test_a_reward_that_only_scatters_is_hardly_ever_said_to_fall():
    draw = random.Random(1)
    runs = [
        a_run(*(draw.gauss(0, 0.1) for _ in range(30)), metric="rewards/mean", rewards__mean_stderr=0.1)
        for _ in range(200)
    ]
    assert sum(kinds(run) != [] for run in runs) <= 8


def test_another_round_has_another_reward_model_so_falls_do_not_go_on_from_one_to_the_next():
    history = a_run(1.0, 0.8, metric="rewards/mean") + a_run(0.6, 0.4, metric="rewards/mean", round=2)
    assert kinds(history) == []


def test_iterations_of_which_one_is_missing_show_no_fall():
    history = a_run(1.0, metric="rewards/mean") + a_run(0.8, 0.6, 0.4, metric="rewards/mean", round=2, first=2)
    assert kinds(history) == []
    assert kinds(a_run(1.0, 0.8, 0.6, 0.4, metric="rewards/mean", round=2)) == [("falling rewards", 4)]


def test_a_kl_coefficient_that_is_steered_up_does_not_make_rewards_fall():
    # Score 1 and a KL of 5 throughout; all that changes is what the KL costs.
    history = a_run(0.95, 0.75, 0.5, 0.0, metric="rewards/mean", kl__mean=5.0, score__mean=1.0)
    assert kinds(history) == [("falling rewards", 4)]
    for row, coefficient in zip(history, (0.01, 0.05, 0.1, 0.2), strict=True):
        row["kl/coef"] = coefficient
    assert kinds(history) == []


def test_a_running_normalisation_that_catches_up_does_not_make_rewards_fall():
    history = a_run(0.8, 0.6, 0.4, 0.2, metric="rewards/mean")
    for row, score in zip(history, (1.0, 1.5, 2.0, 2.5), strict=True):
        row.update({"rewards/treated_score": row["rewards/mean"], "score/mean": score})
    assert kinds(history) == []
    for row, score in zip(history, (1.0, 0.9, 0.8, 0.7), strict=True):
        row["score/mean"] = score
    assert kinds(history) == [("falling rewards", 4)]


@pytest.mark.parametrize(
    ("others", "said", "unsaid"),
    [
        ({"update__approx_kl": 0.08}, "lower optimizers.learning_rate (now 0.003) first, not kl_coef", "penalty"),
        (
            {"update__approx_kl": 0.01, "score__mean": 1.0},
            "the KL penalty grows faster than the score",
            "learning_rate",
        ),
        ({"update__approx_kl": 0.01, "score__mean": None, "update__explained_variance": -1.0}, "the critic", "penalty"),
        ({"update__approx_kl": 0.01, "score__mean": None}, "lower optimizers.learning_rate (now 0.003)", "penalty"),
    ],
)
def test_the_advice_on_falling_rewards_names_their_likely_cause(others, said, unsaid):
    score = others.pop("score__mean", 0.0)
    history = a_run(1.0, 0.8, 0.6, 0.4, metric="rewards/mean", **others, update__learning_rate=0.003)
    for row in history:
        row["score/mean"] = row["rewards/mean"] if score is None else score
    (warning,) = (found for found in diagnose(history, {}) if found.kind == "falling rewards")
    assert said in warning.advice
    assert unsaid not in warning.advice


# Rewards held out


def test_a_gap_is_no_illness_while_what_is_wanted_follows_the_score_as_its_correlation_lets_it():
    # A score gain of 2 beside one of 0.7 (a correlation of 0.35), of 0.5 (0.25), and of nothing at all.
    for own, expected in ((0.7, []), (0.5, [("gap", 2)]), (0.0, [("gap", 2)]), (-1.0, [("gap", 2)])):
        history = a_run(0.0, 2.0 - own, metric="audit/kind_gap")
        history[1]["audit/kind_gain"] = own
        assert kinds(history) == expected


def test_repetition_is_no_illness_while_all_that_is_wanted_rises():
    def history(kind, brief):
        rows = a_run(0.9, 0.7, metric="audit/distinct_2", audit__kind_gap=0.0, audit__brief_gap=0.0)
        for row, a, b in zip(rows, (1.0, kind), (1.0, brief), strict=True):
            row |= {"audit/kind": a, "audit/brief": b, "audit/kind_stderr": 0.1, "audit/brief_stderr": 0.1}
        return rows

    assert kinds(history(2.0, 2.0)) == []
    assert kinds(history(2.0, 0.9)) == [("repetition", 2)]
    # 0.2 more is 1.4 standard errors: it may be none.
    assert kinds(history(2.0, 1.2)) == [("repetition", 2)]


def reference_iteration(correlation, stderr=0.0, **others):
    return [
        {
            "round": 1,
            "iteration": 1,
            "score/mean": 0.0,
            "score/std": 1.0,
            "score/preference": 0.0,
            "audit/kind": 0.0,
            "audit/kind_correlation": correlation,
            "audit/kind_correlation_stderr": stderr,
            "audit/length_correlation": 0.0,
            **others,
        }
    ]


LEARNED = {1: {"reward_model/accuracy": 0.7}}


def test_a_reward_model_that_does_not_follow_what_is_wanted_is_told_in_the_first_iteration():
    assert kinds(reference_iteration(0.02, 0.125), LEARNED) == [("reward model", 1)]
    # 0.2 over 64 rollouts may be 0.3; 0.2 over 1,000 is not.
    assert kinds(reference_iteration(0.2, 0.12), LEARNED) == []
    assert kinds(reference_iteration(0.2, 0.03), LEARNED) == [("reward model", 1)]


def test_only_the_reference_tells_of_the_reward_model_and_only_where_it_is_the_whole_score():
    assert kinds(reference_iteration(0.0)) == []
    assert kinds(reference_iteration(0.0, **{"score/brevity": 1.0}), LEARNED) == []
    later = [*reference_iteration(0.9), {**reference_iteration(0.0)[0], "iteration": 2}]
    assert kinds(later, LEARNED) == []


# The end of a round


@pytest.mark.parametrize(
    ("metrics", "kind"),
    [
        ({"evaluation/response_length": 4.0, "evaluation/reference_response_length": 10.0}, "short responses"),
        ({"evaluation/empty_share": 0.2, "evaluation/reference_empty_share": 0.1}, "empty responses"),
        ({"evaluation/distinct_2": 0.7, "evaluation/reference_distinct_2": 0.9}, "repetition"),
        ({"evaluation/kind_gap": 1.5, "evaluation/kind_gap_stderr": 0.2}, "gap"),
        (
            {f"evaluation/reference_kind_correlation{end}": x for end, x in (("", 0.0), ("_stderr", 0.1))},
            "reward model",
        ),
        ({"health/warnings": 1.0}, "limit"),
    ],
)
def test_the_evaluation_is_looked_at_too(metrics, kind):
    history = a_run(0.0, metric="update/approx_kl")
    (warning,) = diagnose(history, {1: metrics})
    assert (warning.kind, warning.round, warning.iteration) == (kind, 1, None)
    assert " (round 1): " in warning.sentence


def test_a_healthy_evaluation_says_nothing():
    metrics = {
        "evaluation/response_length": 9.0,
        "evaluation/reference_response_length": 10.0,
        "evaluation/empty_share": 0.1,
        "evaluation/reference_empty_share": 0.1,
        "evaluation/distinct_2": 0.88,
        "evaluation/reference_distinct_2": 0.9,
        "evaluation/kind_gap": 0.5,
        "evaluation/kind_gain": 0.5,
        "evaluation/reference_kind_correlation": 0.5,
    }
    assert diagnose(a_run(0.0, metric="update/approx_kl"), {1: metrics}) == []


def test_a_held_out_reward_that_fell_does_not_speak_for_repetition_however_far_the_score_fell():
    repeats = {"evaluation/distinct_2": 0.7, "evaluation/reference_distinct_2": 0.9}
    risen = {"evaluation/kind_gain": 1.0, "evaluation/kind_gap": -0.5}
    fallen = {"evaluation/kind_gain": -0.1, "evaluation/kind_gap": -1.0}
    assert diagnose([], {1: repeats | risen}) == []
    assert [warning.kind for warning in diagnose([], {1: repeats | fallen})] == ["repetition"]


def test_short_answers_at_the_end_have_their_cause_in_the_updates_that_led_there():
    ended = {1: {"evaluation/response_length": 4.0, "evaluation/reference_response_length": 10.0}}
    for approx_kl, advice in (
        (0.08, "lower optimizers.learning_rate (now 0.01) first"),
        (0.02, "raise advantages.kl_coef"),
    ):
        history = a_run(0.0, approx_kl, 0.0, 0.0, 0.0, metric="update/approx_kl", update__learning_rate=0.01)
        (warning,) = diagnose(history, ended)
        assert (warning.metric, warning.iteration) == ("evaluation/response_length", None)
        assert advice in warning.advice


# All together


def test_each_metric_is_told_once_a_round():
    history = a_run(*[0.2] * 5, metric="update/approx_kl") + a_run(*[0.2] * 2, metric="update/approx_kl", round=2)
    assert [(w.round, w.iteration, w.times) for w in diagnose(history, {})] == [(1, 1, 5), (2, 1, 2)]


def test_a_display_that_remembers_the_first_and_the_last_iterations_says_the_same():
    draw = random.Random(3)
    metrics = ("update/approx_kl", "rewards/mean", "audit/kind_gap", "audit/distinct_2", "update/explained_variance")
    history = [
        {"round": round, "iteration": iteration, **{name: draw.gauss(0, 1) for name in metrics}}
        for round in (1, 2)
        for iteration in range(1, 13)
    ]
    found = []
    for end in range(1, len(history) + 1):
        seen = history[:end]
        found += warnings_at(seen if end <= NEEDED else [seen[0], *seen[-NEEDED:]], {})
    assert once_each(found) == diagnose(history, {})
    assert len(found) > 20


def test_a_run_of_which_little_is_known_yet_has_no_warnings():
    assert diagnose([], {}) == []
    assert diagnose([{"round": 1, "iteration": 1}], {1: {}}) == []
    assert warnings_of_round(1, {}) == []


def test_every_warning_says_what_to_do():
    for rule in (*PER_ITERATION, *PER_ROUND):
        assert (rule.above is None) != (rule.below is None)
    histories = [*HISTORIES.glob("*.json")]
    assert len(histories) >= 2
    for path in histories:
        for warning in recorded(path.stem):
            assert len(warning.advice.split()) > 5
            assert f"{warning.metric} is " in warning.sentence


# Runs that were measured; histories/README.md says which commands wrote them.


def recorded(name):
    found = json.loads((HISTORIES / f"{name}.json").read_text())
    return diagnose(found["history"], {int(number): metrics for number, metrics in found["rounds"].items()})


@pytest.mark.parametrize("name", ["quickstart", "grpo", "rloo", "stories", "r1_zero"])
def test_the_good_runs_of_the_readme_raise_no_alarm(name):
    assert recorded(name) == []


def test_a_run_whose_reward_is_gamed_is_warned_of_while_it_can_be_stopped():
    found = [warning for warning in recorded("gamed") if warning.iteration]
    assert found
    assert found[0].iteration <= 6
