"""The pages of rollouts: what a search finds, how its values lie, and one rollout with all that is known of it."""

import json
import re
import shutil
import time
from urllib.parse import parse_qs, urlsplit

import fake_runs
import pyarrow as pa
import pytest
from test_pages import client

from flows.query import distribution, parse, quoted, select, span, value_counts, written_terms
from flows.query.one_rollout import opened
from flows.query.tints import background, tints_of
from flows.runs import find_run
from tasks.store import read_dataset
from tasks.store.data_sets import write_dataset

IDS = [f"r{r}.i{i}.s0.{p}.0" for r in (1, 2) for i in (1, 2) for p in ("aa", "bb")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    fake_runs.finished_run(home, "done", fake_runs.document(home))
    return home


@pytest.fixture
def facts(home):
    """What the page of rollouts shows at an address."""
    return lambda **query: client(home).get("/json/runs/done/rollouts", params=query).json()


def ids(found):
    return [row["id"] for row in found["rows"]]


# The table


def test_the_latest_iteration_is_shown_unless_others_are_asked_for(facts):
    assert ids(facts()) == IDS[6:]
    assert ids(facts(round=1, iteration=2)) == IDS[2:4]
    assert ids(facts(round="all", iteration="all")) == IDS


def test_a_search_filters_and_sorts(facts):
    found = facts(round="all", iteration="all", q="score>0 sort:-round")
    assert ids(found) == [name for name in [*IDS[4:], *IDS[:4]] if ".bb." in name]
    assert (found["found"], found["total"]) == (4, 8)


def test_a_mistaken_search_is_told_where_it_was_written_and_the_rows_stay(home, facts):
    for search, told in {
        "nope<1": "nope: no such column; columns are",
        "score<x": "x is no number",
        '"open': "cannot be read",
    }.items():
        found = facts(q=search)
        assert told in found["mistake"]
        assert (found["q"], found["written"], found["chips"]) == ("", search, [])
        assert ids(found) == IDS[6:]
        # What was found before stays, and every link goes on from there.
        found = facts(q=search, kept="score>0")
        assert told in found["mistake"]
        assert (ids(found), found["q"]) == (IDS[7:], "score>0")
        assert [chip["term"] for chip in found["chips"]] == ["score>0"]
        assert ids(facts(q=search, kept=search)) == IDS[6:]
        page = client(home).get("/runs/done/rollouts", params={"q": search})
        assert page.status_code == 200
        assert 'role="alert"' in page.text


def test_each_term_has_a_link_that_removes_it(facts):
    chips = facts(q='good "a b" sort:-score')["chips"]
    assert [(chip["term"], chip["without"]) for chip in chips] == [
        ("good", '"a b" sort:-score'), ('"a b"', "good sort:-score"), ("sort:-score", 'good "a b"'),
    ]  # fmt: skip


def test_a_column_sorts_downwards_then_upwards_then_not(facts):
    def sort(q):
        (column,) = [column for column in facts(q=q)["columns"] if column["name"] == "score"]
        return column["sorted"], column["sort"]

    assert sort("good") == (None, "good sort:-score")
    assert sort("good sort:-score") == ("down", "good sort:score")
    assert sort("good sort:score") == ("up", "good")
    assert sort("sort:-length") == (None, "sort:-score")


def test_values_lie_between_their_ends_and_those_found_are_told_apart(facts):
    (score,) = [column for column in facts(q="score>0")["columns"] if column["name"] == "score"]
    lies = score["distribution"]
    assert (lies["low"], lies["high"]) == (-1.0, 3.0)
    assert (lies["all"][0], lies["all"][-1], sum(lies["all"])) == (1, 1, 2)
    assert (lies["found"][0], lies["found"][-1], sum(lies["found"])) == (0, 1, 1)


def test_a_range_takes_the_place_of_one_that_the_column_had(home, facts):
    found = facts(q='"a  score<5 b" score>=9 -score<1 score=3 length>2', column="score", **{"from": "-1.5", "to": "2"})
    assert found["q"] == '"a  score<5 b" -score<1 score=3 length>2 score>=-1.5 score<2'
    ranges = {
        column["name"]: column["range"] for column in facts(q="score>=0 score>1 length<9 -final_value<3")["columns"]
    }
    assert (ranges["score"], ranges["length"], ranges["kl_sum"]) == ([1.0, None], [None, 9.0], None)
    assert facts(q="score<1", column="score", **{"from": "", "to": " "})["q"] == ""
    assert ids(facts(column="score", **{"from": "0", "to": ""})) == IDS[7:]
    for mistaken in (
        {"column": "nope", "from": "1"},
        {"column": "score", "from": "x"},
        {"column": "response", "to": "1"},
    ):
        found = facts(q="good", kept="good", **mistaken)
        assert mistaken["column"] in found["mistake"]
        assert ids(found) == IDS[6:7]
    page = client(home).get("/runs/done/rollouts", params={"q": "score>=0"}).text
    assert page.count('class="mark"') == 1
    # The address of what is shown, for scripts to put in the place of that of a form.
    page = (
        client(home).get("/runs/done/rollouts", params={"q": "good", "column": "score", "to": "1", "kept": "good"}).text
    )
    assert 'data-address="/runs/done/rollouts?q=good+score%3C1"' in page


def test_facets_count_what_is_found_and_lead_to_it(facts):
    found = facts(round="all", iteration="all", q="good")
    facets = {facet["name"]: facet["values"] for facet in found["facets"]}
    assert [(value["value"], value["count"], value["q"]) for value in facets["round"]] == [
        ("1", 2, "good round=1"), ("2", 2, "good round=2"),
    ]  # fmt: skip
    # All of those found have one reason: there is nothing to choose.
    assert "finish_reason" not in facets
    every = {facet["name"]: facet["values"] for facet in facts(round="all", iteration="all")["facets"]}
    assert [(value["value"], value["count"]) for value in every["finish_reason"]] == [("length", 4), ("stop", 4)]
    assert ids(facts(round="all", iteration="all", q=every["finish_reason"][1]["q"])) == [n for n in IDS if ".aa." in n]


def test_columns_of_the_users_data_are_facets_that_find_what_they_count(tmp_path, monkeypatch):
    own = [
        {"kind": 'a "b"', "level": 1, "my column": "x", "sort": "up"},
        {"kind": "c", "level": 2.5, "my column": "y", "sort": "down"},
    ]
    alone = fake_runs.rollouts

    def with_own(place, columns):
        table = alone(place, columns)
        return table.set_column(
            table.column_names.index("extra"), columns.field("extra"), [[json.dumps(row) for row in own]]
        )

    monkeypatch.setattr(fake_runs, "rollouts", with_own)
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path))
    get = client(tmp_path).get
    facets = {facet["name"]: facet["values"] for facet in get("/json/runs/done/rollouts?q=-zzz").json()["facets"]}
    # A name that no search can say is no facet.
    assert facets.keys() == {"finish_reason", "kind", "level", "sort"}
    for values in facets.values():
        assert len(values) == 2
        for value in values:
            found = get("/json/runs/done/rollouts", params={"q": value["q"]}).json()
            assert (found["found"], found["mistake"]) == (value["count"], ""), value


