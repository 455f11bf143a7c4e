"""Queues of tasks for people: what is asked, what is kept, how far people agree, and what comes of it."""

import json
import os
import stat
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.labels import (
    LabelTask,
    all_answers,
    annotation_of,
    answers_of,
    borda,
    choose_tasks,
    close,
    find_queue,
    krippendorff_alpha,
    make_queue,
    next_tasks,
    preferences_of,
    quality_of,
    queues,
    save,
    save_all,
    shown_order,
)
from flows.labels.agreement import agreement, alpha_of, person_of
from flows.labels.annotations import file_of
from flows.labels.exchange import read_file, write_file
from flows.labels.make import Wish
from tasks.data import to_preferences
from tasks.data.bad_rows import Row
from tasks.errors import ConfigError, DataError, RunError

HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J"


def task(number, responses=("good", "bad", "ugly"), **more):
    ids = tuple(f"r1.i1.s0.p{number}.{i}" for i in range(len(responses)))
    return LabelTask(
        task_id=f"t{number:04d}", prompt=f"say {number}", responses=tuple(responses), rollout_ids=ids, **more
    )


def a_queue(home, tasks, *, name="q", annotators=1, seed=0, guidelines=None):
    settings = {"run": "mine", "by": "random", "candidates": 3, "annotators": annotators, "seed": seed}
    return make_queue(home, name, tasks, settings, guidelines=guidelines)


def an_answer(queue, who, task_id, ranks=None, *, answer_id=None, **more):
    number = len(queue.tasks[task_id].responses)
    sent = {
        "task_id": task_id,
        "answer_id": answer_id or f"{who}-{task_id}-{len(answers_of(queue, who))}-padded",
        "ranks": ranks,
        "shown": list(range(number)),
        "seconds": 3.0,
        **more,
    }
    return annotation_of(queue, who, sent)


def answer(queue, who, task_id, ranks=None, **more):
    return save(queue, an_answer(queue, who, task_id, ranks, **more))


# How far people agree


def test_alpha_is_what_krippendorff_publishes_for_his_example():
    # "Computing Krippendorff's Alpha-Reliability", 2011, three observers of 15 units; interval data: 0.811.
    units = [[1], [], [2, 2], [1, 1], [3, 3], [3, 3, 4], [4, 4, 4], [1, 3], [2, 2], [1, 1], [1, 1], [3, 3], [3, 3], [],
             [3, 4]]  # fmt: skip
    assert krippendorff_alpha(units) == pytest.approx(0.811, abs=5e-4)


@given(st.lists(st.lists(st.integers(-1, 1), max_size=4), max_size=8))
def test_alpha_is_one_minus_observed_over_expected_disagreement(units):
    pairable = [unit for unit in units if len(unit) > 1]
    values = [value for unit in pairable for value in unit]
    n = len(values)
    between = sum((a - b) ** 2 for (i, a), (j, b) in product(enumerate(values), repeat=2) if i != j)
    if between == 0:
        assert krippendorff_alpha(units) is None
        return
    observed = sum(
        sum((a - b) ** 2 for (i, a), (j, b) in product(enumerate(unit), repeat=2) if i != j) / (len(unit) - 1)
        for unit in pairable
    )
    assert krippendorff_alpha(units) == pytest.approx(1 - (observed / n) / (between / (n * (n - 1))))


def test_alpha_of_a_queue_is_of_pairs_of_responses(tmp_path):
    queue = a_queue(tmp_path, [task(1), task(2)])
    for who, ranks in (("ann", [1, 2, 3]), ("bob", [1, 2, 3])):
        answer(queue, who, "t0001", ranks)
    answer(queue, "ann", "t0002", [1, 1, 2])
    answer(queue, "bob", "t0002", [1, 2, 1])
    # Pairs 01, 02, 12 of the first task: 1, 1, 1 of both; of the second: (0, 1), (1, 0), (1, -1).
    # Within units: 0 + 0 + 0 + 2 * 1 + 2 * 1 + 2 * 4 = 12. Of all 12 values, nine are 1, two 0, one -1:
    # 2 * (12 * 10 - 8 ** 2) = 112 over 11.
    assert alpha_of(queue, all_answers(queue)) == pytest.approx(1 - 12 / (112 / 11))


