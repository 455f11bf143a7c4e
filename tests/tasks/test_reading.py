"""Where responses end in stages, and how a reward model reads them: one rule, whoever's tokenizer it has."""

import json
import shutil

import pytest
import torch
from small_world import (
    SAMPLING,
    Workbench,
    a_model,
    an_update,
    external,
    generate,
    prepare_config,
    rows,
    score,
    train_reward_model,
    with_access,
    write_rows,
)

from ppo_core import SamplingConfig
from tasks.config.data import Source
from tasks.config.model_access import AdapterConfig
from tasks.config.rewards import ModelReward, TrainedReward
from tasks.config.training import TrainRewardModelConfig
from tasks.errors import ModelError
from tasks.models.scalar import load_scalar_model
from tasks.store.manifest import Place
from tasks.text.tokens import encode_dialogue, load_tokenizer

GEMMA = (
    "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% if loud is defined and loud %}!{% endif %}{% endif %}"
)
CHATS = [{"prompt": [{"role": "user", "content": f"where is lamp {i}?"}], "answer": i} for i in range(12)]
CHAT_PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"question {i}"}],
        "chosen": f"on the table {i}",
        "rejected": f"go away {i}",
    }
    for i in range(24)
]


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def a_chat_model(directory, *, seed=0):
    """A model whose template ends a turn with a token of its own, which is no EOS and which nothing declares."""
    a_model(directory, seed=seed)
    # In the places of two tokens that there are, since the embedding has no room for more.
    raw = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    for name, old in (("<turn>", 298), ("<end>", 299)):
        (token,) = (text for text, i in vocabulary.items() if i == old)
        del vocabulary[token]
        merges = raw["model"]["merges"]
        raw["model"]["merges"] = [m for m in merges if "".join(m if isinstance(m, list) else m.split()) != token]
        vocabulary[name] = old
        raw["added_tokens"].append({**raw["added_tokens"][0], "id": old, "content": name})
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    change_json(directory / "tokenizer_config.json", chat_template=GEMMA)
    assert load_tokenizer(str(directory)).convert_tokens_to_ids("<end>") == 299
    return external(directory)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A bench, a chat model, and its data prepared."""
    root = tmp_path_factory.mktemp("chat")
    base = a_chat_model(root / "model")
    bench = Workbench(root / "run")
    config = chat_config(root)
    return bench, base, bench.run("prepare_data", config, place=Place(1), base=base), root


def chat_config(root, **changes):
    sources = {
        "prompts": (Source(path=write_rows(root / "chats.jsonl", CHATS)),),
        "preferences": (Source(path=write_rows(root / "chat_pairs.jsonl", CHAT_PAIRS)),),
        "texts": (Source(path=write_rows(root / "chat_texts.jsonl", [
            {"prompt": row["prompt"], "response": row["chosen"]} for row in CHAT_PAIRS
        ])),),
    }  # fmt: skip
    return prepare_config(root, **sources).model_copy(update=with_access(changes))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    base = a_model(root / "model")
    bench = Workbench(root / "run")
    return bench, base, bench.run("prepare_data", prepare_config(root), place=Place(1), base=base), root


# What ends a response.


def test_a_response_ends_at_each_id_that_the_checkpoint_declares_and_so_it_stays(plain):
    bench, _, _, root = plain
    directory = root / "declares"
    a_model(directory)
    declared = list(range(10, 300, 3))
    change_json(directory / "generation_config.json", eos_token_id=declared, temperature=0.3)
    base = external(directory)
    data = bench.run("prepare_data", prepare_config(root), place=Place(1), base=base)
    for lora, start in [(None, base), (None, "update"), (AdapterConfig(rank=2), "update")]:
        policy = an_update(bench, base, data, lora=lora) if start == "update" else base
        if start == "update":
            kept = (policy.directory / "policy" / "generation_config.json").read_bytes()
            assert kept == (directory / "generation_config.json").read_bytes()
        (rollouts,) = generate(bench, policy, data, base if lora else None, samples_per_prompt=4)
        ends = {*declared, 2}
        for row in rows(rollouts):
            *before, last = row["response_token_ids"]
            assert not ends & {*before}
            assert row["finish_reason"] == ("stop" if last in ends else "length")
        assert any(row["response_token_ids"][-1] in declared for row in rows(rollouts))


def test_a_response_ends_with_the_template_s_turn_which_is_no_part_of_its_text(chat):
    bench, base, data, root = chat
    # It draws every token equally often, nearly.
    directory = root / "ends"
    shutil.copytree(base.directory, directory)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    model.lm_head = torch.nn.Linear(16, 300, bias=False)
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
    model.save_pretrained(directory)
    sampling = SamplingConfig(max_new_tokens=20)
    (rollouts,) = generate(bench, external(directory), data, samples_per_prompt=40, sampling=sampling)
    ended = [row for row in rows(rollouts) if row["response_token_ids"][-1] == 299]
    assert ended
    for row in rows(rollouts):
        assert 299 not in row["response_token_ids"][:-1]
        assert row["finish_reason"] == ("stop" if row["response_token_ids"][-1] in (2, 299) else "length")
        assert "<end>" not in row["response"]


def test_texts_and_the_reward_model_s_dialogues_end_with_the_template_s_turn(chat):
    bench, base, data, root = chat
    for row in rows(data, "texts"):
        assert row["token_ids"][-1] == 299
        assert row["token_ids"].count(299) == 2
        assert 2 not in row["token_ids"]
    plain_data = bench.run("prepare_data", prepare_config(root), place=Place(1), base=base)
    assert all(row["token_ids"][-1] == 2 and 299 not in row["token_ids"] for row in rows(plain_data, "texts"))


# How a reward is read.


def score_by_definition(directory, prompt, text, *, to_the_end=False):
    """The reward model at the last token of the dialogue that it would have been trained on."""
    model, tokenizer = load_scalar_model(directory, seed=0), load_tokenizer(str(directory))
    if isinstance(prompt, str):
        ids = [*encode_dialogue(tokenizer, prompt, text, complete=False)[0], tokenizer.eos_token_id]
    else:
        whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], tokenize=False)
        ids = tokenizer.encode(whole if to_the_end else whole.removesuffix("\n"), add_special_tokens=False)
    with torch.no_grad():
        return float(model(torch.tensor([ids]))[0, -1])


def test_a_finished_response_is_read_with_its_terminator_however_it_ended_and_a_cut_off_one_too(plain):
    bench, base, data, _ = plain
    reward_model = train_reward_model(bench, base, data, epochs=1)
    # Ends by EOS, by another id, by a stop string and by length.
    sampling = SamplingConfig(max_new_tokens=8, stop_token_ids=(1, *range(200, 240)))
    (rollouts,) = generate(bench, base, data, samples_per_prompt=12, sampling=sampling, stop_strings=("e", "a"))
    scored = score(bench, base, rollouts, {"r": TrainedReward(model="trained")}, reward_model=reward_model, critic=None)
    directory, tokenizer = reward_model.directory / "reward_model", load_tokenizer(base.path)
    seen = set()
    for row in rows(scored):
        *before, last = row["response_token_ids"]
        special = last in (0, 1, 2) and row["finish_reason"] == "stop"
        seen.add(("special" if special else "text") if row["finish_reason"] == "stop" else "length")
        text = tokenizer.decode(before if special else [*before, last], skip_special_tokens=False)
        assert row["score_r"] == pytest.approx(score_by_definition(directory, row["prompt"], text), abs=1e-4)
    assert seen >= {"text", "length"}


def test_a_reward_model_scores_alike_whether_its_tokenizer_counts_as_the_policy_s_or_as_another(plain):
    bench, base, data, root = plain
    reward_model = train_reward_model(bench, base, data, epochs=1)
    (rollouts,) = generate(bench, base, data, samples_per_prompt=4, stop_strings=("e",))
    other = root / "other_bytes"
    shutil.copytree(reward_model.directory / "reward_model", other)
    change_json(other / "tokenizer.json")
    rewards = {"ours": TrainedReward(model="trained"), "named": ModelReward(model=str(other))}
    scored = score(
        bench, base, rollouts, rewards, reward_model=reward_model, external={"named": external(other)}, critic=None
    )
    assert [row["score_ours"] for row in rows(scored)] == [row["score_named"] for row in rows(scored)]


def test_conversations_are_read_as_the_reward_model_was_trained_ours_to_the_turn_s_end_others_to_the_template_s(chat):
    bench, base, data, root = chat
    reward_model = train_reward_model(bench, base, data, epochs=1)
    theirs = root / "theirs"
    shutil.copytree(reward_model.directory / "reward_model", theirs)
    settings = json.loads((theirs / "config.json").read_text())
    del settings["score_mean"], settings["score_std"]
    (theirs / "config.json").write_text(json.dumps(settings))
    rewards = {"ours": TrainedReward(model="trained"), "theirs": ModelReward(model=str(theirs))}
    (rollouts,) = generate(bench, base, data, samples_per_prompt=30)
    # A special token inside of a response is part of what is read.
    assert any(298 in row["response_token_ids"] for row in rows(rollouts))
    scored = score(
        bench, base, rollouts, rewards, reward_model=reward_model, external={"theirs": external(theirs)}, critic=None
    )
    tokenizer = load_tokenizer(base.path)
    for row in rows(scored):
        ids = row["response_token_ids"]
        ids = ids[:-1] if row["finish_reason"] == "stop" else ids
        text, prompt = tokenizer.decode(ids, skip_special_tokens=False), json.loads(row["messages"])
        ours = score_by_definition(reward_model.directory / "reward_model", prompt, text)
        assert row["score_ours"] == pytest.approx(ours, abs=1e-4)
        assert row["score_theirs"] == pytest.approx(
            score_by_definition(theirs, prompt, text, to_the_end=True), abs=1e-4
        )


# Options of the template.


def test_options_reach_prompts_and_a_reward_model_without_a_base_of_its_own(chat):
    bench, base, _, root = chat
    options = {"loud": True}
    data = bench.run("prepare_data", chat_config(root, chat_template_kwargs=options), place=Place(1), base=base)
    assert all(row["prompt"].endswith("<turn>model\n!") for row in rows(data, "prompts"))
    own = train_reward_model(bench, base, data, epochs=1, chat_template_kwargs=options)
    assert json.loads((own.directory / "reward_model" / "chat_template_kwargs.json").read_text()) == options
    settings = {"epochs": 1, "calibration_samples": 8, "sampling": SAMPLING, "chat_template_kwargs": options}
    config = TrainRewardModelConfig(base=base.path, **with_access(settings))
    of_another = bench.run("train_reward_model", config, place=Place(1), base=base, reference=base, data=data)
    assert not (of_another.directory / "reward_model" / "chat_template_kwargs.json").exists()


def test_what_is_doubtful_is_told_when_data_is_prepared(chat):
    bench, _, _, root = chat
    directory = root / "doubtful"
    a_chat_model(directory)
    template = GEMMA.replace("{% if loud", "{{ strftime_now('%Y') }}{% if loud").replace("<turn>model\n{%", "{%")
    change_json(directory / "tokenizer_config.json", chat_template=template.replace("<turn>{{", "{{"))
    change_json(directory / "generation_config.json", eos_token_id=[2, 50])
    bench.events.clear()
    bench.run("prepare_data", chat_config(root), place=Place(1), base=external(directory))
    told = [event["warning"] for event in bench.events if "warning" in event]
    assert any("eos_token_id 50 is the ordinary token" in text for text in told)
    assert any("the date is always 2026-01-01" in text for text in told)
    change_json(directory / "tokenizer_config.json", chat_template=GEMMA.partition("{% if add_generation_prompt")[0])
    with pytest.raises(ModelError, match="a prompt would end before the answer's start"):
        bench.run("prepare_data", chat_config(root), place=Place(1), base=external(directory))
