"""One table of rows in every format and shape that is understood gives the same records, with the same ids."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_world import make_world, prepare_config, rows
from transcripts import WRITTEN, written

from tasks.config.data import Source
from tasks.data.bad_rows import Row
from tasks.data.plain_values import content_key
from tasks.data.shapes.preferences import to_preferences
from tasks.data.shapes.records import to_prompts, to_texts
from tasks.data.sources import read_rows
from tasks.store.manifest import Place

# Texts without the marks of a template, that begin and end with what is no white space: some templates strip it.
said = st.text(st.sampled_from("aé😀 \n\"',;\t[]{}0:"), min_size=1, max_size=12).map(str.strip).filter(bool)
said = said.filter(lambda text: not text.startswith(("[", "{", "]", "}")))


@st.composite
def conversations(draw):
    """Turns of user and assistant that end with the user's, and two answers."""
    turns = draw(st.lists(said, min_size=1, max_size=3).filter(lambda turns: len(turns) % 2 == 1))
    return turns, draw(said), draw(said)


def as_messages(turns):
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def sharegpt(messages):
    sender = {"user": "human", "assistant": "gpt"}
    return [{"from": sender[m["role"]], "value": m["content"]} for m in messages]


def in_parts(messages):
    return [m | {"content": [{"type": "text", "text": c} for c in m["content"]]} for m in messages]


def with_nulls(messages):
    return [{"content": m["content"], "name": None, "role": m["role"], "tool_calls": None} for m in messages]


SHAPES = {
    "messages": lambda messages: messages,
    "json": json.dumps,
    "json_pretty": lambda messages: json.dumps(messages, indent=2, ensure_ascii=False),
    "python": str,
    "sharegpt": sharegpt,
    "sharegpt_json": lambda messages: json.dumps(sharegpt(messages)),
    "parts": in_parts,
    "nulls": with_nulls,
    "wrapped": lambda messages: json.dumps({"messages": messages}),
}


def write(path: Path, rows) -> Path:
    """Rows in the format that the file's name says."""
    ending, _, packed = path.name.partition(".")[2].partition(".")
    names = list(rows[0])
    if ending == "parquet":
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        content = stream.getvalue()
    elif ending in ("csv", "tsv"):
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter="," if ending == "csv" else "\t")
        writer.writerow(names)
        cell = lambda value: value if isinstance(value, str) else json.dumps(value)  # noqa: E731
        writer.writerows([[cell(row[name]) for name in names] for row in rows])
        content = text.getvalue().encode()
    elif ending == "json":
        content = json.dumps(rows).encode()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if packed == "gz":
        content = gzip.compress(content)
    if packed == "zst":
        content = pyarrow.Codec("zstd").compress(content, asbytes=True)
    path.write_bytes(content)
    return path


ENDINGS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"]
FORMATS = [*ENDINGS, *(f"{ending}.{packed}" for ending in ENDINGS for packed in ("gz", "zst"))]
several = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", FORMATS)
@several
@given(st.lists(st.tuples(said, said, said), min_size=1, max_size=4))
def test_texts_come_back_from_every_format(tmp_path, name, table):
    pairs = [{"prompt": p, "chosen": f"{c} 1", "rejected": f"{r} 2"} for p, c, r in table]
    read = read_rows(Source(path=str(write(tmp_path / f"a.{name}", pairs))), seed=0)
    assert [row.values for row in read] == pairs


