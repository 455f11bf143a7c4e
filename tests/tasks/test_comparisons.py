"""Comparisons as data sets publish them: each becomes the pair that its own description says, or is refused."""

import pytest

from tasks.data.bad_rows import Findings, Row
from tasks.data.shapes.preferences import to_preferences
from tasks.errors import DataError

PLACE = "a.jsonl, row 1"
Q = {"role": "user", "content": "Q"}


def answer(text):
    return [Q, {"role": "assistant", "content": text}]


def one(values):
    (found,), dropped = to_preferences([Row(PLACE, values)])
    assert dropped == {}
    return found


def refusal(*rows) -> str:
    with pytest.raises(DataError) as caught:
        to_preferences([Row(PLACE, values) for values in rows])
    assert str(caught.value).startswith(f"{PLACE}: ")
    return str(caught.value)


PKU = {"prompt": "Q", "response_0": "good", "response_1": "bad", "is_response_0_safe": True}
HELPSTEER = {"context": [Q], "response1": "good", "response2": "bad", "domain": "general"}
SHP = {"history": "Q", "human_ref_A": "good", "human_ref_B": "bad", "score_A": 9, "score_B": 3}
ARENA = {"conversation_a": answer("good"), "conversation_b": answer("bad"), "model_a": "m-1", "model_b": "m-2"}
AB = {"prompt": "Q", "answer_a": "good", "answer_b": "bad"}


@pytest.mark.parametrize(
    ("values", "prompt"),
    [
        (PKU | {"better_response_id": 0, "safer_response_id": 0}, "Q"),
        (PKU | {"better_response_id": "0"}, "Q"),
        (HELPSTEER | {"overall_preference": -2}, [Q]),
        ({"prompt": "Q", "response_1": "good", "response_2": "bad", "preference_strength": -1}, "Q"),
        (SHP | {"labels": 1}, "Q"),
        (ARENA | {"winner": "model_a"}, [Q]),
        (ARENA | {"winner": "m-1"}, [Q]),
        (AB | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, "Q"),
        *((AB | {"winner": word}, "Q") for word in ("a", "A", "answer_a", "model_a", "assistant_a", "first")),
        (AB | {"preference": "A"}, "Q"),
        (AB | {"chosen": "answer_a"}, "Q"),
        ({"prompt": "Q", "response_1": "good", "response_2": "bad", "winner": 1}, "Q"),
        ({"prompt": "Q", "response1": "good", "response2": "bad", "winner": "response1"}, "Q"),
        ({"prompt": "Q", "completion_0": "good", "completion_1": "bad", "chosen": 0}, "Q"),
        # What the user calls the winner is, whatever else is noted.
        (PKU | {"winner": 0, "safer_response_id": 1}, "Q"),
        ({"prompt": [Q], "responses": ["good", "bad"], "scores": [0.5, -1]}, [Q]),
        ({"prompt": "Q", "responses": '["good", "bad"]', "scores": "[2, 1]"}, "Q"),
        (
            {
                "instruction": "Q",
                "completions": [{"response": "good", "overall_score": 8.5}, {"response": "bad", "overall_score": 8}],
            },
            "Q",
        ),
    ],
)
def test_the_better_answer_comes_first(values, prompt):
    found = one(values)
    assert (found.prompt, found.responses, found.ranks) == (prompt, ["good", "bad"], [1, 2])


@pytest.mark.parametrize(
    "values",
    [
        PKU | {"better_response_id": 1},
        HELPSTEER | {"overall_preference": 1},
        SHP | {"labels": 0},
        ARENA | {"winner": "model_b"},
        ARENA | {"winner": "m-2"},
        AB | {"winner": "B"},
        AB | {"winner_model_b": "1", "winner_model_a": "0"},
        {"prompt": "Q", "response_1": "good", "response_2": "bad", "winner": 2},
    ],
)
def test_the_second_answer_may_be_the_better_one(values):
    assert one(values).responses == ["bad", "good"]


def test_scores_rank_the_higher_before_the_lower_and_ties_share():
    found = one({"prompt": "Q", "responses": ["a", "b", "c", "d"], "scores": [1, 3.5, 3.5, "2"]})
    assert found.ranks == [4, 1, 1, 3]
    assert one({"prompt": "Q", "responses": ["a", "b"], "scores": [1, 2], "ranks": [2, 1]}).ranks == [2, 1]


