"""Every shape becomes the same record, and every bad row is refused by place, field and value."""

import pytest
from shared_data import SHARED, needs_shared_data

from tasks.config.data import Source
from tasks.data.bad_rows import BadRow, Findings, Row
from tasks.data.shapes.preferences import to_preferences
from tasks.data.shapes.records import TAKEN, Preference, Prompt, Text, to_prompts, to_texts
from tasks.data.sources import read_rows
from tasks.errors import DataError
from tasks.store.schemas import ROLLOUTS

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


def test_a_prompt_column_and_transcripts_that_begin_with_it_again_count_it_once():
    prompt = "\n\nHuman: Who are you?\n\nAssistant:"
    found = preference(prompt=prompt, chosen=f"{prompt} I am A.", rejected=f"{prompt} You tell me.")
    assert (found.prompt, found.responses) == (prompt, [" I am A.", " You tell me."])
    found = preference(prompt="Hello", chosen="Hello there", rejected="Hello you")
    assert found.responses == ["Hello there", "Hello you"]


def test_transcripts_that_part_before_their_last_turn_are_left_out_as_conversations_are():
    start = "\n\nHuman: Q\n\nAssistant:"
    rows = [
        row(chosen=f"{start} a", rejected=f"{start} b"),
        row(chosen=f"{start} a\n\nHuman: R\n\nAssistant: c", rejected=f"{start} b\n\nHuman: R\n\nAssistant: c"),
    ]
    found, dropped = to_preferences(rows)
    assert ([p.responses for p in found], dropped) == (
        [[" a", " b"]],
        {"conversations that part before their last message": 1},
    )


def test_how_transcripts_were_split_is_counted():
    findings = Findings()
    start = "\n\nHuman: Q\n\nAssistant:"
    rows = [row(chosen=f"{start} a{i}", rejected=f"{start} b{i}") for i in range(3)]
    rows.append(row(chosen="Q: Q\nA: a", rejected="Q: Q\nA: b"))
    rows.append(row(prompt="Q", chosen="a", rejected="b"))
    to_preferences(rows, findings)
    assert findings.splits == {"Assistant:": 3, "Answer:": 1}


# Prompts and texts.


def test_a_prompt_keeps_the_other_columns_for_reward_functions():
    assert to_prompts([row(prompt="Q", answer="51", rule={"word": "a"})]) == [
        Prompt(prompt="Q", extra={"answer": "51", "rule": {"word": "a"}}, place=PLACE)
    ]
    (found,) = to_prompts([row(prompt=[user("Q")], messages=[user("R")])])
    assert (found.prompt, found.extra) == ([user("Q")], {"messages": [user("R")]})


def test_a_prompt_may_end_where_the_answer_begins_or_with_its_first_mark():
    for prompt in (
        "\n\nHuman: Q\n\nAssistant:",
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|start|>user<|message|>Q<|end|><|start|>assistant<|channel|>final<|message|>",
        "Question: Q\nAnswer: Let us think step by step.",
        "He said:\nAssistant: is a word",
    ):
        assert to_prompts([row(prompt=prompt)])[0].prompt == prompt


@pytest.mark.parametrize("name", ["response", "prompt_id", "rollout_id", "sample_index", "finish_reason", "logprobs"])
def test_a_column_that_a_rollout_would_hide_from_reward_functions_is_refused(name):
    with pytest.raises(DataError) as caught:
        to_prompts([row(prompt="Q", **{name: "mine"})])
    assert f"columns: {{data_{name}: {name}}}" in str(caught.value)
    assert to_prompts([row(prompt="Q", **{name: None})])[0].extra == {}


def test_all_columns_of_rollouts_but_those_that_functions_see_as_the_data_gave_them_are_taken():
    assert set(ROLLOUTS.names) - {"prompt", "messages", "extra"} == TAKEN
    (found,) = to_prompts([row(prompt="Q", score=1, extra={"a": 2}, messages=[user("R")])])
    assert found.extra == {"score": 1, "extra": {"a": 2}, "messages": [user("R")]}


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

HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who are you?\n\nAssistant:"
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
RANKING = {"prompt": "Q", "responses": ["a", "b"], "ranks": [1, 2]}
MIXED = [{"role": "user"}, {"content": "a"}]