@pytest.mark.parametrize("shape", SHAPES)
@settings(deadline=None, max_examples=60)
@given(conversations())
def test_a_conversation_is_the_same_records_in_every_shape(shape, conversation):
    turns, first, second = conversation
    write = SHAPES[shape]
    prompt, chosen, rejected = as_messages(turns), as_messages([*turns, first]), as_messages([*turns, second])

    def preferences(**values):
        return [(p.prompt, p.responses, p.ranks) for p in to_preferences([Row("r", values)])[0]]

    if first != second:
        expected = [(prompt, [first, second], [1, 2])]
        last = [[message[-1]] for message in (chosen, rejected)]
        assert preferences(chosen=write(chosen), rejected=write(rejected)) == expected
        assert preferences(prompt=write(prompt), chosen=write(chosen), rejected=write(rejected)) == expected
        assert preferences(prompt=write(prompt), chosen=write(last[0]), rejected=write(last[1])) == expected
        assert preferences(conversations=write(prompt), chosen=write(last[0]), rejected=write(last[1])) == expected
        assert preferences(conversation_a=write(rejected), conversation_b=write(chosen), winner="b") == expected
        assert preferences(prompt=write(prompt), responses=[first, second], scores=[2, 1]) == expected
        texts = {"prompt": write(prompt), "completion": write(last[0]), "label": True}, {"prompt": write(prompt)}
        rows = [Row("r", texts[0]), Row("r", texts[1] | {"completion": write(last[1]), "label": False})]
        assert [(p.prompt, p.responses, p.ranks) for p in to_preferences(rows)[0]] == expected
    for values in (
        {"prompt": write(prompt)},
        {"messages": write(prompt)},
        {"messages": write(chosen)},
        {"conversations": write(chosen)},
    ):
        assert [p.prompt for p in to_prompts([Row("r", values)])] == [prompt]
    for values in ({"messages": write(chosen)}, {"conversations": write(chosen)}, {"text": write(chosen)}):
        if not (isinstance(values.get("text"), list)):
            assert [(t.prompt, t.response) for t in to_texts([Row("r", values)])] == [(prompt, first)]


@pytest.mark.parametrize("name", WRITTEN)
@settings(deadline=None, max_examples=60)
@given(conversations())
def test_a_conversation_written_out_is_the_pair_of_its_prompt_column(name, conversation):
    turns, first, second = conversation
    plain = [
        text.replace(":", "").replace("[", "").replace("\n", " ").strip() or "a" for text in (*turns, first, second)
    ]
    *turns, first, second = plain
    if first == second:
        return
    begin, chosen = written(name, turns, first)
    rejected = written(name, turns, second).whole
    ((found,), _) = to_preferences([Row("r", {"chosen": chosen, "rejected": rejected})])
    space = chosen[len(begin) : chosen.index(first, len(begin))]
    column = {"prompt": begin, "chosen": space + first, "rejected": space + second}
    ((same,), _) = to_preferences([Row("r", column)])
    assert (found.prompt, [r.strip() for r in found.responses]) == (same.prompt, [r.strip() for r in same.responses])
    ((again,), _) = to_preferences([Row("r", {"prompt": begin, "chosen": chosen, "rejected": rejected})])
    assert again.prompt == begin


def test_prepared_data_is_the_same_whatever_file_it_came_from(tmp_path):
    bench, base, _, _ = make_world(tmp_path)
    prompts = [
        {
            "prompt": f"where is lamp {i}?",
            "answer": i,
            "easy": i % 2 == 0,
            "rule": {"word": "a", "n": i},
            "share": i / 4,
        }
        for i in range(12)
    ]
    pairs = [{"prompt": f"question {i}:", "chosen": f" thank you {i}", "rejected": " go away"} for i in range(12)]
    seen = {}
    for number, name in enumerate(["jsonl", "csv", "parquet", "tsv.gz", "json.zst"]):
        sources = {
            kind: (Source(path=str(write(tmp_path / f"same_{kind}.{name}", table))),)
            for kind, table in {"prompts": prompts, "preferences": pairs}.items()
        }
        data = bench.run("prepare_data", prepare_config(tmp_path, **sources), place=Place(number + 1), base=base)
        seen[name] = {
            kind: [
                {key: value for key, value in row.items() if key != "extra"}
                for part in (kind, f"held_out_{kind}")
                for row in rows(data, part)
            ]
            for kind in sources
        }
    assert len(seen["jsonl"]["prompts"]) == 12
    assert all(found == seen["jsonl"] for found in seen.values())


def test_the_key_of_a_rows_other_columns_tells_contents_apart_and_formats_not():
    row = {"answer": 51, "rule": {"word": "a", "of": [1.5, True]}}
    for same in (
        {"answer": "51", "rule": '{"of": [1.5, true], "word": "a"}'},
        {"rule": {"of": [1.5, "true"], "word": "a", "n": None}, "answer": 51.0, "note": None},
        {"answer": "51", "rule": row["rule"], "note": ""},
    ):
        assert content_key(same) == content_key(row)
    for other in (row | {"answer": 52}, row | {"rule": {}}, row | {"more": 0}, {"rule": row["rule"]}):
        assert content_key(other) != content_key(row)
