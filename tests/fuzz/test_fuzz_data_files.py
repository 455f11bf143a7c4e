"""Data files that broke on their way: refused in one sentence that names them, or their rows are those of an intact file."""

import gzip
import io
import json
import os
import random
import zipfile
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from flows.cli.app import explain
from flows.cli.options import MISTAKE
from flows.text import printable
from tasks.config.data import Source
from tasks.data.bad_rows import Findings
from tasks.data.shapes.preferences import to_preferences
from tasks.data.shapes.records import to_prompts
from tasks.data.sources import read_rows
from tasks.errors import UserError

ROWS = [{"prompt": f"Name {n} things that are blue, and say why."} for n in range(40)]
NUM_PER_FORMAT = 20


def intact(path):
    """The rows as a file of the format that the name says."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if path.name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines, mtime=0))
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    else:
        path.write_bytes(lines)
    return path


def prompts(path):
    """The prompts of the rows, with None for a row that is told as unreadable under its place in the file."""
    rows = list(read_rows(Source(path=str(path)), seed=0))
    assert all(path.name in row.place for row in rows)
    return [None if row.unread is not None else row.values["prompt"] for row in rows]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_was_cut_off_is_refused_in_one_sentence_or_gives_its_whole_rows(name, tmp_path):
    rng = random.Random(13)
    whole = intact(tmp_path / name).read_bytes()
    assert prompts(tmp_path / name) == [row["prompt"] for row in ROWS]
    counts, wrong = Counter(), []
    for _ in range(NUM_PER_FORMAT):
        end = rng.randrange(len(whole))
        (tmp_path / name).write_bytes(whole[:end])
        try:
            found = prompts(tmp_path / name)
        except UserError as error:
            word = "clear" if "\n" not in str(error) and name in str(error) else f"unclear: {error}"
        except Exception as error:
            word = f"traceback: {error!r}"
        else:
            # Whole lines are a file of their own: nothing tells that others followed. A last line that broke is a bad row.
            *before, last = found
            expected = [row["prompt"] for row in ROWS[: len(found)]]
            is_right = name == "a.jsonl" and before == expected[:-1] and last in (expected[-1], None)
            word = ("whole lines" if last else "bad row") if is_right else "accepted"
        counts[word] += 1
        if word not in ("clear", "bad row", "whole lines"):
            wrong.append(f"{end} of {len(whole)} bytes: {word:.300}")
    print(name, dict(counts))
    assert not wrong, "\n".join(wrong)


def parquet(**columns):
    return parquet_of(pa.table(columns))


def parquet_of(table):
    stream = io.BytesIO()
    pa.parquet.write_table(table, stream)
    return stream.getvalue()


def zipped(name, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
ZST = pa.Codec("zstd").compress(LINES, asbytes=True)
PARQUET = parquet(prompt=["a", "b"])
NOT_UTF_8 = pa.StringArray.from_buffers(1, *pa.array([b"\xff"]).buffers()[1:])

CONTENTS = {
    "empty.jsonl": b"",
    "empty.csv": b"",
    "empty.parquet": b"",
    "nothing.jsonl.gz": gzip.compress(b""),
    "blank-lines.jsonl": b"\n \n",
    "empty-list.json": b"[]",
    "header-alone.csv": b"prompt\n",
    "no-rows.parquet": parquet(prompt=pa.array([], pa.string())),
    "no-columns.parquet": parquet(),
    "quote-without-end.csv": b'prompt,x\n"a,1\nb,2\n',
    "text-behind-a-quote.csv": b'prompt,x\n"a"b,1\n',
    "latin-1.csv": "prompt\n\xe9\n".encode("latin-1"),
    "utf-16.csv": "prompt\na\n".encode("utf-16"),
    "utf-16-without-mark.csv": "prompt\na\n".encode("utf-16-le"),
    "nul.csv": b"prompt\na\0b\n",
    "column-twice.csv": b"prompt,prompt\na,b\n",
    "semicolons.csv": b"prompt;x\na;1\n",
    "short-row.csv": b"prompt,x\na\n",
    "latin-1.jsonl": '{"prompt": "\xe9"}\n'.encode("latin-1"),
    "utf-16.jsonl": LINES.decode().encode("utf-16"),
    "utf-32.json": json.dumps(ROWS).encode("utf-32"),
    "nul.jsonl": b'{"prompt": "a\0"}\n',
    "zeros-behind.jsonl": LINES + b"\0" * 4096,
    "5000-digits.jsonl": b'{"prompt": %s}\n' % (b"9" * 5000),
    "5000-digits.json": b'[{"prompt": %s}]' % (b"9" * 5000),
    "deep.jsonl": b'{"prompt": %s%s}\n' % (b"[" * 100_000, b"]" * 100_000),
    "deep.json": b"[" * 100_000 + b"]" * 100_000,
    "half-a-character.jsonl": b'{"prompt": "\\ud800"}\n',
    "list.jsonl": b'["a"]\n',
    "null.jsonl": b"null\n",
    "single-quotes.jsonl": b"{'prompt': 'a'}\n",
    "comma-at-the-end.jsonl": b'{"prompt": "a",}\n',
    "two-on-a-line.jsonl": b'{"prompt": "a"} {"prompt": "b"}\n',
    "key-twice.jsonl": b'{"prompt": "a", "prompt": "b"}\n',
    "numbers.jsonl": b'{"prompt": 7}\n',
    "other-column.jsonl": b'{"text_of_prompt": "a"}\n',
    "rows-below-a-key.json": b'{"rows": [{"prompt": "a"}]}',
    "list-of-numbers.json": b"[1, 2]",
    "text-behind-the-list.json": b'[{"prompt": "a"}] x',
    "page.jsonl": b"<!DOCTYPE html>\n<html></html>\n",
    "pointer.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "pointer.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "zip.jsonl.gz": zipped("a.jsonl", LINES),
    "plain.jsonl.gz": LINES,
    "twice.jsonl.gz": gzip.compress(gzip.compress(LINES)),
    "wrong-sum.jsonl.gz": gzip.compress(LINES)[:-8] + b"\0" * 8,
    "more-behind.jsonl.gz": gzip.compress(LINES) + b"more",
    "bomb.jsonl.gz": gzip.compress(b"x" * 2**20) * 257,
    "cut-off.jsonl.zst": ZST[:-5],
    "gzip.jsonl.zst": gzip.compress(LINES),
    "more-behind.jsonl.zst": ZST + b"more",
    "gzip.jsonl": gzip.compress(LINES),
    "parquet.jsonl": PARQUET,
    "lines.parquet": LINES,
    "long-footer.parquet": PARQUET[:-8] + b"\xff\xff\xff\x7fPAR1",
    "no-footer.parquet": PARQUET[:-8] + b"\0\0\0\0PAR1",
    "encrypted.parquet": b"PARE" + PARQUET[4:-4] + b"PARE",
    "broken-footer.parquet": PARQUET[: len(PARQUET) // 2] + b"\xff" * 20 + PARQUET[len(PARQUET) // 2 + 20 :],
    "date-of-no-calendar.parquet": parquet(prompt=["a"], day=pa.array([2**31 - 1], pa.date32())),
    "time-of-no-calendar.parquet": parquet(prompt=["a"], at=pa.array([2**62], pa.timestamp("us"))),
    "zone-of-no-place.parquet": parquet(prompt=["a"], at=pa.array([0], pa.timestamp("us", tz="Mars/Base"))),
    "column-twice.parquet": parquet_of(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"])),
    "not-utf-8.parquet": parquet(prompt=NOT_UTF_8),
    "numbers.parquet": parquet(prompt=[1, 2]),
    "table.xlsx": b"PK",
    "archive.tar.gz": gzip.compress(b""),
    "no-ending": LINES,
    os.fsdecode(b"half-\xff.jsonl"): b"[]\n",
    "line\nbreak.jsonl": b"[]\n",
}


def saved(change):
    """What makes a data set as `datasets` saves it, and then changes its directory."""

    def make(path):
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
        change(path)

    return make


def removed(name):
    return saved(lambda path: next(path.glob(name)).unlink())


def holding(name, content):
    return saved(lambda path: next(path.glob(name)).write_bytes(content))


def cut(path):
    (arrow,) = path.glob("*.arrow")
    os.truncate(arrow, arrow.stat().st_size // 2)


def is_pipe(path):
    (arrow,) = path.glob("*.arrow")
    arrow.unlink()
    os.mkfifo(arrow)


ODD_PLACES = {
    "saved-without-state": removed("state.json"),
    "saved-without-rows": removed("*.arrow"),
    "saved-without-columns": removed("dataset_info.json"),
    "saved-cut-off": saved(cut),
    "saved-as-text": holding("*.arrow", LINES),
    "saved-state-of-no-files": holding("state.json", b"{}"),
    "saved-state-cut-off": holding("state.json", b'{"_data_files": ['),
    "saved-state-elsewhere": holding("state.json", b'{"_data_files": [{"filename": "/etc/hostname"}]}'),
    "saved-columns-cut-off": holding("dataset_info.json", b'{"features": {'),
    "saved-pipe": saved(is_pipe),
    "pipe.jsonl": os.mkfifo,
    "directory.jsonl": os.mkdir,
    "device.jsonl": lambda path: path.symlink_to("/dev/zero"),
    "device.parquet": lambda path: path.symlink_to("/dev/zero"),
    "unreadable.jsonl": lambda path: path.symlink_to("/proc/self/mem"),
    "loop.jsonl": lambda path: path.symlink_to(path.name),
    "dangling.jsonl": lambda path: path.symlink_to("nowhere"),
    "not-there.jsonl": lambda path: None,
    "*.none": lambda path: None,
    "x" * 300 + ".jsonl": lambda path: None,
    "nul-\0.jsonl": lambda path: None,
    "half-\ud800.jsonl": lambda path: None,
}


def outcome(path, *, records=to_prompts):
    """One word for what became of a file, and what was said, which is what the command says."""
    findings = Findings()
    try:
        found = records(read_rows(Source(path=str(path)), seed=0), findings)
        findings.require_no_bad_rows()
    except Exception as error:
        code, sentence = explain(error)
        if code != MISTAKE:
            return "traceback", repr(error)
        is_named = printable(path.name[-20:]) in printable(sentence) or repr(path.name)[1:-1] in sentence
        # A name may hold a line break; the command then shows a mark for it.
        is_one = "\n" not in sentence.replace(str(path), "") and len(sentence) < 2000
        return ("clear" if is_named and is_one else "unclear"), sentence
    return "accepted", repr(found)


@pytest.mark.timeout(120)
def test_a_file_that_cannot_be_data_is_refused_in_one_sentence_that_names_it(tmp_path):
    counts, wrong = Counter(), []
    for name in [*CONTENTS, *ODD_PLACES]:
        if name in CONTENTS:
            (tmp_path / name).write_bytes(CONTENTS[name])
        else:
            ODD_PLACES[name](tmp_path / name)
        word, said = outcome(tmp_path / name)
        counts[word] += 1
        if word != "clear":
            wrong.append(f"{word}: {name!a:.60}: {said!r:.300}")
    print(dict(counts))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("written", ["NaN", "Infinity", "1e999", '"nan"', "[1]", "{}", '"many"'])
def test_a_number_that_is_none_is_refused_in_one_sentence_that_names_its_file(written, tmp_path):
    path = tmp_path / "margins.jsonl"
    path.write_text(f'{{"prompt": "a", "chosen": "b", "rejected": "c", "margin": {written}}}\n')
    assert outcome(path, records=to_preferences)[0] == "clear", outcome(path, records=to_preferences)[1]
