"""What reward functions of a user are called with, and what they may return."""

import asyncio
import functools
import json
import math

import numpy as np
import pytest
import torch
from small_world import a_model

from tasks.config.model_access import ModelAccess
from tasks.data.functions import reward_function
from tasks.errors import ConfigError, RewardError, TransientError
from tasks.models.access import Models
from tasks.scoring.functions import function_scores
from tasks.store.manifest import Ref
from tasks.store.schemas import ROLLOUTS, table_of
from tasks.text.tokens import load_tokenizer

SEEN = []
RETURNED = []
THINK = ["<think>", "</think>"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A directory whose tokenizer has tags as special tokens."""
    directory = a_model(tmp_path_factory.mktemp("policy")).directory
    tokenizer = load_tokenizer(str(directory))
    tokenizer.add_special_tokens({"additional_special_tokens": THINK})
    tokenizer.save_pretrained(str(directory))
    return directory


def rollouts(policy, texts, extra=None):
    """Rows as the policy left them: the text without special tokens, the ids with them and an EOS."""
    tokenizer = load_tokenizer(str(policy))
    table = []
    for number, text in enumerate(texts):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        own = {"answer": number} if extra is None else extra
        row = {
            "rollout_id": f"r1.i1.s0.p{number}.0",
            "prompt_id": f"p{number}",
            "prompt": f"prompt {number}",
            "messages": "",
            "prompt_token_ids": [1],
            "extra": json.dumps(own),
            "sample_index": 0,
            "policy_version": "v",
            "response": plain,
            "response_token_ids": ids,
            "finish_reason": "stop",
            "logprobs": [0.0] * len(ids),
        }
        table.append(tuple(row[name] for name in ROLLOUTS.names))
    return table_of(table, ROLLOUTS)


TEXTS = ["<think>the lamp</think> on the table", "the lamp is red", "<think> thank you"]


def scores(policy, name, texts=TEXTS, **more):
    table, models = rollouts(policy, texts, **more), Models(None, ModelAccess())
    return function_scores(models, "rewards.format", f"test_reward_functions:{name}", table, Ref(str(policy), "policy"))


# What a function sees


def plain(prompts, responses, rows):
    SEEN[:] = [prompts, responses, rows]
    return [float("<think>" in response) for response in responses]


def tagged(prompts, responses, rows, responses_with_special_tokens):
    SEEN[:] = responses_with_special_tokens
    return [float(text.startswith("<think>") and "</think>" in text) for text in responses_with_special_tokens]


def by_ids(prompts, responses, rows, *, response_token_ids):
    SEEN[:] = response_token_ids
    return [len(ids) for ids in response_token_ids]


def test_a_format_of_special_tokens_is_seen_by_a_function_that_asks_for_them(policy):
    assert scores(policy, "tagged") == [1.0, 0.0, 0.0]
    assert [f"{text}</s>" for text in TEXTS] == SEEN
    # One that does not ask sees the text alone.
    assert scores(policy, "plain") == [0.0, 0.0, 0.0]
    assert SEEN[1] == ["the lamp on the table", "the lamp is red", " thank you"]


def test_token_ids_are_those_of_the_rollout(policy):
    expected = rollouts(policy, TEXTS).column("response_token_ids").to_pylist()
    assert scores(policy, "by_ids") == [len(ids) for ids in expected]
    assert expected == SEEN


def wrapped(function):
    @functools.wraps(function)
    def around(*args, **kwargs):
        return function(*args, **kwargs)

    return around


decorated = wrapped(tagged)
partly = functools.partial(tagged)


class Callable_:
    def __call__(self, prompts, responses, rows, responses_with_special_tokens=None):
        return tagged(prompts, responses, rows, responses_with_special_tokens)


an_object = Callable_()


@pytest.mark.parametrize("name", ["decorated", "partly", "an_object"])
def test_whatever_can_be_called_can_ask(policy, name):
    assert scores(policy, name) == [1.0, 0.0, 0.0]


def catch_all(*args, **kwargs):
    SEEN[:] = [len(args), kwargs]
    return [0.0] * len(args[1])


def test_only_what_is_named_is_given(policy):
    scores(policy, "catch_all")
    assert SEEN == [3, {}]


def test_a_column_of_the_users_is_not_overwritten_by_one_of_ours(policy):
    theirs = {"response": "their reference", "finish_reason": "theirs", "answer": 3}
    scores(policy, "plain", texts=TEXTS[:1], extra=theirs)
    (row,) = SEEN[2]
    assert {name: row[name] for name in theirs} == theirs
    assert row["rollout_id"] == "r1.i1.s0.p0.0"
    assert row["prompt"] == "prompt 0"
    assert SEEN[1] == ["the lamp on the table"]


# What a function cannot be called with


def too_few(prompts, responses):
    return []


def unknown(prompts, responses, rows, tokenizer):
    return []


@pytest.mark.parametrize(("name", "what"), [("too_few", "too many positional"), ("unknown", "'tokenizer'")])
def test_a_function_that_cannot_be_called_is_told_before_there_are_responses(name, what):
    with pytest.raises(ConfigError) as caught:
        reward_function(f"test_reward_functions:{name}", field="rewards.r.function")
    message = str(caught.value)
    assert message.startswith(f"rewards.r.function: test_reward_functions:{name}(prompts, responses")
    assert what in message
    assert "can ask for response_token_ids and responses_with_special_tokens" in message


# What a function may return


async def one(response):
    await asyncio.sleep(0)
    return float(len(response))


async def asynchronous(prompts, responses, rows):
    return await asyncio.gather(*(one(response) for response in responses))


def inside(prompts, responses, rows):
    return asyncio.run(asynchronous(prompts, responses, rows))


async def asynchronous_and_down(prompts, responses, rows):
    raise TimeoutError("the service is slow")


async def asynchronous_and_wrong(prompts, responses, rows):
    return [None for _ in responses]


def test_an_async_function_is_awaited_like_one_that_runs_its_own_loop(policy):
    expected = [float(len(text)) for text in ("the lamp on the table", "the lamp is red", " thank you")]
    assert scores(policy, "asynchronous") == expected
    assert scores(policy, "inside") == expected


def test_an_async_function_fails_as_any_other(policy):
    with pytest.raises(TransientError, match="raised TimeoutError: the service is slow"):
        scores(policy, "asynchronous_and_down")
    with pytest.raises(RewardError, match="returned None for rollout"):
        scores(policy, "asynchronous_and_wrong")


def returns(prompts, responses, rows):
    (value,) = RETURNED
    return value


def returned(policy, value):
    RETURNED[:] = [value]
    return scores(policy, "returns")


@pytest.mark.parametrize(
    "value",
    [
        [1, 0.5, True],
        (1.0, 0.5, 1.0),
        np.array([1.0, 0.5, 1.0]),
        torch.tensor([1.0, 0.5, 1.0]),
        [np.float32(1), torch.tensor(0.5), torch.tensor([1.0])],
        iter([1.0, 0.5, 1.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_are_taken_in_any_sequence(policy, value):
    result = returned(policy, value)
    assert result == [1.0, 0.5, 1.0]
    assert {type(score) for score in result} == {float}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            [1.0, None, None],
            r"returned None for rollout r1\.i1\.s0\.p1\.0 \('the lamp is red'\) and 1 more; .*or 0 where",
        ),
        (
            [1.0, 1.0, math.nan],
            r"returned nan for rollout r1\.i1\.s0\.p2\.0 .*; mend it so that it returns a finite score",
        ),
        ([math.inf, 1.0, 1.0], r"returned inf for rollout r1\.i1\.s0\.p0\.0"),
        ([1.0, "0.5", 1.0], r"returned '0\.5' for rollout r1\.i1\.s0\.p1\.0"),
        ([1.0, [0.5, 0.1], 1.0], r"returned \[0\.5, 0\.1\] for rollout r1\.i1\.s0\.p1\.0"),
        (torch.zeros(3, 2), r"returned tensor\(\[0\., 0\.\]\) for rollout r1\.i1\.s0\.p0\.0"),
        ([1.0, 1.0], r"returned 2 scores for 3 responses; return one per response"),
        ("123", r"returned '123', not a list of numbers; return one float per response"),
        ({1: 0.0, 2: 0.0, 3: 0.0}, r"returned \{1: 0\.0, .*, not a list of numbers"),
        ({1.0, 2.0, 3.0}, r"returned \{1\.0, .*, not a list of numbers"),
        (None, r"returned None, not a list of numbers"),
        (0.5, r"returned 0\.5, not a list of numbers"),
        (torch.tensor(0.5), r"returned tensor\(0\.5000\), which is no list"),
    ],
    ids=repr,
)
def test_anything_else_is_told_with_its_rollout(policy, value, told):
    with pytest.raises(RewardError, match=told) as caught:
        returned(policy, value)
    assert str(caught.value).startswith("rewards.format: test_reward_functions:returns returned")
