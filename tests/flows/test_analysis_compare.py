"""Two places against each other, prompt by prompt, and two configurations."""

import fake_runs
import pyarrow as pa
import pytest
from test_pages import client

from flows.analysis.compare import Row, compared, doubtful_first, responses_of, side_of, word_differences
from flows.analysis.differences import chosen_settings, differing_settings
from flows.config.reading import checked
from flows.runs import find_run
from tasks.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run whose scores rise by the iteration, for one prompt more than for the other, and one with another seed."""
    home = tmp_path_factory.mktemp("home")
    alone = fake_runs.rollouts

    def rising(place, columns):
        table = alone(place, columns)
        if "score" not in table.column_names:
            return table
        scores = pa.array([1.0 * place.iteration, 3.0 * place.iteration + place.round], pa.float32())
        return table.set_column(table.column_names.index("score"), columns.field("score"), scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_runs, "rollouts", rising)
        fake_runs.finished_run(home, "one", fake_runs.document(home))
        fake_runs.finished_run(home, "two", fake_runs.document(home, seed=7, ppo={"epochs": 3}))
    return home


@pytest.fixture
def side(home):
    return lambda text: side_of(text, lambda name: find_run(home, name or "one"))


def test_places_are_read(side):
    assert (side("one:2.1").round, side("one:2.1").iteration, side("one:2.1").place) == (2, 1, "one:2.1")
    assert side("1.2").place == "one:1.2"
    assert side("two:1.1").name == "two, round 1, iteration 1"
    for text in ("one:x", "one:1.2.3", ":1.1", "one:1.", "one:-1"):
        with pytest.raises(ConfigError, match="not a place; write RUN, RUN:ROUND, "):
            side(text)
    with pytest.raises(RunError, match="gone: no run of that name"):
        side("gone:1.1")
    with pytest.raises(RunError, match="has no rollouts of round 1, iteration 9"):
        side("one:1.9")
    # Fake runs have no rows of an evaluation.
    with pytest.raises(RunError, match="has no evaluation yet"):
        side("one:1")


def test_prompts_are_joined_and_changes_are_means_over_them(side):
    found = compared(side("one:1.1"), side("one:2.2"))
    rows = {row.prompt_id: row for row in found.rows}
    # aa goes from 1 to 2, bb from 3·1 + 1 to 3·2 + 2.
    assert (rows["aa"].score, rows["bb"].score) == ((1.0, 2.0), (4.0, 8.0))
    (score, length, quality) = found.summary()
    assert (score["a"], score["b"], score["change"]) == (2.5, 5.0, 2.5)
    # Changes 1 and 4: their standard deviation is 3/√2, and that of their mean 3/2.
    assert score["stderr"] == pytest.approx(1.5)
    assert (length["name"], length["change"]) == ("length", 0.0)
    # bb has no finite value on either side, and counts for nothing.
    assert (quality["name"], quality["a"], quality["change"]) == ("true_quality", 4.5, 0.0)
    assert found.settings == []


def test_where_the_score_rose_and_the_held_out_reward_fell_comes_first():
    rows = [
        Row(prompt_id=name, score=(0.0, score), length=(1.0, 1.0), held_out={"q": (0.0, quality)})
        for name, score, quality in [("both up", 2.0, 2.0), ("both down", -2.0, -2.0), ("hacked", 2.0, -2.0)]
    ]
    assert next(rows[i].prompt_id for i in doubtful_first(rows)) == "hacked"


def test_two_runs_differ_in_their_settings_too(side):
    found = compared(side("one:1.1"), side("two:1.1"))
    assert ("seed", 0, 7) in found.settings
    assert [name for name, _, _ in found.settings] == ["seed", "ppo.epochs"]


def test_sides_without_a_common_prompt_are_told(side, monkeypatch):
    monkeypatch.setattr("flows.analysis.compare.means_by", lambda rows, key, columns: ([str(id(rows))], {}))
    with pytest.raises(RunError, match=r"one:1\.1 and one:1\.2 have no prompt in common; compare evaluations"):
        compared(side("one:1.1"), side("one:1.2"))


def test_a_response_of_each_prompt_is_the_first(side):
    found = responses_of(side("one:1.2"), ["bb", "nothing"])
    assert {name: row["rollout_id"] for name, row in found.items()} == {"bb": "r1.i2.s0.bb.0"}


def test_words_that_differ_are_told_apart():
    assert word_differences("the red lamp is here", "the lamp is not here") == [
        ("same", "the"), ("a", " red"), ("same", " lamp is"), ("b", " not"), ("same", " here"),
    ]  # fmt: skip
    assert word_differences("", "x") == [("b", "x")]
    assert word_differences("x y", "x y") == [("same", "x y")]
    both = "".join(text for what, text in word_differences("a b\n c", "a x\n c d") if what != "a")
    assert both == "a x\n c d"


def test_what_was_chosen_is_told_and_what_is_a_default_is_not(tmp_path):
    config = checked(fake_runs.document(tmp_path, seed=7), where="test")
    chosen = dict(chosen_settings(config))
    assert (chosen["seed"], chosen["rollouts.shards"]) == (7, 2)
    assert "ppo.epochs" not in chosen
    other = config.model_copy(update={"seed": 8})
    assert differing_settings(config, other) == [("seed", 7, 8)]


def test_the_page_compares_and_swaps_and_escapes(home):
    get = client(home).get
    facts = get("/json/compare?a=one:1.1&b=one:2.2").json()
    assert facts["comparison"]["prompts"] == 2
    assert facts["swapped"] == "/compare?a=one%3A2.2&b=one%3A1.1"
    assert facts["comparison"]["rows"][0]["responses"][0]["address"].startswith("/runs/one/rollouts/r1.i1.s0.")
    page = get("/compare?a=one:1.1&b=one:2.2").text
    assert "\x1b" not in page
    assert "both sides are" in get("/compare?a=one:1.1&b=one:1.1").text
    assert get("/json/compare?run=one&run=two").status_code == 404
    assert "has no evaluation yet" in get("/compare?run=one&run=two").text
    assert get("/json/compare?run=one").json()["comparison"] is None
    assert get("/compare").status_code == 200