def test_a_page_has_fifty_rows_and_the_next_one_goes_on(tmp_path):
    document = fake_runs.document(tmp_path, iterations=30)
    fake_runs.finished_run(tmp_path, "long", document)
    get = client(tmp_path).get
    first = get("/json/runs/long/rollouts?round=all&iteration=all&q=sort:-score").json()
    second = get("/json/runs/long/rollouts?round=all&iteration=all&q=sort:-score&page=2").json()
    assert (first["pages"], len(first["rows"]), second["page_number"]) == (3, 50, 2)
    assert [row["cells"]["score"] for row in second["rows"]] == [3.0] * 10 + [-1.0] * 40
    assert not set(ids(first)) & set(ids(second))
    beyond = get("/json/runs/long/rollouts?round=all&iteration=all&page=4").json()
    assert "page=4: not a whole number from 1 to 3" in beyond["mistake"]


def test_the_iteration_before_and_after_are_a_key_away(facts):
    found = facts(round=1, iteration=2)["neighbours"]
    assert [parse_qs(urlsplit(found[side]).query) for side in ("previous", "next")] == [
        {"round": ["1"], "iteration": ["1"]}, {"round": ["2"], "iteration": ["1"]},
    ]  # fmt: skip
    assert facts(round=1, iteration=1)["neighbours"]["previous"] is None
    assert facts(round="all", iteration="all")["neighbours"] == {"previous": None, "next": None}


def test_other_data_sets_are_searched_alike(facts):
    found = facts(data="audit", round="all", iteration="all", q="held_out_true_quality>5")
    assert (found["found"], found["total"]) == (4, 8)
    assert "not one of" in facts(data="nothing")["error"]
    assert "has no evaluation yet" in facts(data="evaluation")["error"]


