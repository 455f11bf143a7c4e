"""Sources that have no end, are no files, or hold what no row can: each is refused at once, by name, in one sentence."""

import gzip
import json
import os
import socket
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tasks.config.data import Source
from tasks.data import readers
from tasks.data.sources import read_rows, source_digest
from tasks.errors import DataError, UserError
from tasks.paths import os_error_sentence, user_path


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusals(path, **settings):
    """What reading and digesting say, each in one line and in no time."""
    told = []
    source = Source(path=str(path), **settings)
    for use in (lambda: read_rows(source, seed=0), lambda: source_digest(source, seed=0)):
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            use()
        assert time.monotonic() - began < 5
        told.append(str(caught.value))
        assert "\n" not in told[-1]
    return told


def pipe(path):
    os.mkfifo(path)


def device(path):
    Path(path).symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(str(path))


KINDS = {"a pipe": pipe, "a device": device, "a socket": listening}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.tsv.zst"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_in_every_format(kind, name):
    KINDS[kind](name)
    assert refusals(name) == [f"{name} is {kind}; give a regular file"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_among_the_files_of_a_pattern_too(kind):
    Path("a.jsonl").write_text('{"prompt": "x"}\n')
    KINDS[kind]("b.jsonl")
    assert refusals("*.jsonl") == [f"b.jsonl is {kind}; give a regular file"] * 2


def saved(path="saved"):
    import datasets

    datasets.Dataset.from_dict({"prompt": ["x"]}).save_to_disk(path)
    return Path(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json"])
def test_inside_a_saved_data_set_too(kind, name):
    path = saved() / name
    path.unlink()
    KINDS[kind](path)
    assert refusals("saved") == [f"{path} is {kind}; give a regular file"] * 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"_data_files": 3}',
        b'{"_data_files": [{}]}',
        b'{"_data_files": [{"filename": 3}]}',
        b'{"_data_files": [{"filename": "../outside.arrow"}]}',
        b'{"_data_files": [{"filename": "/etc/hostname"}]}',
    ],
)
def test_a_broken_state_file_is_told(content):
    (saved() / "state.json").write_bytes(content)
    for told in refusals("saved"):
        assert told.startswith("saved is not a readable saved data set (state.json")
        assert told.endswith("; save it again")


@pytest.mark.parametrize(
    "content", ['{"splits": 3}', '{"splits": ["../x"]}', '{"splits": []}', "{}", "x", '{"splits": [1]}']
)
def test_a_broken_list_of_splits_is_told(content):
    Path("many").mkdir()
    Path("many/dataset_dict.json").write_text(content)
    for told in refusals("many"):
        assert told.startswith("many is not a readable saved data set (dataset_dict.json")


def test_a_saved_data_set_whose_file_is_gone_or_cut_short_is_told():
    file = saved() / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="saved is not a readable saved data set"):
        read_rows(Source(path="saved"), seed=0)
    file.unlink()
    assert refusals("saved") == [f"{file} does not exist; put it back, or correct the path"] * 2


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("~nosuchuser/a.jsonl", "~nosuchuser/a.jsonl: there is no such user's home directory; write it out"),
        ("a\0b.jsonl", "no path holds a NUL character"),
        ("\ud800.jsonl", "half of a character"),
        ("x" * 300 + ".jsonl", "(306 characters) does not exist"),
        ("x" * 300 + "*.jsonl", "no file matches xxx"),
    ],
)
def test_a_path_that_can_be_none_is_told(path, says):
    for told in refusals(path):
        assert says in told
        assert len(told) < 400


def test_links_in_a_circle_and_paths_without_end_are_told_by_the_systems_number():
    Path("a.jsonl").symlink_to("a.jsonl")
    for path, says in (("a.jsonl", "Too many levels"), ("x/" * 3000 + "a.jsonl", "File name too long")):
        with pytest.raises(OSError, match=says) as caught:
            read_rows(Source(path=path), seed=0)
        sentence = os_error_sentence(caught.value)
        assert sentence.startswith(says)
        assert len(sentence) < 400


def test_the_sentence_about_an_error_of_the_system_names_path_and_next_move():
    error = PermissionError(13, "whatever the locale says", "secret.jsonl")
    assert os_error_sentence(error) == "Permission denied (secret.jsonl); make it readable and writable for this user"
    assert os_error_sentence(OSError(28, "")).startswith("No space left on device; make room on that disk")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2**31 - 2], pa.date32()),
        ([-(2**31)], pa.date32()),
        ([2**61], pa.timestamp("us", "UTC")),
        ([2**62], pa.timestamp("us")),
    ],
)
def test_a_date_that_no_calendar_has_is_told_with_its_file(values, kind):
    pyarrow.parquet.write_table(pa.table({"prompt": ["x"], "when": pa.array(values, type=kind)}), "a.parquet")
    with pytest.raises(
        DataError, match=r"^a.parquet is not a readable Parquet file after row 0 \(.*\); write it again$"
    ):
        read_rows(Source(path="a.parquet"), seed=0)


def test_the_last_hour_of_the_calendar_stays_what_it_is_where_utc_has_none():
    table = pa.table({"prompt": ["x"], "when": pa.array([-62135596800], type=pa.timestamp("s", "Pacific/Auckland"))})
    pyarrow.parquet.write_table(table, "a.parquet")
    (row,) = read_rows(Source(path="a.parquet"), seed=0)
    assert row.values["when"].startswith("0001-01-01T00:00:00")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_row_without_end_is_refused_before_memory_ends(name, compressed, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW", 2**20)
    content = (b'[{"prompt": "' if name == "a.json" else b"prompt\n") + b"x" * 2**21
    path = Path(name + ".gz" * compressed)
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(
        DataError, match=rf"^{path}: .* is longer than 1 MiB; write one row to a line, or split the file$"
    ):
        read_rows(Source(path=str(path)), seed=0)


def test_a_row_of_some_megabytes_is_read():
    Path("a.jsonl").write_text(json.dumps({"prompt": "x" * 2**22}) + "\n")
    (row,) = read_rows(Source(path="a.jsonl"), seed=0)
    assert len(row.values["prompt"]) == 2**22


def test_a_users_path_keeps_what_a_shell_would_not_touch(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a b") == tmp_path / "a b"
    assert user_path("a~b") == Path("a~b")
