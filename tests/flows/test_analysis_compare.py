"""Two places against each other, prompt by prompt, and two configurations."""

import json
import re
import time

import fake_runs
import numpy as np
import pyarrow as pa
import pytest
from fake_runs import document, finished_run
from hypothesis import given
from hypothesis import strategies as st
from test_pages import client

from flows.analysis.compare import compared
from flows.analysis.differences import MISSING, chosen_settings, differing_settings
from flows.analysis.sides import Side, side_of
from flows.analysis.words import MOST_WORDS, word_differences
from flows.config import checked
from flows.query import DataSet, Part, Selection
from flows.runs import find_run
from tasks.errors import ConfigError, RunError
from tasks.store import Place, Ref, audit_schema, table_of
from tasks.store.data_sets import write_dataset

# Words

texts = st.text(st.sampled_from("ab .\n"), max_size=40)


@given(texts, texts)
def test_the_pieces_of_a_text_together_are_the_text(before, after):
    pieces = word_differences(before, after)
    assert "".join(text for which, text in pieces if which != "b") == before
    assert "".join(text for which, text in pieces if which != "a") == after


def test_words_that_differ_stand_between_those_that_do_not():
    assert word_differences("the ring is under the table.", "the ring is by the door. thank you.") == [
        ("same", "the ring is"),
        ("a", " under"),
        ("b", " by"),
        ("same", " the"),
        ("a", " table"),
        ("b", " door. thank you"),
        ("same", "."),
    ]