def test_what_a_model_wrote_is_shown_and_not_obeyed(home):
    text = client(home).get("/runs/done/rollouts").text
    assert "\x1b" not in text
    assert "[red]good[/red]\\x1b[2J\n dog" in text


# One rollout


@pytest.fixture
def one(home):
    return lambda name="r2.i2.s0.aa.0", **query: (
        client(home).get(f"/json/runs/done/rollouts/{name}", params=query).json()
    )


def test_a_rollout_has_its_tokens_with_numbers_and_a_tint(one):
    found = one()
    assert [token["token"] for token in found["tokens"]] == ["good", " dog", "</s>"]
    assert found["tints"] == ["advantage", "kl", "reward", "value", "return", "logprob", "ref_logprob"]
    assert (found["tint"], found["tokens"][0]["advantage"], found["tokens"][0]["tint"]) == ("advantage", 2.0, 0.4)
    assert one(tint="logprob")["tokens"][0]["tint"] == -0.4
    assert "tint=love: not one of advantage" in one(tint="love")["error"]


def test_components_have_weights_and_held_out_rewards_none(one):
    parts = {part["name"]: (part["value"], part["weight"], part["is_held_out"]) for part in one()["components"]}
    assert parts == {"preference": (-1.0, 1.0, False), "true_quality": (6.5, None, True)}


def test_the_same_prompt_is_shown_through_all_rounds_the_references_answer_first(one):
    found = one()
    places = [(answer["round"], answer["iteration"]) for answer in found["answers"]]
    assert places == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [answer["is_reference"] for answer in found["answers"]] == [True, False, False, False]


@pytest.mark.parametrize(
    ("scores", "algorithm", "told"),
    [
        ([2.0, 2.0], "ppo", "all of one score<"),
        ([2.0, 2.0], "rloo", "all of one score, from which no gradient comes<"),
        ([2.0, 2.5], "rloo", None),
    ],
)
def test_siblings_of_one_score_are_marked(tmp_path, monkeypatch, scores, algorithm, told):
    alone = fake_runs.rollouts

    def together(place, columns):
        """Both responses to one prompt."""
        table = alone(place, columns)
        changed = {"prompt_id": ["aa", "aa"], "score": pa.array(scores, pa.float32())}
        for name in changed.keys() & set(table.column_names):
            table = table.set_column(table.column_names.index(name), columns.field(name), [changed[name]])
        return table

    monkeypatch.setattr(fake_runs, "rollouts", together)
    document = fake_runs.document(tmp_path, algorithm=algorithm)
    document["rollouts"]["samples_per_prompt"] = 2
    fake_runs.finished_run(tmp_path, "done", document)
    found = client(tmp_path).get("/json/runs/done/rollouts/r2.i2.s0.aa.0").json()
    assert [answer["rollout_id"] for answer in found["siblings"]] == ["r2.i2.s0.aa.0", "r2.i2.s0.bb.0"]
    assert found["no_spread"] == (told is not None)
    text = client(tmp_path).get("/runs/done/rollouts/r2.i2.s0.aa.0").text
    assert told in text if told else "all of one score" not in text


def test_it_says_where_it_came_from(home, one):
    origin = one()["origin"]
    assert origin["stage"] == "compute_advantages"
    assert client(home).get(f"/runs/done/stages/{origin['fingerprint']}").status_code == 200
    rounds = f"rounds --home {home} "
    assert origin["commands"] == [
        f"{rounds}show r2.i2.s0.aa.0 --run done", f"{rounds}replay done --round 2 --iteration 2",
    ]  # fmt: skip


