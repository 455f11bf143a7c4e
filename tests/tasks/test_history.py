"""The metrics of a run, a row for each iteration."""

from tasks.metrics.history import rows_of, through_rounds


def test_the_rows_of_a_run_are_in_order_and_apart_from_what_a_round_has_once():
    parts = {
        (2, 1): [(1, {"kl/mean": 3.0})],
        (1, 10): [(1, {"kl/mean": 2.0})],
        (1, 2): [(1, {"kl/mean": 1.0}), (3, {"kl/mean": 5.0})],
        (1, 0): [(1, {"evaluation/kl": 7.0})],
        (2, 2): [],
    }
    rows, rounds = rows_of(parts)
    assert rows == [
        {"round": 1, "iteration": 2, "kl/mean": 4.0},
        {"round": 1, "iteration": 10, "kl/mean": 2.0},
        {"round": 2, "iteration": 1, "kl/mean": 3.0},
    ]
    assert rounds == {1: {"evaluation/kl": 7.0}}


def test_what_a_round_has_once_stands_with_its_last_iteration_and_warnings_are_counted_once():
    rows = [{"round": 1, "iteration": 1}, {"round": 1, "iteration": 2, "health/warnings": 1.0}]
    once = {1: {"evaluation/kl": 7.0, "health/warnings": 5.0}, 2: {"evaluation/kl": 8.0}}
    last = {"round": 1, "iteration": 2, "health/warnings": 1.0, "evaluation/kl": 7.0}
    assert through_rounds(rows, once) == [{"round": 1, "iteration": 1}, last]
    assert rows[1] == {"round": 1, "iteration": 2, "health/warnings": 1.0}