def test_what_is_told_of_a_person(tmp_path):
    tasks = [task(1, scores=(3.0, 2.0, 1.0)), task(2, scores=(3.0, 1.0, 2.0))]
    again = LabelTask(**{**tasks[0].as_dict(), "task_id": "t0001-again", "repeats": "t0001"})
    queue = a_queue(tmp_path, [*tasks, again], annotators=2)
    answer(queue, "ann", "t0001", [1, 2, 3], shown=[0, 1, 2], seconds=2.0)
    answer(queue, "ann", "t0002", [3, 2, 1], shown=[2, 1, 0], seconds=4.0)
    answer(queue, "ann", "t0001-again", [1, 3, 2], seconds=9.0)
    answer(queue, "bob", "t0001", [1, 2, 2])
    answer(queue, "bob", "t0002", skipped="I cannot judge this")
    ann = person_of(queue, all_answers(queue), "ann")
    assert (ann.answered, ann.skipped, ann.median_seconds) == (3, 0, 4.0)
    # Of the pairs 01, 02, 12 bob ties the last: the two others are alike.
    assert ann.with_others == 1.0
    # 01 and 02 as before, 12 the other way round.
    assert ann.with_repeats == pytest.approx(2 / 3)
    # The first task as the score has it; of the second only that the last is better than the one before.
    assert ann.with_score == pytest.approx(4 / 6)
    # The best stood first in both tasks of three responses; chance gives 2/3.
    assert ann.first_place == pytest.approx(2 / (2 / 3))
    assert person_of(queue, all_answers(queue), "bob").skipped == 1


def test_nothing_is_told_where_nothing_can_be_said(tmp_path):
    queue = a_queue(tmp_path, [task(1)])
    queue.invite(["ann"])
    (ann,) = quality_of(queue)["annotators"]
    assert [ann[name] for name in ("median_seconds", "with_others", "with_repeats", "with_score", "first_place")] == [
        None
    ] * 5
    assert quality_of(queue)["alpha"] is None
    assert agreement([([1, 1], [1, 2])]) is None


# From answers to preferences


@pytest.mark.parametrize(("rankings", "expected"), [
    ([[1, 2, 3], [1, 3, 2], [2, 1, 3]], [1, 2, 3]),
    # 1.5 + 1 and 1.5 + 2 and 0.
    ([[1, 1, 3], [2, 1, 3]], [2, 1, 3]),
    ([[1, 2], [2, 1]], [1, 1]),
    ([[2, 1, 2]], [2, 1, 2]),
    # 1.5 + 0.5 and 1.5 + 0.5 and 0 + 2.
    ([[1, 1, 2], [2, 2, 1]], [1, 1, 1]),
])  # fmt: skip
def test_borda_counts_whom_a_response_is_put_before(rankings, expected):
    assert borda(rankings) == expected


@given(st.lists(st.permutations([1, 2, 3, 4]), min_size=1, max_size=4))
def test_borda_puts_first_what_wins_most_pairs(rankings):
    wins = [0] * 4
    for ranks in rankings:
        for i, j in combinations(range(4), 2):
            wins[i if ranks[i] < ranks[j] else j] += 1
    ranks = borda(rankings)
    for i, j in combinations(range(4), 2):
        assert (ranks[i] < ranks[j]) == (wins[i] > wins[j])
        assert (ranks[i] == ranks[j]) == (wins[i] == wins[j])


