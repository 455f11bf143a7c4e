"""YAML means what people mean by it, and what is written is read as the same."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.yaml_text import YAMLError, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("+1", 1),
        ("-0", 0),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1:30", "1:30"),
        ("1:30:00", "1:30:00"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 12:00:00", "2024-01-31 12:00:00"),
        ("0b1", "0b1"),
        ("1__0", "1__0"),
        ("_1", "_1"),
        ("1_", "1_"),
        ("0o9", "0o9"),
        ("e5", "e5"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("~", None),
        ("null", None),
        ("", None),
        ("None", "None"),
        ("=", "="),
        ("'010'", "010"),
        ("!!str 010", "010"),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_a_word_is_what_it_looks_like(text, value):
    (found,) = (read_yaml(f"a: {text}")["a"],)
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_left_for_the_setting_to_refuse():
    assert math.isnan(read_yaml("a: .nan")["a"])


@pytest.mark.parametrize("text", ["010", "1", "on", "null", "true", "1.5", "2024-01-31", "~"])
def test_a_key_is_the_text_that_was_written(text):
    assert read_yaml(f"{text}: x") == {text: "x"}


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "{a: 1, 'a': 2}",
        "b: [{a: 1, a: 2}]",
        "b: {c: {a: 1, b: 2, a: 1}}",
        "1: x\n'1': y",
        "x: &x {b: 1}\na: {<<: *x, <<: *x}",
        "a: 1\nb: 2\n? a\n: 3",
    ],
)
def test_a_key_twice_is_refused_wherever_it_stands(text):
    with pytest.raises(YAMLError, match=r"the key '(a|1|<<)' stands here for the second time, first in line"):
        read_yaml(text)


def test_a_key_may_replace_one_of_a_part_that_is_shared():
    text = "x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\nz: {a: 4, <<: *x}\n<<: *x"
    assert read_yaml(text) == {"x": {"a": 1, "b": 2}, "y": {"a": 3, "b": 2}, "z": {"a": 4, "b": 2}, "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 12e4567", "12e4567 is too large a number; quote a text"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("a: !!timestamp 2024-01-31", "could not determine a constructor"),
        ("a: !!set {b}", "could not determine a constructor"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !!int many", "is not what its tag says"),
        ("a: !!bool many", "is not what its tag says"),
        ("? [a]\n: 1", "a key must be a text"),
        ("a: &a [*a]", "holds itself"),
        ('a: "\\ud83d"', "half of a character"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("a: &a {b: *a}", "holds itself"),
        ("a: &a\n  <<: *a\n  b: 1", "holds itself"),
        ("a: {<<: 1}", "<< takes a mapping"),
        ("a: {<<: [{b: 1}, x]}", "<< takes a mapping"),
        (f"a: {'9' * 5000}", "a number of 5,000 digits is too large"),
        (f"a: 0x{'f' * 5000}", "a number of 5,002 digits is too large"),
        ("[" * 3000, "nest deeper than 100"),
        ("{a: " * 3000, "nest deeper than 100"),
        ("\n".join(" " * depth + "- " for depth in range(200)), "nest deeper than 100"),
    ],
)
def test_what_has_no_plain_meaning_is_refused(text, says):
    with pytest.raises(YAMLError) as caught:
        read_yaml(text)
    assert says in str(caught.value)


# Eight levels of nine aliases each: some hundred bytes that stand for 43 million values.
BOMBS = {
    "lists": "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]),
    "mappings": "\n".join(
        ["a0: &a0 {k: x}"] + [f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in range(1, 9)]
    ),
    "merged lists": "a0: &a0 {"
    + ", ".join(f"k{i}: {i}" for i in range(1000))
    + "}\n"
    + "a1: {<<: ["
    + ", ".join(["*a0"] * 5000)
    + "]}",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_short_text_that_stands_for_millions_of_values_is_refused_at_once(text):
    began = time.monotonic()
    with pytest.raises(YAMLError, match="more than 200,000 values"):
        read_yaml(text)
    assert time.monotonic() - began < 5


def test_aliases_within_reason_are_what_they_stand_for():
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: *a") == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": [1, 2]}
    assert len(read_yaml("a: [" + "1, " * 20_000 + "1]")["a"]) == 20_001


def test_of_several_merged_mappings_the_first_that_has_a_key_counts():
    text = "x: &x {a: 1}\ny: &y {a: 2, b: 2}\nz: {<<: [*x, *y], c: 3}\nw: {<<: [*y, *x], b: 4}"
    document = read_yaml(text)
    assert (document["z"], document["w"]) == ({"a": 1, "b": 2, "c": 3}, {"a": 2, "b": 4})


def test_bytes_are_utf_8_or_marked_utf_16_whatever_the_locale():
    text = "a: grün\n"
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        assert read_yaml(content) == {"a": "grün"}


words = st.sampled_from(
    ["on", "010", "1e-5", "0o7", "1:30", "2024-01-31", "~", "<<", "null", ".inf", "=", "", " a", "a: b", "#"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | words, inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text() | words, values, max_size=4))
def test_what_is_written_is_read_as_the_same_values_of_the_same_types(document):
    again = read_yaml(write_yaml(document))
    assert repr(again) == repr(document)


def test_what_stands_twice_in_memory_is_written_twice():
    shared = ["x"]
    assert write_yaml({"a": shared, "b": shared}) == "a:\n- x\nb:\n- x\n"
