"""The search grammar, and what it finds in small tables."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest
from fake_runs import document, finished_run

from flows.query import DataSet, Order, Part, Query, Span, parse, span
from flows.query.columns import column_of, rows_at, sums
from flows.query.grammar import LONGEST, Comparison, Words
from tasks.errors import ConfigError
from tasks.store import Place, Ref

# Reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("  lamp\tred ", (Words(text="lamp"), Words(text="red"))),
        ('"red lamp"', (Words(text="red lamp"),)),
        (r'"say \"hi\""', (Words(text='say "hi"'),)),
        (r"/lamps?\b/", (Words(text=r"lamps?\b", is_pattern=True),)),
        (r"/a\/b/", (Words(text="a/b", is_pattern=True),)),
        ("score<0", (Comparison(column="score", operator="<", number=0.0),)),
        ("score>=-1.5e3", (Comparison(column="score", operator=">=", number=-1500.0),)),
        ("score!=2", (Comparison(column="score", operator="!=", number=2.0),)),
        ("finish_reason:stop", (Words(text="stop", column="finish_reason"),)),
        ('response:"the end"', (Words(text="the end", column="response"),)),
        ("prompt:/^where/", (Words(text="^where", column="prompt", is_pattern=True),)),
        ("-lamp", (Words(text="lamp", is_negated=True),)),
        ('-"red lamp"', (Words(text="red lamp", is_negated=True),)),
        ("-score<0", (Comparison(column="score", operator="<", number=0.0, is_negated=True),)),
        ("-finish_reason:stop", (Words(text="stop", column="finish_reason", is_negated=True),)),
        # Whatever begins like a term and is none is a word.
        ("a-b it's 5 a/b http://x", (Words(text="a-b"), Words(text="it's"), Words(text="5"), Words(text="a/b"), Words(text="http://x"))),
        # What pandas would have run is no more than words here.
        ("__import__('os')", (Words(text="__import__('os')"),)),
    ],
)  # fmt: skip
def test_a_search_is_read(text, expected):
    assert parse(text) == Query(conditions=expected)


def test_orders_are_read_in_their_order():
    query = parse("sort:-score lamp sort:length")
    assert query.order == (Order(column="score", largest_first=True), Order(column="length", largest_first=False))
    assert query.conditions == (Words(text="lamp"),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('"open', 'the search cannot be read from \'"open\' on; write words, "a phrase"'),
        ("lamp /open", "cannot be read from '/open' on"),
        ("score<", "cannot be read from 'score<' on"),
        ("score<x", "score<x: x is no number; write score<0.5"),
        ("finish_reason=stop", "finish_reason=stop: stop is no number; for a text write finish_reason:stop"),
        ("-sort:score", "write sort:-score for the largest first"),
        ("-", "cannot be read from '-' on"),
        ("x" * (LONGEST + 1), "has 2,001 characters, more than 2,000"),
    ],
)
def test_a_search_that_cannot_be_read_is_told_with_the_place(text, told):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("3", [3], [2, 4]), ("2-4", [2, 3, 4], [1, 5]), ("all", [0, 1, 999], []), (None, [1, 7], [])],
)
def test_spans_of_rounds(text, inside, outside):
    found = span(text, option="--round")
    assert all(number in found for number in inside)
    assert not any(number in found for number in outside)
    assert found.is_latest == (text is None)
    assert str(Span(2, 4)) == "2 to 4"


@pytest.mark.parametrize("text", ["", "x", "4-2", "-1", "1-", "1,2", "9" * 5000])
def test_a_span_that_is_none_is_told(text):
    with pytest.raises(ConfigError, match=r"--round .*: not a number, a range like 2-5, or all"):
        span(text, option="--round")


# Finding


def a_row(rollout_id, prompt, response, score, n, **extra):
    return {"rollout_id": rollout_id, "prompt": prompt, "response": response, "score": score, "n": n, "extra": extra}


ROWS = [
    a_row("a", "Where is it?", "On the table.", 0.1, 3, kind="x"),
    a_row("b", "Where is she?", "", -2.0, 1, kind="y", answer=4),
    a_row("c", "Who?", "Ätna (the) TABLE", None, 2, kind="x and more"),
    a_row("d", "Who?", "a.b", float("nan"), 2, kind="x"),
]
NUMBERS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        **{name: pa.string() for name in ("rollout_id", "prompt", "response")},
        "score": pa.float32(),
        "n": pa.int32(),
        "extra": pa.string(),
        "response_token_ids": pa.list_(pa.int32()),
        "logprobs": NUMBERS,
        "ref_logprobs": NUMBERS,
    }
)


def a_table(rows=ROWS):
    lists = {"response_token_ids": [[1] * row["n"] for row in rows], "logprobs": [[-1.0] * row["n"] for row in rows],
             "ref_logprobs": [[-1.5] * row["n"] for row in rows]}  # fmt: skip
    plain = {name: [row[name] for row in rows] for name in ("rollout_id", "prompt", "response", "score", "n")}
    return pa.table({**plain, "extra": [json.dumps(row["extra"]) for row in rows], **lists}, schema=SCHEMA)


def a_part(table, round=1, iteration=1):
    part = Part(
        run="r", place=Place(round, iteration), stage="score_rollouts", name="rollouts", ref=Ref("/nowhere", "")
    )
    part.__dict__["table"] = table
    return part


def ids(text, *parts):
    found = DataSet(parts=parts or (a_part(a_table()),)).search(text)
    return "".join(row["rollout_id"] for row in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "abcd"),
        ("where", "ab"),
        ("table", "ac"),
        ("ätna", "c"),
        ("who table", "c"),
        ('"the table"', "a"),
        ("a.b", "d"),
        ("/a.b/", "d"),
        ("/^on .*\\.$/", "a"),
        ("(the)", "c"),
        ("-table", "bd"),
        ("prompt:where", "ab"),
        ("response:where", ""),
        ("rollout_id:A", "a"),
        ("rollout_id:/[ab]/", "ab"),
        ("score<0", "b"),
        ("score>-3", "ab"),
        ("score=0.1", "a"),
        ("-score<0", "acd"),
        ("n>=2 n<3", "cd"),
        ("n=2.5", ""),
        ("n<=2", "bcd"),
        ("n>2", "a"),
        ("length=1", "b"),
        ("kl_sum=1.5", "a"),
        ("kind:x", "ad"),
        ("-kind:x", "bc"),
        ("answer>3", "b"),
        ("round:1", "abcd"),
        ("round=2", ""),
        ("run:r iteration:1", "abcd"),
    ],
)
def test_conditions_by_hand(text, expected):
    assert ids(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sort:n", "bcda"),
        ("sort:-n", "acdb"),
        # What is missing, or no number, comes last in either direction.
        ("score>-3 sort:score", "ba"),
        ("sort:-n sort:-rollout_id", "adcb"),
        ("sort:-response", "cdab"),
        ("sort:kind", "adcb"),
    ],
)
def test_orders_by_hand(text, expected):
    assert ids(text) == expected


@pytest.mark.parametrize("text", ["sort:score", "sort:-score"])
def test_missing_numbers_are_last_in_either_direction(text):
    assert set(ids(text)[2:]) == {"c", "d"}


def test_rows_of_several_places_are_sorted_as_one_and_cut_as_one():
    first, second = a_part(a_table(), 1, 1), a_part(a_table(ROWS[:2]), 2, 5)
    assert ids("sort:n sort:-round", first, second) == "bbcdaa"
    whole = DataSet(parts=(first, second))
    found = whole.search("sort:-n", top=3)
    assert (len(found), found.found) == (3, 6)
    assert [(row["rollout_id"], row["round"], row["iteration"]) for row in found] == [
        ("a", 1, 1),
        ("a", 2, 5),
        ("c", 1, 1),
    ]
    assert [row["rollout_id"] for row in whole.search("", top=5)] == ["a", "b", "c", "d", "a"]
    assert len(whole.search("", top=0)) == 0


def test_a_part_without_a_column_has_no_row_that_fulfils_it():
    bare = a_part(a_table().drop_columns(["score"]), 1, 2)
    assert ids("score<1", a_part(a_table()), bare) == "ab"
    # Not fulfilling it is what the others do.
    assert ids("-score<1", a_part(a_table(ROWS[:1])), bare) == "abcd"
    assert [row.get("score") for row in DataSet(parts=(bare, a_part(a_table(ROWS[1:2])))).search("rollout_id:b")] == [
        None,
        -2.0,
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nope<1", "nope: no such column; columns are rollout_id, prompt, "),
        ("sort:logprobs", "logprobs: no such column"),
        ("prompt<1", "prompt<1: prompt holds no numbers; write prompt:1"),
        ("/(/", "/(/ is no pattern that can be searched for (missing ): ()"),
        ("/(a)\\1/", "invalid escape sequence"),
    ],
)
def test_what_cannot_be_asked_is_told(text, told):
    with pytest.raises(ConfigError) as error:
        ids(text)
    assert told in str(error.value)


def test_a_pattern_that_others_run_on_for_ever_ends():
    rows = [{**ROWS[0], "response": "a" * 5000 + "!"}]
    assert ids("/(a+)+$/", a_part(a_table(rows))) == ""


def test_sums_of_lists_that_begin_anywhere():
    lists = pa.array([[9.0], [1.0, 2.0], [], [0.5]], type=pa.list_(pa.float32()))
    assert sums(lists).tolist() == [9.0, 3.0, 0.0, 0.5]
    assert sums(lists[1:]).tolist() == [3.0, 0.0, 0.5]
    assert sums(pa.chunked_array([lists, lists[3:]])).tolist() == [9.0, 3.0, 0.0, 0.5, 0.5]


def test_the_data_s_own_columns_are_numbers_or_texts():
    table = pa.table({"extra": ['{"a": 1, "b": "x"}', "", '{"a": 2.5, "b": [1]}', '{"a": null}']})
    assert column_of(table, "a").to_pylist() == [1.0, None, 2.5, None]
    assert column_of(table, "b").to_pylist() == ["x", None, "[1]", None]
    assert column_of(table, "c") is None
    assert column_of(pa.table({"extra": ['{"a": true}', '{"a": 1}']}), "a").to_pylist() == ["true", "1"]


def test_an_audit_is_joined_by_rollout_in_whatever_order_its_rows_are():
    part = a_part(a_table())
    part.__dict__["_audit"] = pa.table({"rollout_id": ["d", "b", "a"], "distinct_2": [0.4, 0.2, 0.1]})
    found = DataSet(parts=(part,)).search("sort:-distinct_2").dicts(["rollout_id", "distinct_2"])
    assert [(row["rollout_id"], row["distinct_2"]) for row in found] == [
        ("d", 0.4),
        ("b", 0.2),
        ("a", 0.1),
        ("c", None),
    ]


def test_words_are_looked_for_in_the_texts_that_a_data_set_has():
    responses = pa.array([["A lamp.", "No"], ["x", "y"]], type=pa.list_(pa.string()))
    pairs = pa.table({"preference_id": ["a", "b"], "prompt": ["Who?", "Lamp?"], "responses": responses})
    data_set = DataSet(parts=(a_part(pairs),))
    for text, expected in {"lamp": "ab", "no": "a", "responses:/^a/": "a", "responses:y": "b", "-no": "b"}.items():
        assert "".join(row["preference_id"] for row in data_set.search(text)) == expected
    assert data_set.search("no").dicts()[0]["responses"] == ["A lamp.", "No"]
    with pytest.raises(ConfigError, match="response: no such column"):
        data_set.search("response:no")


@pytest.mark.parametrize("positions", [[], [0], [6], [4, 1, 1, 6], list(range(7)), [6, 5, 4, 3, 2, 1, 0]])
def test_rows_of_a_table_in_batches_are_those_at_their_positions(positions):
    whole = pa.table({"x": pa.chunked_array([[0, 1, 2], [3], [4, 5, 6]]), "y": pa.chunked_array([list("abcdefg")])})
    # Of either kind, as conditions and orders make them.
    for kind in (pa.int64(), pa.uint64()):
        indices = pa.array(positions, kind)
        assert rows_at(whole, indices).to_pylist() == whole.take(indices).to_pylist()


def test_what_follows_from_lists_is_worked_out_for_the_rows_that_are_shown_alone(monkeypatch):
    whole = DataSet(parts=(a_part(a_table()),)).search("", top=2)
    expected = whole.dicts(["rollout_id", "kl_sum", "kind", "iteration"])
    assert [row["kl_sum"] for row in expected] == [1.5, 0.5]
    assert [(row["kind"], row["iteration"]) for row in expected] == [("x", 1), ("y", 1)]
    seen = []
    monkeypatch.setattr("flows.query.part.column_of", lambda table, name: seen.append((name, table.num_rows)))
    DataSet(parts=(a_part(a_table()),)).search("", top=2).dicts(["rollout_id", "kl_sum", "kind"])
    assert seen == [("kl_sum", 2), ("kind", 2)]


@pytest.mark.parametrize(
    "command",
    [
        ("rollouts",),
        ("rollouts", "--sort", "-score"),
        ("rollouts", "--where", "dog score<0 round:1"),
        ("show", "r1.i1.s0.aa.0"),
    ],
)
def test_looking_at_rollouts_imports_no_library_that_takes_long(tmp_path, command):
    finished_run(tmp_path, "one", document(tmp_path, rounds=1, iterations=1))
    code = (
        "import sys; from flows.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "print({'pandas', 'datasets', 'transformers', 'torch', 'prefect', 'mlflow'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--home", str(tmp_path), *command], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"