def test_ties_are_left_out_and_counted():
    rows = [
        AB | {"winner": "a"},
        AB | {"winner": "tie"},
        AB | {"winner": "tie (bothbad)"},
        HELPSTEER | {"overall_preference": 0},
        {"prompt": "Q", "responses": ["a", "b"], "scores": [2, 2]},
    ]
    found, dropped = to_preferences([Row(PLACE, values) for values in rows])
    assert (len(found), dropped) == (1, {"all ranks tied": 4})


def test_arena_conversations_that_part_earlier_are_left_out():
    parted = [Q, {"role": "assistant", "content": "x"}, Q, {"role": "assistant", "content": "bad"}]
    other = [Q, {"role": "assistant", "content": "y"}, Q, {"role": "assistant", "content": "good"}]
    rows = [
        ARENA | {"winner": "model_a"},
        ARENA | {"conversation_a": other, "conversation_b": parted, "winner": "model_a"},
    ]
    found, dropped = to_preferences([Row(PLACE, values) for values in rows])
    assert (len(found), list(dropped.values())) == (1, [1])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (AB, ["answer_a stands beside answer_b, but nothing says which is better", "columns: {winner: ITS_NAME}"]),
        (AB | {"winner": 0}, ["winner is a number, counted from 0 or from 1"]),
        (AB | {"winner": "c"}, ["winner names neither answer_a nor answer_b: 'c'"]),
        (AB | {"winner": True}, ["winner names neither"]),
        (PKU | {"better_response_id": 2}, ["is neither 0 nor 1, by which response_0 and response_1 end"]),
        (
            PKU | {"better_response_id": 0, "safer_response_id": 1},
            ["better_response_id says response_0, but safer_response_id says response_1", "columns: {winner:"],
        ),
        (AB | {"response_0": "x", "response_1": "y", "winner": "a"}, ["holds two pairs of answers"]),
        (AB | {"winner": "a", "answer_b": ""}, ["answer_b is empty"]),
        (
            {"prompt": '["Q"]', "response_a": '["good"]', "response_b": '["bad"]', "winner_model_a": 1},
            ["prompt and its answers are lists as JSON text: turns of a conversation, or text?"],
        ),
        ({"answer_a": "x", "answer_b": "y", "winner": "a"}, ["no known opening", "add a column prompt"]),
        ({"prompt": "Q", "responses": ["a", "b"], "scores": [1]}, ["scores has 1 scores for 2 responses"]),
        ({"prompt": "Q", "responses": ["a", "b"], "scores": [1, None]}, ["scores holds what is no finite number"]),
        ({"prompt": "Q", "responses": ["a", "b"], "scores": [1, float("nan")]}, ["no finite number"]),
        ({"prompt": "Q", "responses": ["a", "b"]}, ["no column ranks (or scores, of which more is better)"]),
        ({"prompt": "Q", "completion": "a", "label": "good"}, ["label is neither true nor false: 'good'"]),
        ({"prompt": "Q", "completion": "a", "label": 0.5}, ["label is neither true nor false: 0.5"]),
    ],
)
def test_what_can_be_read_in_two_ways_or_not_at_all_is_refused(values, says):
    said = refusal(values)
    for part in says:
        assert part in said


def labelled(prompt, completion, label):
    return Row(f"a.jsonl, {completion}", {"prompt": prompt, "completion": completion, "label": label})


def test_labelled_answers_to_one_prompt_are_ranked_and_those_alone_are_counted():
    # As text of CSV, as booleans, as numbers.
    rows = [
        labelled("Q", "good", True),
        labelled("R", "fine", "true"),
        labelled("Q", "bad", False),
        labelled("Q", "also good", 1),
        labelled("S", "alone", "False"),
        labelled("R", "worse", 0),
        labelled("T", "both", True),
        labelled("T", "both", False),
    ]
    found, dropped = to_preferences(rows)
    assert [(p.prompt, p.responses, p.ranks, p.place) for p in found] == [
        ("Q", ["good", "also good", "bad"], [1, 1, 2], "a.jsonl, good"),
        ("R", ["fine", "worse"], [1, 2], "a.jsonl, fine"),
    ]
    assert dropped == {
        "labelled answers to a prompt without one of the other label": 1,
        "chosen equal to rejected": 2,
    }


def test_labelled_messages_and_labelled_texts_are_grouped_by_what_they_say():
    findings = Findings()
    completion = [{"role": "assistant", "content": "good"}]
    rows = [
        Row(PLACE, {"prompt": [Q], "completion": completion, "label": True}),
        Row(PLACE, {"prompt": '[{"from": "human", "value": "Q"}]', "completion": "bad", "label": False}),
    ]
    found, _ = to_preferences(rows, findings)
    assert [(p.prompt, p.responses, p.ranks) for p in found] == [([Q], ["good", "bad"], [1, 2])]