def test_a_closed_queue_is_preferences_as_a_run_reads_them(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    tasks = [task(1), LabelTask(**{**task(2).as_dict(), "prompt": messages}), task(3), task(4)]
    queue = a_queue(tmp_path, [*tasks, LabelTask(**{**task(1).as_dict(), "task_id": "t1-again", "repeats": "t0001"})])
    answer(queue, "ann", "t0001", [3, 1, 2], note="so kind")
    answer(queue, "ann", "t1-again", [1, 2, 3])
    answer(queue, "bob", "t0001", [3, 1, 2])
    answer(queue, "ann", "t0002", [2, 1, 2])
    answer(queue, "ann", "t0003", [1, 1, 1])
    answer(queue, "ann", "t0004", skipped="I cannot judge this")
    into = tmp_path / "preferences" / "first.jsonl"
    assert close(queue, into)["preferences"] == 2
    rows = [json.loads(line) for line in into.read_text().splitlines()]
    assert [(row["prompt"], row["ranks"]) for row in rows] == [("say 1", [3, 1, 2]), (messages, [2, 1, 2])]
    assert rows[0]["annotators"] == ["ann", "bob"]
    assert (rows[0]["agreement"], rows[1]["agreement"], rows[0]["notes"]) == (1.0, None, ["so kind"])
    preferences, dropped = to_preferences([Row(f"row {i}", row) for i, row in enumerate(rows)])
    assert dropped == {}
    assert [p.ranks for p in preferences] == [[3, 1, 2], [2, 1, 2]]
    assert list(preferences[0].responses) == ["good", "bad", "ugly"]
    assert list(into.parent.iterdir()) == [into]


def test_a_queue_is_closed_once_and_late_answers_are_kept(tmp_path):
    queue = a_queue(tmp_path, [task(1), task(2)])
    with pytest.raises(ConfigError, match="nobody has put one response before another yet"):
        close(queue, tmp_path / "p.jsonl")
    answer(queue, "ann", "t0001", [1, 2, 3])
    (tmp_path / "taken.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"taken\.jsonl exists already; name another file"):
        close(queue, tmp_path / "taken.jsonl")
    assert (tmp_path / "taken.jsonl").read_text() == "mine"
    with pytest.raises(ConfigError, match="end the name in"):
        close(queue, tmp_path / "p.csv")
    close(queue, tmp_path / "p.jsonl")
    answer(queue, "ann", "t0002", [1, 2, 3])
    answer(queue, "bob", "t0002", [1, 2, 3])
    assert set(answers_of(queue, "ann")) == {"t0001", "t0002"}
    with pytest.raises(ConfigError, match=r"was closed into .*p\.jsonl already, 2 answers came since then"):
        close(queue, tmp_path / "p2.jsonl")


# What is kept


def test_an_answer_that_is_sent_twice_is_one_and_the_last_to_a_task_counts(tmp_path):
    queue = a_queue(tmp_path, [task(1), task(2)])
    assert answer(queue, "ann", "t0001", [1, 2, 3], answer_id="the-same-one")
    assert not answer(queue, "ann", "t0001", [1, 2, 3], answer_id="the-same-one")
    assert answer(queue, "ann", "t0002", [1, 2, 3])
    assert answer(queue, "ann", "t0001", [3, 2, 1], answer_id="another-one")
    found = answers_of(queue, "ann")
    assert found["t0001"].ranks == (3, 2, 1)
    assert list(found) == ["t0001", "t0002"]
    lines = file_of(queue, "ann").read_text().splitlines()
    assert [json.loads(line)["answer_id"] for line in lines][::2] == ["the-same-one", "another-one"]


def test_an_answer_has_all_that_is_known_of_it(tmp_path):
    queue = a_queue(tmp_path, [task(1, ["a", "b"])])
    answer(queue, "ann", "t0001", [2, 1], margin="much", note="sure", shown=[1, 0], seconds=2.5)
    row = json.loads(file_of(queue, "ann").read_text())
    assert row | {"answer_id": "", "time": 0} == {
        "answer_id": "", "queue": "q", "run": "mine", "task_id": "t0001", "annotator": "ann", "prompt": "say 1",
        "responses": ["a", "b"], "rollout_ids": ["r1.i1.s0.p1.0", "r1.i1.s0.p1.1"], "ranks": [2, 1], "margin": "much",
        "skipped": "", "note": "sure", "shown": [1, 0], "seconds": 2.5, "time": 0,
    }  # fmt: skip


@pytest.mark.parametrize("broken", ['{"answer_id": "x', "", "\xff\xfe", '{"answer_id": "whole but short"}\n'])
def test_a_line_that_was_broken_off_costs_no_other(tmp_path, broken):
    queue = a_queue(tmp_path, [task(1), task(2)])
    answer(queue, "ann", "t0001", [1, 2, 3])
    with file_of(queue, "ann").open("a") as stream:
        stream.write(broken)
    answer(queue, "ann", "t0002", [2, 1, 3])
    assert {name: own.ranks for name, own in answers_of(queue, "ann").items()} == {
        "t0001": (1, 2, 3),
        "t0002": (2, 1, 3),
    }


def test_ties_are_stored_as_ranks_that_leave_room(tmp_path):
    queue = a_queue(tmp_path, [task(1)])
    answer(queue, "ann", "t0001", [7, 2, 2])
    assert answers_of(queue, "ann")["t0001"].ranks == (3, 1, 1)


@pytest.mark.parametrize(("sent", "told"), [
    ([], "an answer is an object"),
    ({"task_id": "t9"}, "task 't9' is not in queue q"),
    ({"queue": "other"}, "an answer to queue 'other' was sent to q"),
    ({"ranks": [1, 2]}, "give 3 whole numbers"),
    ({"ranks": [1, True, 2]}, "give 3 whole numbers"),
    ({"ranks": None}, "give 3 whole numbers"),
    ({"shown": [0, 0, 1]}, "shown of task t0001: give the numbers 0 to 2"),
    ({"answer_id": "short"}, "answer_id 'short'"),
    ({"note": "x" * 10_001}, "note of task 't0001': give a text of at most 10,000 characters"),
    ({"skipped": 3}, "skipped of task 't0001': give a text"),
])  # fmt: skip
def test_what_is_no_answer_is_told_in_a_sentence(tmp_path, sent, told):
    queue = a_queue(tmp_path, [task(1)])
    whole = {"task_id": "t0001", "answer_id": "12345678", "ranks": [1, 2, 3], "shown": [0, 1, 2]}
    with pytest.raises(ConfigError) as caught:
        annotation_of(queue, "ann", {**whole, **sent} if isinstance(sent, dict) else sent)
    assert told in str(caught.value)


def test_links_are_the_owners_alone_and_stay(tmp_path):
    queue = a_queue(tmp_path, [task(1)])
    first = queue.invite(["ann", "bob"])
    assert queue.invite(["bob", "ann", "eve"]).items() >= first.items()
    assert len(set(queue.people().values())) == 3
    assert stat.S_IMODE((queue.directory / "people.json").stat().st_mode) == 0o600
    for name in ("../ann", "", "a b", "é", "x" * 65):
        with pytest.raises(ConfigError, match="give a name of letters"):
            queue.invite([name])
    with pytest.raises(ConfigError, match="there is a 'ann'"):
        queue.invite(["Ann"])


def test_a_queue_is_made_whole_under_a_name_that_is_free(tmp_path):
    a_queue(tmp_path, [task(1)], name="one")
    with pytest.raises(ConfigError, match="--name one: there is a queue of that name"):
        a_queue(tmp_path, [task(2)], name="one")
    for name in ("..", "a/b", ".hidden", ""):
        with pytest.raises(ConfigError, match="give a name of letters"):
            a_queue(tmp_path, [task(1)], name=name)
    a_queue(tmp_path, [task(1)], name="two")
    assert [queue.name for queue in queues(tmp_path)] == ["two", "one"]
    assert find_queue(tmp_path, None).name == "two"
    with pytest.raises(RunError, match="queue none: there is no such queue, or no more; there are: two, one"):
        find_queue(tmp_path, "none")
    with pytest.raises(RunError, match="has no queue yet"):
        find_queue(tmp_path / "elsewhere", None)


@pytest.mark.parametrize(("content", "told"), [
    (b"\xff\xfe\x00", "no text in UTF-8"), (b"a\0b", "a zero byte"), (b"x" * 200_001, "200,001 bytes"),
    (None, "cannot be read"),
])  # fmt: skip
def test_guidelines_that_are_no_text_make_no_queue(tmp_path, content, told):
    path = tmp_path / "guidelines.md"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--guidelines .*{told}"):
        a_queue(tmp_path, [task(1)], guidelines=path)
    assert queues(tmp_path) == []


# Who is asked what


def test_each_person_is_asked_in_an_order_of_their_own_that_stays(tmp_path):
    queue = a_queue(tmp_path, [task(i) for i in range(30)])
    orders = {who: [t.task_id for t in next_tasks(queue, who, {}, number=30)] for who in ("ann", "bob")}
    assert sorted(orders["ann"]) == sorted(orders["bob"]) == sorted(queue.tasks)
    assert orders["ann"] != orders["bob"]
    assert [t.task_id for t in next_tasks(find_queue(tmp_path, "q"), "ann", {}, number=3)] == orders["ann"][:3]
    shown = {who: [tuple(shown_order(queue, who, t)) for t in queue.tasks.values()] for who in ("ann", "bob")}
    assert shown["ann"] != shown["bob"]
    assert set(shown["ann"]) == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}


def test_a_task_is_asked_of_as_many_as_are_wanted_and_a_skipped_one_of_others(tmp_path):
    queue = a_queue(tmp_path, [task(1), task(2)], annotators=1)
    answer(queue, "ann", "t0001", [1, 2, 3])
    answer(queue, "ann", "t0002", skipped="all responses are unusable")
    answers = all_answers(queue)
    assert next_tasks(queue, "ann", answers, number=9) == []
    assert [t.task_id for t in next_tasks(queue, "bob", answers, number=9)] == ["t0002"]
    assert next_tasks(queue, "bob", answers, number=9, held=frozenset(["t0002"])) == []


def test_a_question_comes_again_ten_answers_later_or_at_the_end(tmp_path):
    tasks = [task(i) for i in range(14)]
    again = LabelTask(**{**tasks[0].as_dict(), "task_id": "again", "repeats": "t0000"})
    queue = a_queue(tmp_path, [*tasks, again])
    asked = []
    while found := next_tasks(queue, "ann", all_answers(queue), number=1):
        asked.append(found[0].task_id)
        answer(queue, "ann", asked[-1], [1, 2, 3])
    assert sorted(asked) == sorted(queue.tasks)
    assert asked.index("again") == min(asked.index("t0000") + 11, 14)


# What is chosen


class Rollouts:
    """Rows as a data set of a run gives them."""

    def __init__(self, rows):
        self.rows = rows
        self.columns = list(dict.fromkeys(name for row in rows for name in row))

    def search(self):
        return self

    def dicts(self, columns):
        return [{name: row.get(name) for name in columns} for row in self.rows]


def a_row(prompt, response, iteration=1, **numbers):
    return {
        "rollout_id": f"r1.i{iteration}.s0.{prompt}.{response}", "prompt_id": prompt, "prompt": f"say {prompt}",
        "messages": "", "response": response, "round": 1, "iteration": iteration, **numbers,
    }  # fmt: skip


def chosen(rows, *, by, prompts=100, candidates=2, seed=0):
    return choose_tasks(Rollouts(rows), prompts=prompts, candidates=candidates, by=by, seed=seed)


SCORES = {"far": (0.0, 5.0, 9.0), "near": (1.0, 1.1, 7.0), "tied": (2.0, 4.0, 4.0)}


def scored_rows():
    words = ("red lamp", "blue box", "green hat")
    return [a_row(p, w, score=s) for p, scores in SCORES.items() for w, s in zip(words, scores, strict=True)]


def test_uncertainty_asks_about_the_nearest_scores_first():
    found = [t for t in chosen(scored_rows(), by="uncertainty", prompts=2) if t.repeats is None]
    assert {t.prompt: t.scores for t in found} == {"say tied": (4.0, 4.0), "say near": (1.0, 1.1)}
    (best,) = chosen(scored_rows(), by="uncertainty", prompts=1)
    assert best.prompt == "say tied"


def test_disagreement_and_gap_hold_the_score_against_held_out_rewards():
    # Standard deviations of both are 1, means 0: the gap is the difference.
    numbers = {"a": [(1, 1), (-1, -1)], "b": [(1, -1), (-1, 1)], "c": [(1, 1), (1, -1), (-1, -1), (-1, 1)]}
    words = ("red lamp", "blue box", "green hat", "old cat")
    rows = [
        a_row(p, words[i], score=float(s), held_out_truth=float(h))
        for p, own in numbers.items()
        for i, (s, h) in enumerate(own)
    ]
    (found,) = chosen(rows, by="disagreement", prompts=1)
    assert found.prompt in ("say b", "say c")
    assert {t.prompt for t in chosen(rows, by="disagreement", prompts=2)} == {"say b", "say c"}
    gap = {t.prompt: t.responses for t in chosen(rows, by="gap")}
    # The largest gap first, the smallest last.
    assert gap["say c"] == ("blue box", "old cat")


def test_what_the_score_cannot_be_held_against_is_said():
    with pytest.raises(ConfigError, match="--by gap: the run names no held-out reward"):
        chosen(scored_rows(), by="gap")
    rows = [a_row("a", "red lamp"), a_row("a", "blue box")]
    with pytest.raises(ConfigError, match="--by uncertainty: the rollouts have no scores yet"):
        chosen(rows, by="uncertainty")
    with pytest.raises(ConfigError, match="--by disagreement: the run has no scores yet"):
        chosen(rows, by="disagreement")
    assert len(chosen(rows, by="random")) == 1


def test_responses_that_say_the_same_are_one_and_later_ones_stay():
    rows = [
        a_row("a-1", "the red lamp", iteration=1), a_row("a-2", "The red lamp!", iteration=2),
        a_row("a-1", "a box", iteration=1), a_row("b-1", "alone", iteration=1), a_row("a-1", " ", iteration=3),
    ]  # fmt: skip
    (found,) = chosen(rows, by="random", candidates=4)
    assert sorted(found.responses) == ["The red lamp!", "a box"]
    with pytest.raises(ConfigError, match="no prompt has two different responses"):
        chosen(rows[3:], by="random")


def test_a_tenth_is_drawn_at_random_one_in_twenty_is_asked_twice_and_a_seed_gives_the_same():
    words = ("red lamp", "blue box", "green hat")
    rows = [a_row(f"p{i}", word, score=float(j * i)) for i in range(200) for j, word in enumerate(words)]
    found = chosen(rows, by="uncertainty", prompts=100)
    asked = [t for t in found if t.repeats is None]
    assert (len(asked), sum(t.why == "random" for t in asked), len(found) - len(asked)) == (100, 10, 5)
    # Scores are j * i apart: the nearest are the first 90.
    assert {t.prompt for t in asked if t.why == "uncertainty"} == {f"say p{i}" for i in range(90)}
    assert all(t.repeats in {own.task_id for own in asked} for t in found[100:])
    assert chosen(rows, by="uncertainty", prompts=100) == found
    assert chosen(rows, by="uncertainty", prompts=100, seed=1) != found
    assert [t.task_id for t in asked] == [f"t{i:04d}" for i in range(1, 101)]


@pytest.mark.parametrize("wish", [{"prompts": 0}, {"candidates": 1}, {"candidates": 10}, {"annotators": 0}])
def test_what_cannot_be_wished_is_said(wish):
    with pytest.raises(ConfigError, match="give a number from"):
        Wish(**wish)


# Other tools


@pytest.mark.parametrize("format", ["label-studio", "argilla"])
def test_answers_come_back_from_other_tools_as_they_went(tmp_path, format):
    queue = a_queue(tmp_path, [task(1), task(2), task(3)])
    answer(queue, "ann", "t0001", [2, 1, 2])
    answer(queue, "bob", "t0002", [3, 1, 2])
    answer(queue, "bob", "t0003", skipped="I cannot judge this")
    file = tmp_path / "out.json"
    assert write_file(queue, file, format) == 3
    other = a_queue(tmp_path, [task(1), task(2), task(3)], name="other")
    assert read_file(other, file) == (2, 0)
    assert read_file(other, file) == (0, 2)
    before, after = (
        {(who, t): a.ranks for who, own in all_answers(q).items() for t, a in own.items() if a.ranks}
        for q in (queue, other)
    )
    assert after == before


def test_a_ranking_of_label_studio_without_buckets_and_of_argilla_by_names(tmp_path):
    queue = a_queue(tmp_path, [task(1)])
    items = [{"id": str(i), "body": "x"} for i in range(3)]
    result = {"from_name": "rank", "to_name": "list", "type": "ranker", "value": {"ranker": {"rank": ["2", "0", "1"]}}}
    row = {
        "id": 7, "data": {"task_id": "t0001", "items": items},
        "annotations": [{"completed_by": 3, "was_cancelled": False, "result": [result]}, {"was_cancelled": True}],
    }  # fmt: skip
    file = tmp_path / "ls.json"
    file.write_text(json.dumps([row]))
    assert read_file(queue, file) == (1, 0)
    assert answers_of(queue, "3")["t0001"].ranks == (2, 3, 1)
    fields = {"prompt": "p", "response-1": "a", "response-2": "b", "response-3": "c"}
    values = ["response-3", "response-1", "response-2"]
    given = {"ranking": [{"value": values, "user_id": "ann@example.org"}]}
    file.write_text(json.dumps([{"id": "t0001", "fields": fields, "responses": given}]))
    assert read_file(queue, file) == (1, 0)
    assert {own["t0001"].ranks for own in all_answers(queue).values()} == {(2, 3, 1)}


@pytest.mark.parametrize(("content", "told"), [
    ("{", "no JSON"), ("{}", "no list of tasks"), ("[]", "no list of tasks"), ('[{"x": 1}]', "task 1 has x"),
    ('[{"data": {"task_id": "t9", "items": []}, "annotations": [{"completed_by": 1, "result": [{"type": "ranker", '
     '"value": {"ranker": []}}]}]}]', "task 't9' is not in queue"),
    ('[{"data": {}, "annotations": [{"result": 3}]}]', "its answers are not as exported"),
])  # fmt: skip
def test_a_file_of_another_kind_adds_nothing(tmp_path, content, told):
    queue = a_queue(tmp_path, [task(1)])
    file = tmp_path / "in.json"
    file.write_text(content)
    with pytest.raises(DataError, match=told):
        read_file(queue, file)
    assert all_answers(queue) == {}


def test_answers_of_a_file_are_added_at_once(tmp_path):
    queue = a_queue(tmp_path, [task(i) for i in range(5)])
    annotations = [an_answer(queue, who, f"t000{i}", [1, 2, 3]) for who in ("ann", "bob") for i in range(5)]
    assert save_all(queue, annotations) == 10
    assert save_all(queue, annotations) == 0


def test_preferences_keep_what_is_no_ascii_and_what_would_act(tmp_path):
    queue = a_queue(tmp_path, [task(1, (HOSTILE, "größe", "好"))])
    answer(queue, "ann", "t0001", [1, 2, 3])
    assert preferences_of(queue)[0]["responses"] == [HOSTILE, "größe", "好"]
    close(queue, tmp_path / "p.jsonl")
    assert json.loads((tmp_path / "p.jsonl").read_text())["responses"] == [HOSTILE, "größe", "好"]
    assert os.listdir(tmp_path / "labels") == ["q"]