def test_two_long_texts_that_repeat_one_word_are_no_trap():
    before, after = "start " + "kind " * 50_000 + "x end", "start " + "mild " * 50_000 + "y end"
    started = time.perf_counter()
    assert [which for which, _ in word_differences(before, after)] == ["same", "a", "b", "same"]
    word_differences("a b " * (MOST_WORDS // 2), "b a " * (MOST_WORDS // 2))
    assert time.perf_counter() - started < 5


# Two places


def changing(monkeypatch):
    """Have iteration 2 of each round answer otherwise: the first prompt's score rises while its held-out reward falls."""
    plain = fake_runs.rollouts

    def rollouts(place, columns):
        table = plain(place, columns)
        if place.iteration != 2 or "score" not in table.column_names:
            return table
        at = table.column_names.index("score")
        table = table.set_column(at, columns.field(at), pa.array([1.0, 3.5], pa.float32()))
        at = table.column_names.index("response")
        return table.set_column(at, columns.field(at), pa.array(["a good dog", "bad"]))

    def write_audit(directory, place):
        ids = plain(place, fake_runs.ROLLOUTS)["rollout_id"].to_pylist()
        held_out = [2.5, 3.5] if place.iteration == 2 else [6.5, 2.5]
        rows = list(zip(ids, [1.0, None], held_out, strict=True))
        write_dataset(directory / "audit", table_of(rows, audit_schema(["true_quality"])))
        return {"audit/length_correlation": -1.0}

    def write_reward_model(directory, place):
        fake_runs.write_model(directory / "reward_model", score_mean=float(place.round), score_std=2.0)
        return {"reward_model/accuracy": 0.8}

    monkeypatch.setattr(fake_runs, "rollouts", rollouts)
    monkeypatch.setitem(fake_runs.WRITERS, "train_reward_model", write_reward_model)
    monkeypatch.setitem(fake_runs.WRITERS, "audit_rollouts", write_audit)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run whose iterations answer otherwise, and one with other settings."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch:
        changing(monkeypatch)
        settings = document(home)
        # Round 2 knows more preferences, so that it trains a reward model of its own.
        settings["data"]["preferences"].append({"path": settings["data"]["preferences"][0], "from_round": 2})
        finished_run(home, "one", settings)
        finished_run(home, "two", {**settings, "seed": 7, "ppo": {"epochs": 3}})
    return home


@pytest.fixture
def side(home):
    return lambda text: side_of(text, lambda name: find_run(home, name or "one"))


def test_prompts_whose_score_rose_while_a_held_out_reward_fell_come_first(side):
    found = compared(side("1.1"), side("one:1.2"))
    first, second = found.pairs()
    assert (found.prompts, found.doubtful) == (2, 1)
    assert [own.name for own in found.sides] == ["one, round 1, iteration 1", "one, round 1, iteration 2"]
    assert (first.prompt_id, first.is_doubtful) == ("aa", True)
    assert (second.prompt_id, second.is_doubtful) == ("bb", False)
    assert first.changes == {"score": 2.0, "true_quality": -4.0, "length": 0.0, "kl_sum": 0.0}
    assert second.changes == {"score": 0.5, "true_quality": 1.0, "length": 0.0, "kl_sum": 0.0}
    assert (first.a.response, first.b.response) == (fake_runs.HOSTILE, "a good dog")
    assert second.words == [("same", "bad")]
    score, held_out = found.changes[:2]
    assert (score.name, score.kind, score.a, score.b, score.change) == ("score", "score", 1.0, 2.25, 1.25)
    # Changes 2 and 1/2: half their difference is the standard error of their mean.
    assert (score.rose, score.fell, score.stderr) == (2, 0, pytest.approx(0.75))
    assert (held_out.name, held_out.kind, held_out.change) == ("true_quality", "held-out", -1.5)
    assert found.has_one_scale
    assert found.settings == []
    assert [values.tolist() for values in found.values("score")] == [[-1.0, 3.0], [1.0, 3.5]]


def test_a_comparison_is_searched_sorted_and_cut(side):
    a, b = side("1.1"), side("1.2")
    assert [pair.prompt_id for pair in compared(a, b, order="-true_quality").pairs()] == ["bb", "aa"]
    assert [pair.prompt_id for pair in compared(a, b, order="true_quality").pairs(0, 1)] == ["aa"]
    assert [pair.prompt_id for pair in compared(a, b, search="finish_reason:length").pairs()] == ["bb"]
    with pytest.raises(ConfigError, match="--sort nope: no such number; there are doubt, score, true_quality"):
        compared(a, b, order="nope")
    with pytest.raises(RunError, match=r"^nowhere: finds nothing in 1\.1; correct the search"):
        compared(a, b, search="nowhere")
    with pytest.raises(RunError, match=r"finds nothing in 1\.2"):
        compared(a, b, search='good -"a good dog"')


def test_a_comparison_is_plain_json(side):
    found = json.loads(json.dumps(compared(side("1.1"), side("2.2")).as_dict(0, 1), allow_nan=False))
    assert (found["sides"][0]["run"], found["sides"][1]["last"], len(found["pairs"])) == ("one", [2, 2], 1)
    assert {"name": "true_quality", "kind": "held-out", "change": -1.5}.items() <= found["changes"][1].items()
    assert found["has_one_scale"] is False


def test_two_runs_differ_in_their_settings_too(side):
    found = compared(side("one:1.1"), side("two:1.1"))
    assert [(setting.name, setting.a, setting.b) for setting in found.settings] == [
        ("seed", 0, 7),
        ("ppo.epochs", 4, 3),
    ]


@pytest.mark.parametrize(
    ("text", "run", "places"),
    [
        ("one:1.2", "one", [(1, 2)]),
        ("1.2", "one", [(1, 2)]),
        ("two:all.1", "two", [(1, 1), (2, 1)]),
        ("all.all", "one", [(1, 1), (1, 2), (2, 1), (2, 2)]),
        ("one:1-2.2", "one", [(1, 2), (2, 2)]),
    ],
)
def test_a_place_is_written_in_one_way(side, text, run, places):
    own = side(text)
    assert (own.run.name, own.place, own.data) == (run, text, "rollouts")
    assert [(part.place.round, part.place.iteration) for part in own.select().parts] == places


def test_without_an_iteration_the_evaluation_is_meant(side):
    for text in ("one", "one:", "one:2"):
        assert side(text).data == "evaluation"
        # Fake runs have no rows of an evaluation.
        with pytest.raises(RunError, match="has no evaluation yet"):
            side(text).select()


def test_an_attempt_is_named_behind_its_place(side):
    part = side("1.2").select().parts[0]
    own = side(f"one:1.2@{part.ref.directory.name[:8]}")
    assert [other.ref for other in own.select().parts] == [part.ref]


@pytest.mark.parametrize("text", ["one:1.x", "one:1.2.3", ":1.1", "one:1.", "one:-1", ""])
def test_a_place_that_cannot_be_read_is_told(side, text):
    with pytest.raises(ConfigError, match="not a place; write RUN, RUN:ROUND, "):
        side(text)


def test_a_place_that_is_not_there_is_told(side):
    with pytest.raises(RunError, match="gone: no run of that name"):
        side("gone:1.1")
    with pytest.raises(RunError, match="has no rollouts of round 1, iteration 9"):
        compared(side("one:1.9"), side("one:1.1"))


def made(run, table):
    """A side whose rows were never written."""
    part = Part(run=run.name, place=Place(1, 1), stage="", name="rollouts", ref=Ref(str(run.root), ""))
    part.__dict__["table"] = table
    return Side(run=run, iterations=None, attempt="x"), Selection(data_set=DataSet(parts=(part,)), is_current=True)


def compared_tables(monkeypatch, run, a, b):
    sides = [made(run, table) for table in (a, b)]
    monkeypatch.setattr(Side, "select", lambda side: next(chosen for own, chosen in sides if own is side))
    monkeypatch.setattr("flows.analysis.compare.reward_models_of", lambda run, selection: set())
    return compared(*(side for side, _ in sides))


def test_of_a_prompt_s_samples_the_mean_counts_and_a_copy_of_a_prompt_is_the_prompt(home, monkeypatch):
    def table(scores):
        ids = ["aa", "aa", "aa-2", "only"]
        texts = {"prompt": ["p"] * 4, "response": [f"{score}" for score in scores], "rollout_id": list("wxyz")}
        return pa.table({"prompt_id": ids, **texts, "score": scores})

    tables = table([0.0, 2.0, 4.0, 9.0]), table([6.0, 1.0, 2.0, 9.0])
    first, second = compared_tables(monkeypatch, find_run(home, "one"), *tables).pairs()
    assert {(p.prompt_id, p.a.numbers["score"], p.b.numbers["score"]) for p in (first, second)} == {
        ("aa", 2.0, 3.0),
        ("only", 9.0, 9.0),
    }
    # The response nearest to the mean is shown.
    assert (first.a.response, first.b.response, first.a.samples) == ("2.0", "2.0", 3)


def test_200_000_rows_on_each_side_are_compared_in_seconds(home, monkeypatch):
    num_rows = 200_000
    ids = pa.array([f"p{i % 50_000:012d}" for i in range(num_rows)])
    one = pa.array(["a response of a few words"] * num_rows)
    tables = []
    for seed in (0, 1):
        score = np.random.default_rng(seed).normal(size=num_rows)
        columns = {"rollout_id": ids, "prompt_id": ids, "prompt": one, "response": one, "score": score}
        tables.append(pa.table(columns))
    started = time.perf_counter()
    found = compared_tables(monkeypatch, find_run(home, "one"), *tables)
    assert len(found.pairs(0, 50)) == 50
    assert time.perf_counter() - started < 5
    assert found.prompts == 50_000


# Configurations


def test_what_differs_is_told_by_its_name_with_defaults_filled_in(tmp_path):
    a = checked(document(tmp_path), where="test")
    changes = {"ppo": {"epochs": 2}, "warm_up": {}, "rewards": {"preference": {"model": "trained", "weight": 2.0}}}
    b = checked(document(tmp_path, **changes), where="test")
    found = {s.name: (s.a, s.b) for s in differing_settings(a, b)}
    assert found["ppo.epochs"] == (4, 2)
    assert found["rewards.preference.weight"] == (1.0, 2.0)
    assert found["warm_up"] == (None, MISSING)
    assert found["warm_up.epochs"][0] == MISSING
    assert differing_settings(a, a) == []


def test_what_was_chosen_is_told_with_the_default(tmp_path):
    config = checked(document(tmp_path, ppo={"epochs": 2}), where="test")
    found = {s.name: (s.a, s.b) for s in chosen_settings(config)}
    assert found["ppo.epochs"] == (4, 2)
    assert found["rounds"] == (1, 2)
    assert found["rollouts.shards"] == (1, 2)
    assert found["rollouts.sampling.max_new_tokens"] == (MISSING, 4)
    assert "advantages.kl_coef" not in found
    assert chosen_settings(config)[0].as_dict() == {"name": "rounds", "a": 1, "b": 2}


# The page


def test_the_page_compares_and_swaps_and_escapes(home):
    get = client(home).get
    facts = get("/json/compare?a=one:1.1&b=one:2.2").json()
    assert facts["comparison"]["prompts"] == 2
    assert facts["swapped"] == "/compare?a=one%3A2.2&b=one%3A1.1"
    assert facts["comparison"]["rows"][0]["responses"][0]["address"].startswith("/runs/one/rollouts/r1.i1.s0.")
    page = get("/compare?a=one:1.1&b=one:2.2").text
    assert "\x1b" not in page
    assert "different reward models" in page
    assert "different reward models" not in get("/compare?a=one:1.1&b=one:1.2").text
    assert "both sides are" in get("/compare?a=one:1.1&b=one:1.1").text
    assert get("/json/compare?run=one&run=two").status_code == 404
    assert "has no evaluation yet" in get("/compare?run=one&run=two").text
    assert get("/json/compare?run=one").json()["comparison"] is None
    assert get("/compare").status_code == 200


@pytest.mark.parametrize(
    ("asked", "told", "status"),
    [
        ("a=one:9.9&b=one:1.1&q=good", "has no rollouts of round 9, iteration 9", 404),
        ("a=one:1.1&b=none:1.1&q=good", "none: there is no such run", 404),
        ('a=one:1.1&b="><b>&q=good', "&gt;&lt;b&gt;", 404),
        ("a=one:1.1&b=one:1.2&q=good+nope<3", "nope", 400),
    ],
)
def test_a_mistake_in_a_place_leaves_the_form_as_it_was_typed(home, asked, told, status):
    answer = client(home).get(f"/compare?{asked}")
    assert answer.status_code == status
    page = answer.text
    sentence, _, form = page.partition('<form action="/compare"')
    assert told in sentence
    typed = dict(pair.split("=", 1) for pair in asked.replace("+", " ").split("&"))
    for name, value in typed.items():
        written = value.replace('"', "&#34;").replace("<", "&lt;").replace(">", "&gt;")
        assert re.search(rf'name="{name}" value="{re.escape(written)}"', form)
    assert client(home).get(f"/json/compare?{asked}").status_code == status


def test_the_page_searches_and_sorts_by_its_address(home):
    get = client(home).get
    facts = get("/json/compare?a=one:1.1&b=one:1.2&sort=-true_quality").json()
    assert [row["changes"]["true_quality"] for row in facts["comparison"]["rows"]] == [1.0, -4.0]
    assert facts["swapped"] == "/compare?a=one%3A1.2&b=one%3A1.1&sort=-true_quality"
    by_name = {column["name"]: column for column in facts["comparison"]["columns"]}
    assert list(by_name) == ["score", "true_quality", "length"]
    assert (by_name["true_quality"]["sorted"], by_name["true_quality"]["next"]) == ("down", "doubt")
    assert (by_name["score"]["sorted"], by_name["score"]["next"]) == ("", "score")
    # What lies over each other: the score, and what training never sees.
    assert list(facts["comparison"]["charts"]) == ["score", "true_quality"]
    found = get("/json/compare?a=one:1.1&b=one:1.2&q=finish_reason:length").json()
    assert found["comparison"]["prompts"] == 1
    page = get("/compare?a=one:1.1&b=one:1.2&q=finish_reason:length").text
    assert 'href="/compare?a=one%3A1.1&amp;b=one%3A1.2&amp;q=finish_reason%3Alength&amp;sort=score"' in page
    assert "nowhere: finds nothing in one:1.1" in get("/compare?a=one:1.1&b=one:1.2&q=nowhere").text
    assert get("/json/compare?a=one:1.1&b=one:1.2&sort=nope").status_code == 400
