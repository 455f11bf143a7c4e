"""Every format gives the same rows, and every kind of bad file is refused by name."""

import datetime
import decimal
import gzip
import json
import sys
import textwrap
import time
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.config.data import Source
from tasks.data.functions import code_digest, import_function
from tasks.data.sources import read_rows, source_digest
from tasks.errors import ConfigError, DataError, shorten

ROWS = [{"prompt": "How many?", "answer": "51"}, {"prompt": 'Two, "three"\nor four', "answer": "é"}]


def values(path, **settings_):
    return [row.values for row in read_rows(Source(path=str(path), **settings_), seed=0)]


def refusal(path, **settings_) -> str:
    """What is said of a file, or of its one row that cannot be read."""
    try:
        rows = read_rows(Source(path=str(path), **settings_), seed=0)
    except DataError as error:
        return str(error)
    (unread,) = [row.unread for row in rows if row.unread]
    return str(unread)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_lines(path: Path, rows=ROWS) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(path: Path) -> Path:
    return write(path, 'prompt,answer\nHow many?,51\n"Two, ""three""\nor four",é\n')


def write_tsv(path: Path) -> Path:
    return write(path, 'prompt\tanswer\nHow many?\t51\n"Two, ""three""\nor four"\té\n')


def write_parquet(path: Path) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def write_saved(path: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


PLAIN = {".jsonl": write_lines, ".csv": write_csv, ".tsv": write_tsv, ".json": write_lines, ".parquet": write_parquet}


def packed(path: Path) -> Path:
    """The file compressed, under its name with the ending, in the place of the plain one."""
    content = path.read_bytes()
    pack = gzip.compress if path.suffix == ".gz" else lambda raw: pyarrow.Codec("zstd").compress(raw, asbytes=True)
    # Two members one after the other are one file, as tools that write in parallel leave them.
    half = len(content) // 2
    path.write_bytes(pack(content[:half]) + pack(content[half:]))
    return path


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """The current directory is a new one, and what is imported from it is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# What a configuration may say.


def test_a_plain_string_is_a_path():
    assert Source.model_validate("data/a.jsonl") == Source(path="data/a.jsonl")


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({}, "exactly one of path, dataset or function, not none"),
        ({"path": "a.csv", "dataset": "b/c"}, "not path and dataset"),
        ({"path": " "}, "path is empty"),
        ({"path": "a.csv", "subset": "en"}, "subset goes with dataset"),
        ({"path": "a.csv", "arguments": {"n": 1}}, "arguments goes with function"),
        ({"function": "a:b", "split": "train"}, "split goes with path or dataset"),
        ({"function": "a.b"}, "package.module:callable"),
        ({"function": "a:b", "arguments": {"seed": 1}}, "'seed'"),
        ({"function": "a:b", "arguments": {"most": float("inf")}}, "arguments holds what JSON cannot"),
        ({"path": "a.csv", "limit": 0}, "limit"),
        ({"path": "a.csv", "from_round": 0}, "from_round"),
        ({"pth": "a.csv"}, "pth"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings_, says):
    with pytest.raises(ValidationError, match=says):
        Source(**settings_)


# Formats.


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("a.jsonl", write_lines),
        ("a.json", write_lines),
        ("a.csv", write_csv),
        ("a.parquet", write_parquet),
        ("a.ndjson", write_lines),
        ("a.tsv", write_tsv),
        *((f"a{ending}{packed}", write) for ending, write in PLAIN.items() for packed in (".gz", ".zst")),
        ("a", write_saved),
    ],
)
def test_every_format_gives_the_same_rows_with_their_place(tmp_path, name, writer):
    path = writer(tmp_path / name)
    if path.suffix in (".gz", ".zst"):
        packed(path)
    rows = read_rows(Source(path=str(path)), seed=0)
    assert [row.values for row in rows] == ROWS
    assert [row.place for row in rows] == [f"{path}, row 1", f"{path}, row 2"]


def test_a_json_file_may_hold_one_list(tmp_path):
    assert values(write(tmp_path / "a.json", json.dumps(ROWS, indent=1))) == ROWS


def test_the_row_of_json_lines_is_the_line_and_blank_lines_are_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"a": 1}\r\n\n   \n{"a": "x\u2028y"}')
    rows = read_rows(Source(path=str(path)), seed=0)
    assert [(row.place[-5:], row.values) for row in rows] == [("row 1", {"a": 1}), ("row 4", {"a": "x\u2028y"})]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none()), min_size=1, max_size=5))
def test_any_json_lines_come_back(tmp_path, rows):
    assert values(write_lines(tmp_path / "any.jsonl", rows)) == rows


def test_relative_paths_and_patterns_start_at_the_current_directory_in_sorted_order(in_tmp):
    for name in ("b", "a", "c"):
        write_lines(in_tmp / f"{name}.jsonl", [{"prompt": name}])
    rows = read_rows(Source(path="*.jsonl"), seed=0)
    assert [row.place for row in rows] == [f"{name}.jsonl, row 1" for name in "abc"]


def test_limit_counts_over_all_files_and_reads_no_further(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", '{"prompt": "third"}\nnever read')
    assert [row["prompt"] for row in values(tmp_path / "*.jsonl", limit=3)] == [*(r["prompt"] for r in ROWS), "third"]


def test_columns_rename_and_may_swap(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"good": 1, "bad": 2, "id": 3}])
    assert values(path, columns={"chosen": "good"}) == [{"chosen": 1, "bad": 2, "id": 3}]
    assert values(path, columns={"good": "bad", "bad": "good"}) == [{"good": 2, "bad": 1, "id": 3}]
    assert values(path, columns={"good": "bad", "worse": "good"}) == [{"good": 2, "worse": 1, "id": 3}]
    assert "no column 'worse' to use as 'rejected'" in refusal(path, columns={"rejected": "worse"})
    assert "good, bad, id" in refusal(path, columns={"rejected": "worse"})


def test_a_renamed_column_never_hides_one_of_the_same_name(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "whole", "question": "Q", "id": 3}])
    said = refusal(path, columns={"prompt": "question"})
    assert "columns: {prompt: question} would hide the column prompt" in said
    assert "columns: {prompt: question, other_prompt: prompt}" in said
    both = {"prompt": "question", "other_prompt": "prompt"}
    assert values(path, columns=both) == [{"prompt": "Q", "other_prompt": "whole", "id": 3}]
    null = write_lines(tmp_path / "b.jsonl", [{"prompt": None, "question": "Q"}])
    assert values(null, columns={"prompt": "question"}) == [{"prompt": "Q"}]


def test_a_column_that_only_some_rows_have_is_absent_in_the_others(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"q": "Q"}, {"id": 3}])
    assert values(path, columns={"prompt": "q"}) == [{"prompt": "Q"}, {"id": 3}]


def test_the_rows_beside_one_that_cannot_be_read_are_read(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a":\n[1]\n{"a": 2}\n')
    rows = read_rows(Source(path=str(path)), seed=0)
    assert [row.values for row in rows] == [{"a": 1}, {}, {}, {"a": 2}]
    assert [row.unread and row.unread.reason for row in rows] == [
        None,
        "the line is not JSON",
        "the row is not an object",
        None,
    ]


def test_times_and_decimals_of_parquet_are_what_json_has_whatever_the_zone(tmp_path, monkeypatch):
    import pyarrow.parquet

    noon = datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC)
    table = pyarrow.table(
        {
            "zoned": pyarrow.array([noon], pyarrow.timestamp("us", "Asia/Tokyo")),
            "plain": pyarrow.array([datetime.datetime(2024, 1, 31, 12)], pyarrow.timestamp("us")),
            "day": [datetime.date(2024, 1, 31)],
            "price": [decimal.Decimal("1.50")],
            "raw": [b"ab"],
            "times": [[datetime.time(1, 2)]],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    expected = {
        "zoned": "2024-01-31T12:00:00+00:00",
        "plain": "2024-01-31T12:00:00",
        "day": "2024-01-31",
        "price": 1.5,
        "raw": b"ab",
        "times": ["01:02:00"],
    }
    for zone in ("UTC", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert values(tmp_path / "a.parquet") == [expected]
    monkeypatch.undo()
    time.tzset()


def test_a_saved_data_set_is_read_as_it_is_stored_and_pictures_are_bytes(tmp_path):
    import datasets

    rows = {"prompt": ["Q"], "kind": ["b"], "shot": [{"bytes": b"no picture", "path": None}]}
    features = datasets.Features(
        prompt=datasets.Value("string"), kind=datasets.ClassLabel(names=["a", "b"]), shot=datasets.Image()
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert values(tmp_path / "saved") == [{"prompt": "Q", "kind": 1, "shot": {"bytes": b"no picture", "path": None}}]


def test_a_saved_dictionary_of_splits_needs_a_split_where_it_has_several(tmp_path):
    import datasets

    two = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(two).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict(train=two["train"]).save_to_disk(str(tmp_path / "one"))
    assert values(tmp_path / "one") == ROWS
    assert values(tmp_path / "two", split="test") == ROWS[:1]
    assert "several splits; set split to one of train, test" in refusal(tmp_path / "two")
    assert "no split 'dev'" in refusal(tmp_path / "two", split="dev")


# Bad files.


def test_a_missing_file_is_named_with_its_neighbours(tmp_path):
    write_lines(tmp_path / "prompts.jsonl")
    said = refusal(tmp_path / "promts.jsonl")
    assert f"{tmp_path / 'promts.jsonl'} does not exist" in said
    assert "has prompts.jsonl" in said
    assert "no file matches" in refusal(tmp_path / "*.parquet")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ["row 2", "'{\"a\":'", "not JSON", "Expecting value"]),
        ("a.jsonl", b'{"a": "\xff"}\n', ["row 1", "not JSON", "utf-8"]),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', ["row 2", "[1, 2] is not an object"]),
        ("a.json", b'[{"a": 1}, 7]', ["row 2", "7 is not an object"]),
        ("a.json", b'[{"a": 1}', ["not a JSON list"]),
        ("a.jsonl", b"\n\n", ["holds no rows"]),
        ("a.csv", b"a,b\n1,2\n1\n", ["row 2", "1 values ['1'] for the 2 columns a, b"]),
        ("a.csv", b"a,a\n1,2\n", ["appears twice"]),
        ("a.csv", b'a,b\n1,"2\n', ["row 1", "not CSV"]),
        ("a.csv", b"", ["holds no rows"]),
        ("a.parquet", b"PAR1", ["not a readable Parquet file"]),
        ("a.txt", b"hello", ["'.txt'", ".jsonl, .ndjson, .json, .parquet, .csv, .tsv"]),
        ("a.txt.gz", b"hello", ["'.txt.gz'", ".gz or .zst"]),
        ("a.jsonl", b'{"a": 1, "b": {"c": 1, "c": 2}}\n', ["row 1", "key twice", "'c' stands twice"]),
        ("a.tsv", b"a\tb\n1\t2\t3\n", ["row 1", "3 values ['1', '2', '3'] for the 2 columns a, b"]),
        ("a.jsonl.gz", b'{"a": 1}', ["no readable .gz file after row 0", "write it again"]),
        ("a.csv.gz", gzip.compress(b"a\n" + b"1\n" * 9, mtime=0)[:-9], ["no readable .gz file after row"]),
        ("a.jsonl.zst", b'{"a": 1}', ["no readable .zst file after row 0", "write it again"]),
        ("a.csv.zst", pyarrow.Codec("zstd").compress(b"a\n1\n", asbytes=True)[:-3], ["no readable .zst file"]),
        ("a.parquet.gz", b"PAR1", ["not a readable Parquet file"]),
    ],
)
def test_a_bad_file_is_refused_by_file_row_and_value(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    said = refusal(path)
    for part in [str(path), *says]:
        assert part in said
    assert "\n" not in said


def test_a_long_value_is_shortened(tmp_path):
    said = refusal(write(tmp_path / "a.jsonl", "x" * 10_000))
    assert "(10,000 characters)" in said
    assert len(said) < 400


def test_a_plain_directory_asks_for_a_pattern(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    assert f"{tmp_path}/*.jsonl" in refusal(tmp_path)
    assert "it holds a.jsonl" in refusal(tmp_path)


def test_a_damaged_saved_directory_is_refused(tmp_path):
    path = write_saved(tmp_path / "saved")
    next(path.glob("*.arrow")).write_bytes(b"cut")
    assert f"{path} is not a readable saved data set" in refusal(path)


def test_split_of_a_plain_file_is_refused(tmp_path):
    assert "remove split: train" in refusal(write_lines(tmp_path / "a.jsonl"), split="train")


def test_an_unreachable_hub_says_what_was_tried():
    with pytest.raises(DataError) as caught:
        read_rows(Source(dataset="nobody/nothing", split="train", revision="v1"), seed=0)
    for part in ["'nobody/nothing'", "split='train'", "revision='v1'", "offline", "save_to_disk"]:
        assert part in str(caught.value)


def test_a_hub_data_set_is_read_by_name_subset_split_and_revision(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, subset, *, split, revision):
        asked.append((name, subset, split, revision))
        data = datasets.Dataset.from_list(ROWS)
        return data if split else datasets.DatasetDict(train=data)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for split in ("train", None):
        rows = read_rows(Source(dataset="a/b", subset="en", split=split, revision="v1"), seed=0)
        assert [row.values for row in rows] == ROWS
        assert rows[1].place == "a/b, row 2"
    assert asked == [("a/b", "en", "train", "v1"), ("a/b", "en", None, "v1")]


# Functions.

MODULE = '''
"""What it is."""

def rows(*, seed, n=2):
    """Yield n rows."""
    for i in range(n):
        yield {"prompt": f"{seed}-{i}"}

def no_dict(*, seed):
    yield 1

def none(*, seed):
    return None

class Thing:
    pass

def odd(*, seed):
    import numpy
    yield {"n": numpy.int64(3), "x": numpy.float32(0.5), "l": (1, numpy.array([1, 2])), "k": {1: True}}
    yield {"prompt": "a", "thing": [Thing()]}
    yield {"prompt": "b", "of": {"words"}}

def broken(*, seed):
    yield {"prompt": "a"}
    raise RuntimeError("disk on fire")

NUMBER = 7
'''


def function_refusal(function: str) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read_rows(Source(function=function), seed=0)
    return str(caught.value)


def test_a_function_yields_rows_from_seed_and_arguments(in_tmp):
    write(in_tmp / "my_rows.py", MODULE)
    rows = read_rows(Source(function="my_rows:rows", arguments={"n": 3}, limit=2), seed=5)
    assert [(row.place, row.values) for row in rows] == [
        ("my_rows:rows, row 1", {"prompt": "5-0"}),
        ("my_rows:rows, row 2", {"prompt": "5-1"}),
    ]


def test_a_function_that_fails_is_named_with_what_it_raised(in_tmp):
    write(in_tmp / "my_rows.py", MODULE)
    assert "my_rows:no_dict, row 1: 1 is not a dict" in function_refusal("my_rows:no_dict")
    assert "my_rows:none returned None" in function_refusal("my_rows:none")
    assert "raised RuntimeError: disk on fire after 1 rows" in function_refusal("my_rows:broken")
    with pytest.raises(DataError, match=r"TypeError.*called as rows\(seed=\.\.\., m=\.\.\.\)"):
        read_rows(Source(function="my_rows:rows", arguments={"m": 1}), seed=0)


def test_rows_of_functions_are_plain_values_and_what_has_no_plain_form_is_named(in_tmp):
    # An object would be written with its address, a set in the order of its hashes.
    write(in_tmp / "my_rows.py", MODULE)
    first, second, third = read_rows(Source(function="my_rows:odd"), seed=0)
    assert first.values == {"n": 3, "x": 0.5, "l": [1, [1, 2]], "k": {"1": True}}
    assert [type(first.values[name]) for name in "nx"] == [int, float]
    assert "my_rows:odd, row 2: thing[0] holds a Thing, which is no text" in str(second.unread)
    assert "my_rows:odd, row 3: of holds a set" in str(third.unread)


def test_what_cannot_be_imported_is_named_with_its_field(in_tmp):
    write(in_tmp / "my_rows.py", MODULE)
    write(in_tmp / "needs_more.py", "import not_installed_anywhere\n")
    write(in_tmp / "typo.py", "def rows(:\n")
    for path, says in {
        "my_rows": "package.module:callable",
        "my rows:f": "package.module:callable",
        "no_such_module:f": "there is no module 'no_such_module'",
        "my_rows.deeper:f": "there is no module 'my_rows.deeper'",
        "needs_more:f": "ModuleNotFoundError: No module named 'not_installed_anywhere'",
        "typo:f": "SyntaxError",
        "my_rows:row": "has no 'row', but rows",
        "my_rows:NUMBER": "is 7, not a function",
    }.items():
        with pytest.raises(ConfigError) as caught:
            import_function(path, field="reward.function")
        assert says in str(caught.value)
        assert str(caught.value).startswith("reward.function: ")
        assert path in str(caught.value)


def test_a_local_file_named_like_a_library_does_not_replace_it(in_tmp, monkeypatch):
    write(in_tmp / "colorsys.py", "def rgb_to_hsv():\n    return 'mine'\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert import_function("colorsys:rgb_to_hsv", field="f")(0, 0, 0) == (0.0, 0.0, 0)


def test_code_digest_ignores_comments_formatting_and_docstrings_only(in_tmp):
    def digest(name: str, code: str) -> str:
        write(in_tmp / f"{name}.py", textwrap.dedent(code))
        return code_digest(f"{name}:f")

    first = digest("m1", 'def f(x):\n    """Say."""\n    return x + 1\n')
    assert digest("m2", "# why\n\ndef f( x ):\n    return (x +\n        1)  # so\n") == first
    assert digest("m3", "def f(x):\n    return x + 2\n") != first
    assert digest("m4", "def f(x):\n    'a'\n    return 'b'\n") != digest("m5", "def f(x):\n    'a'\n    return 'c'\n")
    with pytest.raises(ConfigError, match="no file holds the module m9"):
        code_digest("m9:f")


# Digests.


def digest_of(path) -> str:
    return source_digest(Source(path=str(path)), seed=0)


def test_the_digest_of_files_is_their_content_not_their_name(tmp_path):
    first = write_lines(tmp_path / "a.jsonl")
    digest = digest_of(first)
    assert len(digest) == 32
    assert int(digest, 16) >= 0
    assert digest_of(write_lines(tmp_path / "b.jsonl")) == digest
    assert digest_of(write_lines(tmp_path / "c.jsonl", ROWS[:1])) != digest
    # One file that holds what two hold together is another data set: the last line of the first may be cut.
    assert digest_of(tmp_path / "[ab].jsonl") != digest_of(write_lines(tmp_path / "d.jsonl", ROWS + ROWS))


def test_the_digest_follows_the_endings_by_which_a_file_is_read(tmp_path):
    content = gzip.compress(b"a\tb\n1\t2\n", mtime=0)
    for name in ("a.csv.gz", "a.tsv.gz"):
        (tmp_path / name).write_bytes(content)
    assert digest_of(tmp_path / "a.csv.gz") != digest_of(tmp_path / "a.tsv.gz")


def test_the_digest_of_a_saved_directory_ignores_caches_and_fingerprints(tmp_path):
    first, second = write_saved(tmp_path / "one"), write_saved(tmp_path / "two")
    state = json.loads((second / "state.json").read_text())
    (second / "state.json").write_text(json.dumps(state | {"_fingerprint": "another"}))
    (second / "cache-123.arrow").write_bytes(b"x")
    assert digest_of(first) == digest_of(second)


def test_the_digest_of_a_function_follows_code_arguments_and_seed(in_tmp):
    write(in_tmp / "my_rows.py", MODULE)
    source = Source(function="my_rows:rows", arguments={"n": 3})
    digest = source_digest(source, seed=1)
    assert source_digest(source, seed=2) != digest
    assert source_digest(Source(function="my_rows:rows", arguments={"n": 4}), seed=1) != digest
    write(in_tmp / "my_rows.py", MODULE + "# a comment\n")
    assert source_digest(source, seed=1) == digest
    write(in_tmp / "my_rows.py", MODULE + "more = 1\n")
    assert source_digest(source, seed=1) != digest


def test_the_digest_of_a_hub_data_set_follows_its_coordinates():
    digests = {
        source_digest(Source(dataset="a/b", **more), seed=seed)
        for more in ({}, {"subset": "en"}, {"split": "train"}, {"revision": "v1"})
        for seed in (0, 1)
    }
    assert len(digests) == 4


def test_shorten_keeps_short_values_and_says_how_long_the_others_are():
    assert shorten("abc") == "'abc'"
    assert shorten(list(range(100)), width=10) == "[0, 1, 2, ... (100 items)"
