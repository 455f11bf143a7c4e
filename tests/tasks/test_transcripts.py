"""A transcript is split where a known opening of an assistant's turn stands, or not at all."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transcripts import WRITTEN, written

from tasks.data.bad_rows import Findings, Row
from tasks.data.shapes.preferences import to_preferences
from tasks.data.shapes.transcripts import split
from tasks.errors import DataError

HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who are you?\n\nAssistant:"


def parts(first: str, second: str) -> tuple[str, str, str]:
    """Prompt and responses of two transcripts that can be split."""
    found = split(first, second)
    assert not isinstance(found, str), found
    return (found.prompt, *found.responses)


def doubt(first: str, second: str) -> str:
    said = split(first, second)
    assert isinstance(said, str)
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: .*add a column prompt"):
        to_preferences([Row("a.jsonl, row 1", {"chosen": first, "rejected": second})])
    return said


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("turns", [["Q"], ["Hi", "Hello", "And now?"]])
@pytest.mark.parametrize(
    "answers",
    # Their first words are the same, which is what a split by the common beginning would put into the prompt.
    [("The lamp is on the table.", "The lamp is none of your business."), ("yes", "no"), ("yes", "yes and no")],
)
def test_every_template_is_split_at_the_opening_of_the_last_answer(name, turns, answers):
    begin, *_ = written(name, turns, "")
    first, second = (written(name, turns, answer) for answer in answers)
    prompt, *responses = parts(first.whole, second.whole)
    assert prompt == begin
    assert [prompt + response for response in responses] == [first.whole, second.whole]
    findings = Findings()
    ((found,), dropped) = to_preferences(
        [Row("a.jsonl, row 1", {"chosen": first.whole, "rejected": second.whole})], findings
    )
    assert (found.prompt, dropped) == (begin, {})
    # What the template writes after an answer is none of the answer; a response ends once.
    assert [response.strip() for response in found.responses] == list(answers)
    assert findings.splits.total() == 1


@pytest.mark.parametrize("name", WRITTEN)
def test_transcripts_whose_conversations_part_earlier_are_no_pair(name):
    first = written(name, ["Q", "a", "R"], "c").whole
    second = written(name, ["Q", "b", "R"], "d").whole
    kept = [Row("r", {"chosen": written(name, ["Q"], "a").whole, "rejected": written(name, ["Q"], "b").whole})]
    found, dropped = to_preferences([*kept, Row("r", {"chosen": first, "rejected": second})])
    assert (len(found), sum(dropped.values())) == (1, 1)


@pytest.mark.parametrize(
    ("prompt", "first", "second"),
    [
        (HH, " I am A.", " You tell me."),
        (HH, " I am A.", " I do not know."),  # both begin with " I"
        (HH, " See:\nAnswer: 1", " See:\nAnswer: 2"),  # a lesser label inside the answer
        ("Question: a?\nAnswer:", " yes", " yesterday"),
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "Yes", "Yet"),
        ("<|im_start|>user\nSay\nAssistant: hi<|im_end|>\n<|im_start|>assistant\n", "hi you", "hi there"),
        ("### Assistant:", " a", " b"),
        ("### Human: Question: x\nAnswer: y\n### Assistant:", " a", " b"),
        ("<|start|>user<|message|>Q<|end|><|start|>assistant", "<|channel|>analysis<|message|>a", "<|channel|>final"),
    ],
)
def test_the_opening_decides_and_not_the_common_beginning(prompt, first, second):
    assert parts(prompt + first, prompt + second) == (prompt, first, second)
    assert parts(prompt + second, prompt + first) == (prompt, second, first)


SAME, ELSE = "The lamp is on the table.", "The lamp is none of your business."


@pytest.mark.parametrize(
    "begin",
    [
        "",
        "Once upon a time ",
        "User: Where is it?\nAssistent: ",
        "Benutzer: Wo?\nAssistent: ",
        "用户：灯在哪里？\n助手：",
        "Utilisateur : Où ?\n\nL'assistant : ",
        "<|turn_start|>user\nWhere?<|turn_end|>\n<|turn_start|>helper\n",
        # The last turn is opened by nothing known, though an earlier one was.
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Where?\n\nAssistent: ",
        "USER: Hi ASSISTANT: Hello</s>USER: Where? ASSISTENT: ",
        # A mark of another template's beside a label, which is then part of what somebody says.
        "<|turn>user\nGo on:\nUser: hi\nAssistant: yo<turn|>\n<|turn>model\n",
        # An opening of the model's own template, written in another way.
        "<start_of_turn>model ",
        "<|start_header_id|>assistant<|end_header_id|> ",
        # A label that is a common word, with nobody else's turn before it.
        "My answer to all of this\nAnswer: ",
    ],
)
def test_without_a_known_opening_there_is_doubt_and_no_split(begin):
    assert "no known opening" in doubt(begin + SAME, begin + ELSE)


def test_two_readings_are_told_apart_by_nobody_and_refused():
    # Either the answer quotes a dialogue, or somebody wrote two turns of the assistant's one after the other.
    quoted = "\n\nHuman: Write a play.\n\nAssistant: Here:\n\nAssistant: The lamp is"
    assert "after the first or the last 'Assistant:'" in doubt(f"{quoted} on.", f"{quoted} off.")
    both = "Take it.\nQ: Where?\nA: Here.\nHuman: Where?\nBot: The lamp is"
    assert "after 'Answer:' or 'AI:'" in doubt(f"{both} on.", f"{both} off.")
    mixed = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert parts(mixed + "a", mixed + "b")[0] == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_of_several_parts_begins_with_the_first_of_them():
    begin = "<|start|>user<|message|>Q<|end|><|start|>assistant"
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
    for same, other in ((thought, thought), (thought, "<|channel|>final<|message|>")):
        first, second = f"{same}yes<|return|>", f"{other}no<|return|>"
        assert parts(begin + first, begin + second) == (begin, first, second)


def test_text_after_the_end_of_an_answer_is_doubt():
    begin = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert "text follows the end" in doubt(f"{begin}a<|im_end|>\nmore", f"{begin}b<|im_end|>\n")


pieces = st.lists(
    st.sampled_from(
        ["\n\nHuman: ", "\n\nAssistant: ", "\nAnswer:", "\nQ:", "[INST]", "[/INST]", " ", "\n", "a", "ab", "é", "word"]
    ),
    max_size=8,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(pieces, pieces, pieces)
def test_what_is_split_is_whole_and_split_right_after_an_opening(shared, first, second):
    assume(first != second)
    if isinstance(split(shared + first, shared + second), str):
        return
    prompt, a, b = parts(shared + first, shared + second)
    assert (prompt + a, prompt + b) == (shared + first, shared + second)
    assert prompt.endswith((":", "[/INST]"))
    assert parts(shared + second, shared + first) == (prompt, b, a)
