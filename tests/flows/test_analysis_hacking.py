"""What speaks against a score, on texts for which one sees what must come out."""

import math
import re

import fake_runs
import numpy as np
import pytest
from test_pages import client

from flows.analysis.duplicates import jaccard, near_duplicates, shingles_of, signature_of
from flows.analysis.hacking import most_suspicious, sampled, standardized
from flows.analysis.phrases import grown_phrases, ngrams_of, words_of
from flows.pages.facts.hacking import search_of
from flows.query import parse, select, span
from flows.runs import find_run

# Phrases


def test_words_are_told_apart_from_marks():
    assert words_of("It's THE lamp, isn’t it?") == ["it's", "the", "lamp", ",", "isn’t", "it", "?"]
    assert ngrams_of("a b") == {("a",), ("b",), ("a", "b")}


def test_a_phrase_that_grew_is_told_with_its_shares_and_its_effect():
    before = ["the lamp is here", "the cup is here", "the key is here", "the box is here"]
    now = ["have a nice day", "have a nice day", "have a nice day", "the lamp"]
    found = grown_phrases(before, now, [3.0, 4.0, 5.0, 0.0])
    first = found[0]
    # "have", "a nice" and so on are had by the same responses, so that the longest is told for all.
    assert [phrase.text for phrase in found] == ["have a nice day"]
    assert (first.share_before, first.share_now, first.responses, first.growth) == (0.0, 0.75, 3, 0.75)
    # One response alone has it not: of one value no spread is known.
    assert (first.effect, first.effect_stderr) == (None, None)


def test_the_effect_is_a_difference_of_means_with_the_error_of_welch():
    now = ["please x", "please y", "please z", "v", "w"]
    (phrase,) = grown_phrases([], now, [1.0, 2.0, 3.0, 0.0, 1.0])
    # Means 2 and ½, variances 1 and ½: 1.5 ± √(1/3 + 1/4).
    assert phrase.text == "please"
    assert phrase.effect == pytest.approx(1.5)
    assert phrase.effect_stderr == pytest.approx(math.sqrt(1 / 3 + 1 / 4))


def test_what_shrank_or_is_rare_is_not_told():
    assert grown_phrases(["a"] * 4, ["a", "a", "a", "b"], [0.0] * 4) == []
    assert grown_phrases([], ["b", "b", "c"], [0.0] * 3) == []


def test_openings_are_the_first_words():
    found = grown_phrases(["no"], ["Sure, here is x"] * 3 + ["no"], [0.0] * 4, openings=True)
    assert [phrase.text for phrase in found] == ["sure , here"]


def test_a_phrase_is_found_by_its_search():
    for phrase, text in {"sure , here": "Sure, here it is", "it's": "It's x", "a . b?": "A.  b?"}.items():
        (condition,) = parse(search_of(" ".join(words_of(phrase)))).conditions
        pattern = condition.text if condition.is_pattern else re.escape(condition.text)
        assert re.search(pattern, text, re.IGNORECASE), phrase


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
