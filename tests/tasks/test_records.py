"""Every shape becomes the same record, and every bad row is refused by place, field and value."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shared_data import SHARED, needs_shared_data

from tasks.errors import DataError
from tasks.records import Preference, Prompt, Text, split_transcripts, to_preferences, to_prompts, to_texts
from tasks.sources import Row, Source, read_rows

PLACE = "data/a.jsonl, row 17"


def row(**values) -> Row:
    return Row(PLACE, values)


def preference(**values) -> Preference:
    (found,), dropped = to_preferences([row(**values)])
    assert dropped == {}
    assert found.place == PLACE
    return found


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def refusal(convert, **values) -> str:
    with pytest.raises(DataError) as caught:
        convert([row(**values)])
    assert str(caught.value).startswith(f"{PLACE}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Preferences.


def test_a_pair_is_two_responses_ranked_one_and_two():
    found = preference(prompt="Q", chosen=" good", rejected=" bad", id=3, margin=2)
    assert found == Preference(prompt="Q", responses=[" good", " bad"], ranks=[1, 2], margin=2.0, place=PLACE)
    assert preference(prompt="Q", chosen="a", rejected="b").margin is None


def test_null_columns_count_as_absent_as_in_parquet():
    found = preference(prompt="Q", chosen="a", rejected="b", responses=None, ranks=None, messages=None, margin=None)
    assert found.responses == ["a", "b"]


def test_a_margin_from_csv_is_text():
    assert preference(prompt="Q", chosen="a", rejected="b", margin="1.5").margin == 1.5
    assert preference(prompt="Q", chosen="a", rejected="b", margin="").margin is None


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": [user("Q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": [user("Q")], "chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("b")]},
        {"prompt": [user("Q")], "chosen": "a", "rejected": "b"},
        {"prompt": "Q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": "Q", "chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("b")]},
        {"chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("b")]},
        {"prompt": [user("Q")], "responses": ["a", [assistant("b")]], "ranks": [1, 2]},
    ],
)
def test_conversations_are_one_preference_in_every_shape(values):
    assert preference(**values) == Preference(prompt=[user("Q")], responses=["a", "b"], ranks=[1, 2], place=PLACE)


def test_longer_conversations_share_all_but_the_last_message():
    start = [{"role": "system", "content": ""}, user("Q"), assistant("A"), user("And?")]
    found = preference(chosen=[*start, assistant("a")], rejected=[*start, assistant("b")])
    assert (found.prompt, found.responses) == (start, ["a", "b"])


def test_a_ranking_keeps_its_ties():
    found = preference(prompt="Q", responses=["a", "b", "c"], ranks=[2, 1, 2.0])
    assert (found.responses, found.ranks) == (["a", "b", "c"], [2, 1, 2])


def test_rows_that_compare_nothing_are_left_out_and_counted():
    rows = [
        row(prompt="Q", chosen="a", rejected="b"),
        row(prompt="Q", chosen="a", rejected="a"),
        row(chosen="Human: a b", rejected="Human: a b"),
        row(prompt="Q", responses=["a", "b"], ranks=[1, 1]),
        row(chosen=[user("Q"), assistant("a")], rejected=[user("R"), assistant("b")]),
        row(chosen=[user("Q"), assistant("a")], rejected=[user("Q"), assistant("b"), user("R"), assistant("c")]),
    ]
    found, dropped = to_preferences(rows)
    assert [p.responses for p in found] == [["a", "b"]]
    assert dropped == {
        "chosen equal to rejected": 2,
        "all ranks tied": 1,
        "conversations that part before their last message": 2,
    }
    with pytest.raises(DataError, match="no row compares two responses: 2 with chosen equal to rejected, 1 with all"):
        to_preferences(rows[1:4])


# Transcripts.

HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who are you?\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "first", "second"),
    [
        (HH, " I am A.", " You tell me."),
        (HH, " I am A.", " I do not know."),  # both begin with " I"
        (HH, " See:\nAnswer: 1", " See:\nAnswer: 2"),  # a lesser marker inside the answer
        ("Question: a?\nAnswer:", " yes", " yesterday"),
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "Yes", "Yet"),
        ("### Assistant:", " a", " b"),
        ("Once upon a", " dog", " cat"),
        ("Once upon a", " do", " dog"),  # the shared "do" is no whole word
        ("Once", " upon", " upon a time"),
        ("Once upon", " a", "\na"),  # they differ in white space right after a word
        ("Once", "  a", "  b"),
    ],
)
def test_the_common_beginning_of_two_transcripts_is_the_prompt(prompt, first, second):
    assert split_transcripts(prompt + first, prompt + second) == (prompt, first, second)
    found = preference(chosen=prompt + first, rejected=prompt + second)
    assert (found.prompt, found.responses) == (prompt, [first, second])


pieces = st.lists(
    st.sampled_from(["\n\nHuman: ", "\n\nAssistant: ", "\nAnswer:", " ", "\n", "a", "ab", "é", "word"]), max_size=8
).map("".join)


@settings(deadline=None)
@given(pieces, pieces, pieces)
def test_prompt_plus_response_is_the_transcript_and_no_word_is_cut(shared, first, second):
    assume(first != second)
    prompt, a, b = split_transcripts(shared + first, shared + second)
    assert (prompt + a, prompt + b) == (shared + first, shared + second)
    marked = prompt.rstrip(" ").endswith(":")
    assert marked or not prompt or (a[:1].isspace() and b[:1].isspace())
    assert split_transcripts(shared + second, shared + first) == (prompt, b, a)


# Prompts and texts.


def test_a_prompt_keeps_the_other_columns_for_reward_functions():
    assert to_prompts([row(prompt="Q", answer="51", rule={"word": "a"})]) == [
        Prompt(prompt="Q", extra={"answer": "51", "rule": {"word": "a"}}, place=PLACE)
    ]
    (found,) = to_prompts([row(prompt=[user("Q")], messages=[user("R")])])
    assert (found.prompt, found.extra) == ([user("Q")], {"messages": [user("R")]})


def test_messages_as_a_prompt_lose_the_last_answer():
    rows = [row(messages=[user("Q"), assistant("A")], n=1), row(messages=[user("Q")], n=1)]
    assert to_prompts(rows) == [Prompt(prompt=[user("Q")], extra={"n": 1}, place=PLACE)] * 2


def test_null_keys_of_a_message_are_left_out_and_others_kept():
    (found,) = to_prompts([row(prompt=[user("Q") | {"name": "Ann", "tool_calls": None}])])
    assert found.prompt == [user("Q") | {"name": "Ann"}]


@pytest.mark.parametrize(
    ("values", "prompt", "response"),
    [
        ({"text": "Once upon"}, None, "Once upon"),
        ({"prompt": "Q", "response": " A"}, "Q", " A"),
        ({"prompt": "Q", "completion": " A"}, "Q", " A"),
        ({"prompt": [user("Q")], "completion": [assistant("A")]}, [user("Q")], "A"),
        ({"prompt": "Q", "completion": [assistant("A")]}, [user("Q")], "A"),
        ({"messages": [user("Q"), assistant("A")], "text": None}, [user("Q")], "A"),
    ],
)
def test_texts_of_every_shape(values, prompt, response):
    assert to_texts([row(**values)]) == [Text(prompt=prompt, response=response, place=PLACE)]


# Bad rows.

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
RANKING = {"prompt": "Q", "responses": ["a", "b"], "ranks": [1, 2]}
MIXED = [{"role": "user"}, {"content": "a"}]


@pytest.mark.parametrize(
    ("convert", "values", "says"),
    [
        (to_preferences, {"prompt": "Q", "chosen": "a", "worse": "b"}, ["no column rejected", "prompt, chosen, worse"]),
        (to_preferences, {"question": "Q"}, ["no column chosen", "question", "columns: {chosen: ITS_NAME}"]),
        (to_preferences, PAIR | {"rejected": None}, ["the column rejected is null"]),
        (to_preferences, PAIR | {"prompt": ""}, ["prompt is empty: ''"]),
        (to_preferences, PAIR | {"chosen": " \n"}, ["chosen is empty: ' \\n'"]),
        (to_preferences, PAIR | {"chosen": 5, "rejected": 6}, ["chosen is a int: 5"]),
        (to_preferences, PAIR | {"rejected": ["b"]}, ["rejected is a list where chosen is a str: ['b']"]),
        (to_preferences, PAIR | {"margin": "much"}, ["margin is not a finite number: 'much'"]),
        (to_preferences, PAIR | {"margin": float("nan")}, ["margin", "nan"]),
        (to_preferences, PAIR | {"prompt": [user("Q"), assistant("A")]}, ["prompt ends with an assistant's"]),
        (to_preferences, PAIR | {"prompt": [user(" ")]}, ["prompt[0].content is empty: ' '"]),
        (to_preferences, PAIR | {"prompt": MIXED}, ["prompt[0] is not a message: {'role': 'user'}"]),
        (to_preferences, PAIR | {"prompt": []}, ["prompt holds no message"]),
        (to_preferences, {"chosen": "abc", "rejected": "abd"}, ["no beginning in common", "'abc'", "column prompt"]),
        (to_preferences, {"chosen": HH + " a", "rejected": HH}, ["rejected has an empty response", "Assistant:"]),
        (to_preferences, {"chosen": [assistant("a")], "rejected": [assistant("b")]}, ["no message before the answer"]),
        (to_preferences, {"chosen": [user("Q")], "rejected": [user("R")]}, ["chosen ends with a message of 'user'"]),
        (to_preferences, RANKING | {"responses": ["a"], "ranks": [1]}, ["responses ranks 1 response: ['a']"]),
        (to_preferences, RANKING | {"ranks": [1]}, ["ranks has 1 ranks for 2 responses: [1]"]),
        (to_preferences, RANKING | {"ranks": [0, 1]}, ["ranks holds 0: [0, 1]", "from 1, the best"]),
        (to_preferences, RANKING | {"ranks": [1, 1.5]}, ["ranks holds 1.5"]),
        (to_preferences, RANKING | {"ranks": [True, 2]}, ["ranks holds True"]),
        (to_preferences, RANKING | {"ranks": ["1", "2"]}, ["ranks holds '1'"]),
        (to_preferences, RANKING | {"responses": '["a", "b"]'}, ["responses is a str"]),
        (to_preferences, RANKING | {"responses": ["a", ""]}, ["responses[1] is empty: ''"]),
        (to_preferences, RANKING | {"responses": ["a", 2]}, ["responses[1] is a int: 2"]),
        (to_preferences, {"prompt": "Q", "ranks": [1, 2]}, ["no column responses"]),
        (to_prompts, {"question": "Q"}, ["no column prompt (or messages)", "question"]),
        (to_prompts, {"prompt": 7}, ["prompt is a int: 7"]),
        (to_prompts, {"messages": "Q"}, ["messages is a str: 'Q'"]),
        (to_prompts, {"messages": [assistant("A")]}, ["messages holds only the assistant's message"]),
        (to_prompts, {}, ["the other columns are none"]),
        (to_texts, {"prompt": "Q"}, ["no column text (or prompt and response, or messages)"]),
        (to_texts, {"text": " "}, ["text is empty"]),
        (to_texts, {"response": "A"}, ["no column prompt"]),
        (to_texts, {"messages": [user("Q")]}, ["messages ends with a message of 'user'"]),
        (to_texts, {"messages": [user("Q"), assistant("")]}, ["messages[1].content is empty"]),
        (to_texts, {"prompt": "Q", "response": [user("a"), assistant("b")]}, ["2 messages after the prompt"]),
    ],
)
def test_a_bad_row_is_refused_by_place_field_and_value(convert, values, says):
    said = refusal(convert, **values)
    for part in says:
        assert part in said


def test_a_long_value_is_shortened():
    said = refusal(to_preferences, prompt="Q", responses=["word " * 1000], ranks=[1])
    assert len(said) < 300
    assert "(1 items)" in said


@needs_shared_data
def test_the_shared_data_reads_whole():
    kept = {}
    for path in sorted([*SHARED.glob("pairs/*.jsonl"), *SHARED.glob("rankings/*.jsonl")]):
        rows = read_rows(Source(path=str(path)), seed=0)
        found, dropped = to_preferences(rows)
        assert len(found) + sum(dropped.values()) == len(rows)
        kept[path.stem] = (len(found), dropped)
    assert kept["ukp_convarg"] == (5398, {})
    assert kept["fgrlhf_qa"] == (403, {"all ranks tied": 10})
    (first, *_) = to_prompts(read_rows(Source(path=str(SHARED / "prompts/svamp.jsonl")), seed=0))
    assert first.extra["answer"] == "51"
