"""All mistakes of a configuration at once, and none that only follows from another."""

import pytest
from fake_runs import document

from flows.config import STAND_IN, RunConfig, every_mistake
from flows.config.reading import checked
from tasks.errors import ConfigError, Mistakes


def mistakes_of(tmp_path, **changes):
    return every_mistake(document(tmp_path, **changes))[0]


def test_a_sound_document_has_none_and_is_read_whole(tmp_path):
    sound = document(tmp_path)
    assert every_mistake(sound) == ([], RunConfig.model_validate(sound))


def test_mistakes_of_types_ranges_keys_and_of_parts_that_contradict_each_other_are_told_together(tmp_path):
    told = mistakes_of(
        tmp_path,
        rounds=0,
        iterations="3",
        model={"policy": 5, "lora": {"rank": -1}},
        reward_model={"epoch": 1},
        rollouts={"sampling": {"max_new_tokens": -3}, "shards": 99},
        ppo={"cliprange": 7, "epochs": 0, "num_minibatches": 100},
        execution={"device": "gpu"},
        advantages={"lam": 2},
    )
    fields = [sentence.replace(": ", "=", 1).partition("=")[0] for sentence in told]
    assert sorted(fields) == sorted(
        [
            "rounds",
            "iterations",
            "model.policy",
            "model.lora.rank",
            "reward_model.epoch",
            "rollouts.sampling",
            "rollouts.shards",
            "ppo",
            "ppo",
            "ppo.num_minibatches",
            "execution.device",
            "advantages.lam",
        ]
    )


@pytest.mark.parametrize(
    ("changes", "only"),
    [
        ({"model": {"policy": 5}}, "model.policy=5"),
        ({"model": {"polcy": "x"}}, "model.polcy: unknown key"),
        ({"reward_model": 5}, "reward_model=5"),
        ({"rewards": {"r": {"modl": "trained"}}}, "rewards.r.modl: unknown key"),
        ({"rollouts": {"sampling": {"max_new_token": 8}}}, "rollouts.sampling.max_new_token: unknown key"),
        ({"ppo": {"cliprange": [1]}}, "ppo.cliprange=[1]"),
    ],
)
def test_what_follows_from_a_mistake_is_not_told(tmp_path, changes, only):
    (told,) = mistakes_of(tmp_path, **changes)
    assert told.startswith(only)


def test_a_source_that_is_mistaken_does_not_hide_the_others(tmp_path):
    sound = document(tmp_path)
    prompts = [{"path": "a.jsonl", "limt": 3}, sound["data"]["prompts"][0], {"path": "b.jsonl", "dataset": "c"}]
    told, rest = every_mistake({**sound, "data": {**sound["data"], "prompts": prompts}})
    assert [sentence.partition(": ")[0] for sentence in told] == ["data.prompts.0.limt", "data.prompts.2"]
    assert [source.path for source in rest.data.prompts] == ["a.jsonl", prompts[1], STAND_IN]


def test_whatever_stands_in_a_file_an_end_is_found(tmp_path):
    for odd in ({}, {"model": None}, {"data": []}, {"rewards": {"a b": 3}}, {"rollouts": [1]}, {"nothing": {"x": 1}}):
        assert every_mistake(odd)[0]


def test_one_mistake_is_a_sentence_and_several_are_a_list(tmp_path):
    with pytest.raises(ConfigError, match=r"^here: seed=-1: input should be") as one:
        checked(document(tmp_path, seed=-1), where="here")
    assert not isinstance(one.value, Mistakes)
    with pytest.raises(Mistakes, match=r"^here: 2 mistakes: \(1\) seed=-1: .*; \(2\) rounds=0: ") as two:
        checked(document(tmp_path, seed=-1, rounds=0), where="here")
    assert len(two.value.mistakes) == 2