def test_the_rollouts_beside_it_are_those_of_the_search_that_it_was_opened_from(home, one):
    def beside(name, **query):
        found = one(name, **query)["beside"]
        names = [row and row["rollout_id"] for row in (found["before"], found["after"])]
        return found["place"], found["found"], *names

    # Without a search those of its iteration.
    assert beside("r1.i2.s0.bb.0") == (1, 2, "r1.i2.s0.aa.0", None)
    search = {"q": "score>0 sort:-round", "rounds": "all", "iterations": "all"}
    assert beside("r1.i1.s0.bb.0", **search) == (2, 4, "r2.i2.s0.bb.0", "r1.i2.s0.bb.0")
    assert beside("r1.i1.s0.bb.0", q="score>0") == (0, 1, None, None)
    for query in (
        {"q": "score<0"},
        {"q": '"open'},
        {"q": "nope<1"},
        {"q": "sort:nope"},
        {"rounds": "x"},
        {"rounds": 2, "iterations": "all"},
    ):
        assert one("r1.i1.s0.bb.0", **query)["beside"] is None
        assert client(home).get("/runs/done/rollouts/r1.i1.s0.bb.0", params=query).status_code == 200
    page = client(home).get("/runs/done/rollouts/r1.i1.s0.bb.0", params={**search, "tint": "kl"}).text
    assert (
        'href="/runs/done/rollouts/r2.i2.s0.bb.0?tint=kl&amp;q=score%3E0+sort%3A-round&amp;rounds=all&amp;iterations=all"'
        in page
    )
    assert (
        'href="/runs/done/rollouts?round=all&amp;iteration=all&amp;q=score%3E0+sort%3A-round&amp;open=r1.i1.s0.bb.0&amp;tint=kl"'
        in page
    )
    table = (
        client(home)
        .get("/runs/done/rollouts", params={"q": "bad", "round": "all", "iteration": "all", "tint": "kl"})
        .text
    )
    assert (
        'href="/runs/done/rollouts/r1.i1.s0.bb.0?q=bad&amp;rounds=all&amp;iterations=all&amp;tint=kl" data-open'
        in table
    )


def test_a_colour_that_a_rollout_lacks_gives_way_to_one_that_it_has(tmp_path):
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path), stop_before=("score_rollouts", 1, 1))
    found = client(tmp_path).get("/json/runs/done/rollouts/r1.i1.s0.aa.0?tint=value").json()
    assert (found["tint"], found["tints"]) == ("logprob", ["logprob"])


@pytest.mark.parametrize(("name", "told"), [
    ("nothing", "nothing: not a rollout id like r1.i3.s0.PROMPT.SAMPLE"),
    ("r2.i2.s0.zz.0", "run done has no such rollout"),
    ("r9.i1.s0.aa.0", "has no rollouts of round 9"),
])  # fmt: skip
def test_a_rollout_that_is_not_there_is_told(home, name, told):
    answer = client(home).get(f"/runs/done/rollouts/{name}")
    assert answer.status_code == 404
    assert told in answer.text


def test_a_damaged_data_set_is_told(tmp_path):
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path))
    for path in (tmp_path / "runs" / "done" / "stages").rglob("rollouts/*.arrow"):
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    answer = client(tmp_path).get("/runs/done/rollouts")
    assert answer.status_code == 500
    assert "has another content than was committed" in answer.text
    assert "rounds rerun --from" in answer.text


WRITTEN = {
    "markup": "<b>bold</b><!--",
    "a script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "an address": '"><a href="javascript:alert(1)">x</a>',
    "terminal escapes": "\x1b]0;title\x07\x1b[2J",
    "reversed text": "\u202eevil\u202c\u2066x\u2069",
    "a template": "{{ 7*7 }}{% raw %}",
    "half a character": "\ud800",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_every_text_is_shown_and_none_obeyed(tmp_path, monkeypatch, text):
    monkeypatch.setattr(fake_runs, "HOSTILE", text.encode("utf-8", "replace").decode())
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path))
    for path in ("/runs/done/rollouts", "/runs/done/rollouts/r2.i2.s0.aa.0", "/runs/done/rollouts?q=" + "%3Cscript%3E"):
        page = client(tmp_path).get(path).text
        assert "<script>" not in page
        assert "onerror=" not in re.sub(r"&lt;img src=x onerror=alert\(1\)&gt;", "", page)
        assert 'href="javascript:' not in page
        assert not set("\x1b\x07\u202e\u202c\u2066\u2069") & set(page)
        assert "49" not in re.findall(r'class="response">([^<]*)', page)


@pytest.mark.parametrize(
    "pattern", ["(a*)*b", "(a|aa)+$", "(x+x+)+y", "(((a{100}){100}){100})", "(?=a)", r"(a)\1", "[", "a" * 1900]
)
def test_a_pattern_ends_or_is_refused(facts, pattern):
    began = time.monotonic()
    found = facts(q=f"/{pattern}/", round="all", iteration="all")
    assert time.monotonic() - began < 2
    assert found["mistake"] == "" or "is no pattern that can be searched for" in found["mistake"]


def test_an_attempt_that_is_gone_is_told(home):
    for path in ("rollouts", "rollouts/r2.i2.s0.aa.0"):
        answer = client(home).get(f"/runs/done/{path}", params={"attempt": "0123abcd"})
        assert answer.status_code in (400, 404)
        assert "0123abcd" in answer.text


