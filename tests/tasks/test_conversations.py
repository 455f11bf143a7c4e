"""Messages in the forms that people keep them in are one form, and what is none of them is refused by place and value."""

import json

import pytest

from tasks.data.bad_rows import BadRow, Row
from tasks.data.shapes.conversations import json_list, messages_of, unfolded

ROW = Row("a.csv, row 3", {})
Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SHARE = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


def messages(value):
    return messages_of(ROW, "messages", value)


def refusal(value) -> str:
    with pytest.raises(BadRow) as caught:
        messages(value)
    assert str(caught.value).startswith("a.csv, row 3: messages")
    return str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        [Q, A],
        SHARE,
        json.dumps([Q, A]),
        json.dumps(SHARE, indent=2),
        f" {json.dumps([Q, A])}\n",
        str([Q, A]),  # what pandas writes into a CSV cell
        json.dumps({"messages": [Q, A]}),
        {"conversations": SHARE, "id": 3},
        [{"content": "Q", "role": "USER"}, {"content": "A", "role": " Assistant "}],
        [Q | {"tool_calls": None, "name": None}, A | {"from": None}],
        [{"from": "prompter", "text": "Q"}, {"role": "model", "parts": [{"text": "A"}]}],
        [
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            A | {"content": [{"type": "output_text", "text": "A"}]},
        ],
        [Q | {"content": [{"type": "text", "text": "Q", "image_url": None}]}, A],
        [{"role": "human", "content": "Q"}, {"role": "bot", "content": "A"}],
    ],
)
def test_every_form_is_the_same_conversation(value):
    assert messages(value) == [Q, A]


def test_parts_are_one_text_and_one_message_is_a_conversation():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert messages({"role": "user", "content": parts}) == [{"role": "user", "content": "one two"}]
    assert messages('{"from": "human", "value": "Q"}') == [Q]


@pytest.mark.parametrize("role", ["tool", "observation", "function", "tool_response", "function_response"])
def test_what_a_tool_returns_is_a_tools_message(role):
    assert messages([{"from": role, "value": "sunny"}]) == [{"role": "tool", "content": "sunny"}]
    assert messages([{"role": role, "content": ""}]) == [{"role": "tool", "content": ""}]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "name": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}],
        },
        # Arrow fills the arguments of other calls with nulls.
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "n": None}}}
            ],
        },
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Bern"}'}},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
    ],
)
def test_a_call_of_a_tool_in_every_form_is_the_same_message_without_content(message):
    assert messages([message]) == [CALLS]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("Q", ["is a str: 'Q'"]),
        ([], ["holds no message"]),
        (["Q"], ["[0] is not a message: 'Q'"]),
        ([{"role": "user"}], ["[0] is not a message: {'role': 'user'}"]),
        ([{"role": "user", "content": None}], ["[0] has no content"]),
        ([{"role": "user", "content": 7}], ["[0] has content that is no text"]),
        ([Q, {"role": "user", "content": " "}], ["[1].content is empty"]),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}],
            ["[0].content holds a part of type 'image_url'", "give text alone"],
        ),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], ["holds a part of type 'text'"]),
        ([{"role": "user", "content": ["Q"]}], ["holds a part of type 'str'"]),
        ([{"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}], ["without a function's name"]),
        ([{"from": "function_call", "value": "weather(Bern)"}], ["its text is no JSON with a name"]),
        ([{"role": "user", "content": "cut \ud83d off"}], ["half of a character (\\ud83d"]),
        ([Q | {"name": "\udc00"}], ["half of a character (\\udc00"]),
        (json.dumps([Q, A])[:-9], ["begins like messages but is no whole JSON: cut-off messages, or text?"]),
        ("[{'role': 'user', 'content': 'Q'}\n {'role': 'assistant', 'content': 'A'}]", ["begins like messages"]),
        ('[{"content": "Q", "role": "user"}, ...]', ["[1] is not a message: Ellipsis"]),
        (json.dumps([Q, {"role": "assistant"}]), ["[1] is not a message: {'role': 'assistant'}"]),
    ],
)
def test_what_is_no_conversation_is_refused_by_place_and_value(value, says):
    said = refusal(value)
    for part in says:
        assert part in said


@pytest.mark.parametrize(
    "text",
    [
        "Q",
        "[1] is a footnote",
        "{",
        "{x}",
        '["a", "b"]',
        '{"role": "admin", "rights": []}',
        '[{"name": "a"}, {"name": "b"}]',
        '[{"role": "user", "content": "Q"}] Convert this to XML.',
        '{"role": "user", "content": "Q"} is what JSON?',
        "The list [{'role': 'user'",
        "",
    ],
)
def test_a_text_about_such_things_stays_the_text_it_is(text):
    assert unfolded(ROW, "prompt", text) == text


def test_a_list_as_json_text_is_read_where_only_lists_can_be():
    assert json_list('[1, "a"]') == [1, "a"]
    assert json_list("['a']") == ["a"]
    assert json_list("[1") == "[1"
    assert json_list('{"a": 1}') == '{"a": 1}'
