"""Data files that broke on their way: refused in one sentence that names them, or their rows are those of an intact file."""

import gzip
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet
import pytest

from tasks.errors import UserError
from tasks.sources import Source, read_rows

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