@pytest.mark.parametrize(
    ("convert", "values", "says"),
    [
        (to_preferences, {"prompt": "Q", "chosen": "a", "worse": "b"}, ["no column rejected", "prompt, chosen, worse"]),
        (to_preferences, {"question": "Q"}, ["no column chosen", "question", "columns: {chosen: ITS_NAME}"]),
        (to_preferences, PAIR | {"rejected": None}, ["rejected is null", "remove or complete the row"]),
        (
            to_preferences,
            PAIR | {"chosen": "\n\nHuman: Q\n\nAssistant: a"},
            ["begins with 'Human:', the opening of a turn"],
        ),
        (to_preferences, PAIR | {"chosen": "Assistant: a"}, ["begins with 'Assistant:'", "the prompt's, or part"]),
        (
            to_preferences,
            PAIR | {"rejected": "<|im_start|>assistant\na"},
            ["rejected begins with '<|im_start|>assistant'"],
        ),
        (
            to_preferences,
            {"prompt": "Where is it?", "chosen": "Where is it? Here", "rejected": "Where is it? There"},
            ["chosen begins with the prompt: is it said twice, or the answer's own words?"],
        ),
        (
            to_preferences,
            {"prompt": "R", "chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("b")]},
            ["prompt is none of the messages of chosen", "which is the prompt?"],
        ),
        (
            to_preferences,
            {"chosen": "the lamp is on", "rejected": "the lamp is off"},
            ["no known opening", "add a column prompt"],
        ),
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
        (to_preferences, {"chosen": "abc", "rejected": "abd"}, ["what both share, 'ab'", "add a column prompt"]),
        (to_preferences, {"chosen": HH + " a", "rejected": HH}, ["rejected has an empty response", "Assistant:"]),
        (to_preferences, {"chosen": [assistant("a")], "rejected": [assistant("b")]}, ["no message before the answer"]),
        (to_preferences, {"chosen": [user("Q")], "rejected": [user("R")]}, ["chosen ends with a message of 'user'"]),
        (to_preferences, RANKING | {"responses": ["a"], "ranks": [1]}, ["responses ranks 1 response: ['a']"]),
        (to_preferences, RANKING | {"ranks": [1]}, ["ranks has 1 ranks for 2 responses: [1]"]),
        (to_preferences, RANKING | {"ranks": [0, 1]}, ["ranks holds 0: [0, 1]", "from 1, the best"]),
        (to_preferences, RANKING | {"ranks": [1, 1.5]}, ["ranks holds 1.5"]),
        (to_preferences, RANKING | {"ranks": [True, 2]}, ["ranks holds True"]),
        (to_preferences, RANKING | {"ranks": ["1", "2"]}, ["ranks holds '1'"]),
        (to_preferences, RANKING | {"responses": '["a", "b"'}, ["responses is a str"]),
        (to_preferences, RANKING | {"scores": [1, 2]}, ["ranks says the contrary of scores [1.0, 2.0]"]),
        (to_preferences, RANKING | {"responses": ["a", ""]}, ["responses[1] is empty: ''"]),
        (to_preferences, RANKING | {"responses": ["a", 2]}, ["responses[1] is a int: 2"]),
        (to_preferences, {"prompt": "Q", "ranks": [1, 2]}, ["no column responses"]),
        (to_prompts, {"question": "Q"}, ["no column prompt (or messages)", "question"]),
        (to_prompts, {"prompt": 7}, ["prompt is a int: 7"]),
        (to_prompts, {"prompt": float("nan")}, ["prompt is null"]),
        (to_prompts, {"prompt": "\n\nHuman: Q\n\nAssistant: a"}, ["ends with what an assistant says, ' a'", "stay in"]),
        (to_prompts, {"prompt": "<|im_start|>assistant\nSure<|im_end|>"}, ["ends with what an assistant says"]),
        (to_prompts, {"messages": [user("Q"), {"role": "Assistent", "content": "a"}]}, ["role that nobody here knows"]),
        (to_prompts, {"messages": [user("Q"), assistant("a"), assistant("b")]}, ["two messages of the assistant's"]),
        (to_prompts, {"messages": [user("Q")], "conversations": [user("R")]}, ["stands beside other conversations"]),
        (to_prompts, {"prompt": "a smile \ud83d"}, ["prompt holds half of a character (\\ud83d at 8)", "UTF-8"]),
        (to_prompts, {"messages": "Q"}, ["messages is a str: 'Q'"]),
        (to_prompts, {"messages": [assistant("A")]}, ["messages holds only the assistant's message"]),
        (to_prompts, {}, ["the other columns are none"]),
        (to_texts, {"prompt": "Q"}, ["no column text (or prompt and response, or messages)"]),
        (to_texts, {"text": " "}, ["text is empty"]),
        (to_texts, {"response": "A"}, ["no column prompt"]),
        (to_texts, {"prompt": "Q", "text": "A"}, ["stands beside a prompt: does it answer it, or is it whole?"]),
        (to_texts, {"prompt": "Q", "response": "A", "completion": "B"}, ["beside another completion"]),
        (to_texts, {"messages": [user("Q")]}, ["messages ends with a message of 'user'"]),
        (to_texts, {"messages": [user("Q"), assistant("")]}, ["messages[1].content is empty"]),
        (
            to_texts,
            {"messages": [user("Q"), assistant("A") | {"reasoning_content": "hm"}]},
            ["keeps reasoning_content beside its content"],
        ),
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


def test_all_bad_rows_are_told_at_once_with_their_number_and_reasons():
    rows = [Row(f"a.jsonl, row {i}", {"prompt": f"Q {i}", "chosen": "a", "rejected": "b"}) for i in range(1, 201)]
    for number, values in {
        18: {"rejected": ""},
        40: {"chosen": None},
        77: {"rejected": " "},
        100: {"prompt": 3},
    }.items():
        rows[number - 1].values.update(values)
    rows[120] = Row(
        "a.jsonl, row 121", {}, BadRow("a.jsonl, row 121: the line is not JSON; mend it", reason="not JSON")
    )
    with pytest.raises(DataError) as caught:
        to_preferences(rows)
    said = str(caught.value)
    assert said.startswith(
        "5 of 200 rows cannot be used (2: rejected is empty; 1: chosen is null; 1: not JSON; 1: prompt"
    )
    places = [f"a.jsonl, row {number}: " for number in (18, 40, 77, 100, 121)]
    assert [place in said for place in places] == [True] * 5
    assert said.endswith("or set data.on_bad_row: drop to leave such rows out")
    findings = Findings()
    found, _ = to_preferences(rows, findings)
    assert (len(found), findings.num_bad, findings.num_rows) == (195, 5, 200)


def test_the_number_of_every_row_that_was_left_out_is_kept_by_reason_and_file():
    rows = [Row(f"data/a.jsonl, row {i}", {"prompt": "Q", "chosen": "a", "rejected": "b"}) for i in range(1, 31)]
    for number in (3, *range(7, 20), 30):
        rows[number - 1].values["rejected"] = ""
    for number in (1, 2):
        rows[number - 1].values["rejected"] = "a"
    answers = [("x: y/b.csv, row 5", "good", True), ("x: y/b.csv, row 6", "bad", True)]
    rows += [Row(place, {"prompt": "R", "completion": text, "label": label}) for place, text, label in answers]
    findings = Findings()
    found, _ = to_preferences(rows, findings)
    assert len(found) == 30 - 15 - 2
    # Files by their names alone: where they lie is nobody's business.
    assert findings.as_dict()["row_numbers"] == {
        "rejected is empty": {"a.jsonl": "3, 7-19, 30"},
        "chosen equal to rejected": {"a.jsonl": "1-2"},
        "labelled answers to a prompt without one of the other label": {"b.csv": "5-6"},
    }


def test_what_is_told_of_many_bad_rows_stays_short():
    rows = [Row(f"a.jsonl, row {i}", {"prompt": "Q", "response": ""}) for i in range(1, 3001)]
    with pytest.raises(DataError) as caught:
        to_texts(rows)
    said = str(caught.value)
    assert said.startswith("3,000 of 3,000 rows cannot be used (3,000: response is empty)")
    assert "and 2,995 more" in said
    assert "drop" not in said  # nothing would be left
    assert len(said) < 800


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
