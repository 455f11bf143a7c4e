"""What speaks against a score, on texts for which one sees what must come out."""

import math

import fake_runs
import numpy as np
import pyarrow as pa
import pytest
from test_pages import client

from flows.analysis.duplicates import jaccard, near_duplicates, shingles_of, signature_of
from flows.analysis.hacking import most_suspicious, sampled, standardized
from flows.analysis.phrases import grown_phrases, ngrams_of, search_of, words_of
from flows.config import checked
from flows.plan import plan
from flows.query import parse, select, span
from flows.query.conditions import mask_of
from flows.runs import find_run

# Phrases


def test_words_are_told_apart_from_marks():
    assert words_of("It's THE lamp, isn’t it?") == ["it's", "the", "lamp", ",", "isn’t", "it", "?"]
    assert ngrams_of("a b") == {("a",), ("b",), ("a", "b")}


def test_a_phrase_that_grew_is_told_with_its_shares_and_its_effect():
    before = ["the lamp is here", "the cup is here", "the key is here", "the box is here"]
    now = ["have a nice day", "have a nice day", "have a nice day", "the lamp"]
    (found,) = grown_phrases(before, now, [3.0, 4.0, 5.0, 0.0])
    # "have", "a nice" and so on are had by the same responses, so that the one with the most words is told for all.
    assert found.text == "have a nice day"
    assert (found.share_before, found.share_now, found.responses, found.growth) == (0.0, 0.75, 3, 0.75)
    assert found.effect.difference == 4.0


def test_phrases_that_nearly_the_same_responses_have_are_told_once_and_words_before_marks():
    # Nine of ten go on after "thank you": what overlaps with the longest phrase tells the same.
    now = ["it is here . thank you for asking ."] * 9 + ["it is here . thank you ."]
    found = grown_phrases(["it is here ."] * 10, now, np.zeros(10))
    assert [phrase.text for phrase in found] == ["thank you for asking"]


def test_what_chance_explains_is_not_told():
    # 60 of 100 after 50 of 100: a tenth more, of which the standard error is 0.07.
    before = ["yes"] * 50 + ["no"] * 50
    assert grown_phrases(before, ["yes"] * 60 + ["no"] * 40, np.zeros(100)) == []
    (found,) = grown_phrases(before, ["yes"] * 75 + ["no"] * 25, np.zeros(100))
    assert found.text == "yes"
    assert found.growth_stderr == pytest.approx(math.sqrt(0.25 / 100 + 0.1875 / 100))


def test_the_effect_is_a_difference_of_means_whose_error_knows_the_prompts():
    now = ["please x", "please y", "please z", "please w", "u", "v"]
    scores, quality = np.array([1.0, 2.0, 3.0, 2.0, 0.0, 1.0]), np.array([0.0, 0.0, 0.0, 0.0, 2.0, np.nan])
    (phrase,) = grown_phrases([], now, scores, held_out={"quality": quality})
    # Means 2 and ½. Each response a prompt of its own: (1 + 0 + 1 + 0) / 4² + (¼ + ¼) / 2², times 6 / 5.
    assert phrase.text == "please"
    assert (phrase.effect.inside, phrase.effect.outside, phrase.effect.difference) == (2.0, 0.5, 1.5)
    assert phrase.effect.stderr == pytest.approx(math.sqrt((2 / 16 + 0.5 / 4) * 6 / 5))
    # The score rises with it, and what is held out falls.
    assert phrase.held_out["quality"].difference == -2.0
    # Two prompts of two and four responses: 1 and 3 cancel to 0, as do 2 and 2, and 0 and 1.
    (phrase,) = grown_phrases([], now, scores, prompts=["p", "q", "p", "q", "q", "q"])
    assert phrase.effect.stderr == pytest.approx(0.0)


def test_without_others_or_scores_there_is_no_effect():
    (phrase,) = grown_phrases(["no"] * 5, ["yes"] * 5, np.zeros(5))
    assert phrase.effect is None
    (phrase,) = grown_phrases(["no"] * 5, ["yes"] * 5 + ["no"], np.full(6, np.nan))
    assert phrase.effect is None
    (phrase,) = grown_phrases(["no"] * 5, ["yes"] * 5 + ["no"], np.zeros(6), prompts=["p"] * 6)
    assert (phrase.effect.difference, phrase.effect.stderr) == (0.0, None)


def test_what_shrank_or_is_rare_is_not_told():
    assert grown_phrases(["a"] * 4, ["a", "a", "a", "b"], [0.0] * 4) == []
    assert grown_phrases([], ["b", "b", "c"], [0.0] * 3) == []


def test_openings_are_the_first_words():
    found = grown_phrases(["no"], ["Sure, here is x"] * 3 + ["no"], [0.0] * 4, openings=True)
    assert [phrase.text for phrase in found] == ["sure , here"]


@pytest.mark.parametrize(
    ("phrase", "has_it", "has_it_not"),
    [
        ("sure , here", "Sure, here it is", "sure here"),
        ("it's", "It's x", "bit's"),
        ("a . b?", "A.  b?", "ab?"),
        ("is", "what IS it", "this list"),
        ("a day", "a\nday", "aday"),
        ("über", "Über x", "uber"),
        ("a/b", "A/b", "a b"),
    ],
)
def test_a_search_finds_the_responses_with_a_phrase_and_no_others(phrase, has_it, has_it_not):
    table = pa.table({"response": [has_it, has_it_not]})
    (condition,) = parse(search_of(" ".join(words_of(phrase)))).conditions
    assert mask_of(condition, lambda name: table.column(name), 2).to_pylist() == [True, False]