def test_a_token_of_a_megabyte_is_cut_on_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_runs, "VOCABULARY", {**fake_runs.VOCABULARY, "z" * 1_000_000: 2, "good": 5})
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path))
    page = client(tmp_path).get("/runs/done/rollouts/r2.i2.s0.aa.0").text
    assert "… and 996,000 more characters" in page
    assert len(page) < 60_000


def test_a_megabyte_is_cut_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_runs, "HOSTILE", "x" * 1_000_000)
    fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path))
    page = client(tmp_path).get("/runs/done/rollouts").text
    assert len(page) < 60_000
    assert "… and 996,000 more characters" in page


# What they are made of


def test_an_id_that_no_token_has_is_one_sentence(tmp_path):
    run = fake_runs.finished_run(tmp_path, "done", fake_runs.document(tmp_path), stop_before=("update_policy", 1, 1))
    (output,) = (run.root / "stages" / "round-001" / "iteration-001" / "compute_advantages").iterdir()
    table = read_dataset(output / "rollouts")
    ids = pa.array([[2, -3, 1], [4]], table.schema.field("response_token_ids").type)
    at = table.schema.get_field_index("response_token_ids")
    table = table.set_column(at, table.schema.field(at), ids)
    shutil.rmtree(output / "rollouts")
    write_dataset(output / "rollouts", table)
    fake_runs.recommit(output)
    answer = client(tmp_path).get("/json/runs/done/rollouts/r1.i1.s0.aa.0")
    assert answer.status_code == 500
    told = answer.json()["error"]
    assert told.startswith(f"{output / 'rollouts'}, row 1, r1.i1.s0.aa.0: -3 is the id of no token; rounds verify")
    assert client(tmp_path).get("/json/runs/done/rollouts/r1.i1.s0.bb.0").status_code == 200


def test_terms_are_told_apart_as_they_are_written():
    assert written_terms('a  -"b c" /d e/ score<1 sort:-x') == ["a", '-"b c"', "/d e/", "score<1", "sort:-x"]
    for value in ("plain", 'with "quotes"', "back\\slash", "two words"):
        (condition,) = parse(f"prompt:{quoted(value)}").conditions
        assert condition.text == value


def test_windows_of_rows_are_parts_of_the_whole(home):
    data_set = select(find_run(home, "done"), rounds=span("all", option=""), iterations=span("all", option="")).data_set
    for search in ("", "sort:-score", "score>0 sort:round"):
        whole = [row["rollout_id"] for row in data_set.search(search)]
        for start, stop in ((0, 3), (3, 7), (7, 100), (100, 200)):
            part = data_set.search(search).window(start, stop)
            assert [row["rollout_id"] for row in part] == whole[start:stop]
            # What is opened of a window stands in its order, and so does a window of a window.
            inner = part.window(1, 3)
            assert [row["rollout_id"] for row in inner] == whole[start:stop][1:3]
            assert [one.row["rollout_id"] for one in opened(find_run(home, "done"), inner)] == whole[start:stop][1:3]


def test_counts_are_those_of_the_rows_found(home):
    data_set = select(find_run(home, "done"), rounds=span("all", option=""), iterations=span("all", option="")).data_set
    assert value_counts(data_set.search("round=1"), "iteration") == [("1", 2), ("2", 2)]
    assert value_counts(data_set.search(), "rollout_id") == [(name, 1) for name in IDS]
    assert distribution(data_set.search(), "final_value").all == [8] + [0] * 23
    assert distribution(data_set.search("score>100"), "score").found == [0] * 24


def test_a_tint_is_full_at_two_and_a_half_deviations():
    tokens = [{"kl": value} for value in (-1.0, 1.0, 0.0, None, 100.0)]
    found, scale = tints_of(tokens[:4], "kl")
    # The standard deviation of -1, 1, 0 around zero is √(2/3).
    assert scale == pytest.approx(2.5 * (2 / 3) ** 0.5)
    assert [token["tint"] for token in found] == [
        pytest.approx(-0.49, abs=0.001),
        pytest.approx(0.49, abs=0.001),
        0.0,
        None,
    ]
    assert tints_of([{"kl": 0.0}] * 9 + [{"kl": 100.0}], "kl")[0][9]["tint"] == 1.0
    assert tints_of([{"kl": 3.0}], "kl") == ([{"kl": 3.0, "tint": 0.4}], 7.5)
    assert tints_of([], "kl") == ([], 1.0)
    assert background(None).startswith("rgba(128")
    assert background(0.5) == "rgba(0, 114, 178, 0.30)"
    assert background(-1.0) == "rgba(230, 159, 0, 0.60)"