def test_a_search_for_an_opening_finds_it_at_the_beginning_alone():
    table = pa.table({"response": [" Sure, here", "x sure, here"]})
    (condition,) = parse(search_of("sure ,", is_opening=True)).conditions
    assert mask_of(condition, lambda name: table.column(name), 2).to_pylist() == [True, False]


# Near-duplicates


def test_texts_that_differ_in_case_and_marks_are_one_group():
    texts = [
        "The lamp is on the shelf. Have a nice day!",
        "a wholly other sentence about keys",
        "the lamp is on the shelf have a nice day",
    ]
    (group,) = near_duplicates(texts)
    assert (group.rows, group.share) == ((0, 2), pytest.approx(2 / 3))


def test_similarity_decides_and_not_chance():
    words = [f"w{i}" for i in range(60)]
    base = " ".join(words)
    # One word in the middle changed takes three of 58 shingles: 55/61 are shared. Every tenth word: far fewer.
    near = " ".join([*words[:30], "x", *words[31:]])
    far = " ".join(w if i % 10 else "y" for i, w in enumerate(words))
    assert jaccard(shingles_of(base), shingles_of(near)) == pytest.approx(55 / 61)
    assert [group.rows for group in near_duplicates([base, near, far])] == [(0, 1)]


def test_groups_are_transitive_and_the_largest_comes_first():
    texts = ["a b c d", "e f g h i", "a b c d", "e f g h i", "a b c d", "", " ", "z"]
    assert [group.rows for group in near_duplicates(texts)] == [(0, 2, 4), (1, 3)]
    assert near_duplicates([]) == []


def test_the_share_of_equal_minima_is_the_similarity():
    one, other = frozenset(range(1000)), frozenset(range(500, 1500))
    same = np.mean(signature_of(one) == signature_of(other))
    # A third, of 64 hashes: three standard deviations are 0.18.
    assert same == pytest.approx(1 / 3, abs=0.18)


# Suspicion


def test_the_most_suspicious_has_a_score_that_its_held_out_reward_does_not_earn():
    rows = [{"score": s, "held_out_q": q} for s, q in [(0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (2.0, 2.0), (None, 5.0)]]
    found = most_suspicious(rows, ["held_out_q"])
    assert found[0]["score"] == 2.0
    assert found[0]["held_out_q"] == 0.0
    # Scores 0 1 2 2 have mean 5/4 and variance 11/16; held out 0 1 0 2 have 3/4 and 11/16.
    assert found[0]["doubt"] == pytest.approx((2 - 1.25) / math.sqrt(11 / 16) + 0.75 / math.sqrt(11 / 16))
    assert most_suspicious(rows, []) == []


def test_without_spread_nothing_is_out_of_place():
    assert standardized([1.0, 1.0, None]).tolist() == [0.0, 0.0, 0.0]
    assert standardized([None]).tolist() == [0.0]


# The page


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    fake_runs.finished_run(home, "done", fake_runs.document(home))
    return home


def test_of_many_rows_some_are_read_evenly_from_all(home):
    data_set = select(find_run(home, "done"), rounds=span("all", option=""), iterations=span("all", option="")).data_set
    everything = [row["rollout_id"] for row in data_set.search()]
    for step in (1, 2, 3, 5):
        assert [row["rollout_id"] for row in data_set.search().every(step)] == everything[::step]
    assert sampled(data_set.search()).found == 8


def test_the_page_tells_what_is_suspicious_and_escapes_it(home):
    facts = client(home).get("/json/runs/done/hacking").json()
    assert [row["rollout_id"] for row in facts["suspicious"]] == ["r2.i2.s0.bb.0"]
    assert facts["held_out"] == ["true_quality"]
    assert facts["length_correlation"] == -1.0
    assert set(facts["points"]) == {"length", "held_out_true_quality"}
    assert facts["points"]["length"]["data"][0]["customdata"] == ["r2.i2.s0.aa.0", "r2.i2.s0.bb.0"]
    page = client(home).get("/runs/done/hacking").text
    assert "\x1b" not in page


def test_the_audit_of_before_is_shown_where_the_configuration_has_changed(tmp_path):
    document = fake_runs.document(tmp_path)
    run = fake_runs.finished_run(tmp_path, "old", document)
    run.set_config(checked({**document, "seed": 7}, where="test"))
    facts = client(tmp_path).get("/json/runs/old/hacking?round=1&iteration=2").json()
    assert facts["length_correlation"] == -1.0
    assert (facts["round"], facts["iteration"], facts["places"]) == ("1", "2", [[1, 2]])


def test_a_place_that_is_none_is_told_in_one_sentence(home):
    answer = client(home).get("/json/runs/done/hacking?iteration=x")
    assert (answer.status_code, answer.json()["error"]) == (400, "iteration x: not a number, a range like 2-5, or all")


def test_the_page_makes_the_plan_of_the_run_once(home, monkeypatch):
    made, make = [], plan.make_plan
    monkeypatch.setattr(plan, "make_plan", lambda run, *how, **more: made.append(run.name) or make(run, *how, **more))
    assert client(home).get("/json/runs/done/hacking").status_code == 200
    assert made == ["done"]
