"""Each stage alone, on models of a few thousand parameters: what it writes, and the laws that hold between stages."""

import datetime
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.utils.checkpoint
from small_world import (
    LENGTH,
    SAMPLING,
    Workbench,
    a_model,
    a_preference,
    a_prompt,
    advantages,
    an_update,
    external,
    generate,
    make_world,
    prepare_config,
    rows,
    score,
    train_reward_model,
    write_rows,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ppo_core import SamplingConfig
from tasks.config.data import Source
from tasks.config.evaluation import AuditRolloutsConfig, EvaluatePolicyConfig
from tasks.config.execution import ExecutionConfig
from tasks.config.rewards import FunctionReward, ModelReward, TrainedReward
from tasks.config.rollouts import GenerateRolloutsConfig
from tasks.config.training import WarmUpStageConfig
from tasks.config.update import OptimizersConfig
from tasks.errors import DataError, ModelError, RewardError
from tasks.models.scalar import load_scalar_model
from tasks.scoring.held_out_pairs import pack_groups
from tasks.store.manifest import Place


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


# prepare_data


def test_prompts_and_preferences_are_split_and_nothing_is_lost(world):
    _, _, data, _ = world
    train, held_out = rows(data, "prompts"), rows(data, "held_out_prompts")
    assert len(held_out) == 4
    texts = [row["prompt"] for row in train + held_out]
    assert sorted(texts) == sorted(a_prompt(i)["prompt"] for i in range(20))
    pairs, held_out_pairs = rows(data, "preferences"), rows(data, "held_out_preferences")
    assert (len(pairs), len(held_out_pairs)) == (36, 4)
    assert not {row["prompt"] for row in pairs} & {row["prompt"] for row in held_out_pairs}
    ranking = next(row for row in pairs if len(row["responses"]) == 4)
    assert ranking["ranks"] == [3, 1, 1, 3]
    assert json.loads(train[0]["extra"]).keys() == {"answer"}


def test_prompts_keep_their_ids_and_their_side_when_more_arrive(world, tmp_path):
    bench, base, data, _ = world
    more = bench.run("prepare_data", prepare_config(tmp_path, num_prompts=24), place=Place(2), base=base)
    before = {row["prompt"]: row["prompt_id"] for row in rows(data, "prompts") + rows(data, "held_out_prompts")}
    after = {row["prompt"]: row["prompt_id"] for row in rows(more, "prompts") + rows(more, "held_out_prompts")}
    assert before.items() <= after.items()
    hashes_lowest = {row["prompt"] for row in rows(more, "held_out_prompts")}
    assert {row["prompt"] for row in rows(data, "prompts")} & hashes_lowest == set()


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_held_out_stays_held_out_when_more_arrives(world, tmp_path, shared):
    bench, base, _, _ = world
    pairs = [
        {"prompt": "say:" if shared and i < 90 else f"say {i // 2}:", "chosen": f" yes {i}", "rejected": f" no {i}"}
        for i in range(160)
    ]

    def prepared(number, count, previous=None):
        path = write_rows(tmp_path / f"{count}.jsonl", pairs[:count])
        config = prepare_config(tmp_path, preferences=(Source(path=path),), num_prompts=20 + count // 8)
        return bench.run("prepare_data", config, place=Place(number), base=base, previous=previous)

    def contents(data, name):
        column = "prompt" if "prompts" in name else "responses"
        return {json.dumps(row[column]) for row in rows(data, name)}

    data, ever_held_out = None, {"preferences": set(), "prompts": set()}
    for number, count in enumerate((30, 80, 160), start=1):
        data = prepared(number, count, data)
        for kind, held_out in ever_held_out.items():
            held_out |= contents(data, f"held_out_{kind}")
            assert contents(data, f"held_out_{kind}") == held_out
            assert not contents(data, kind) & held_out
        assert count / 20 <= len(rows(data, "held_out_preferences")) <= count / 5


def test_preferences_that_share_one_prompt_are_held_out_by_content(world, tmp_path):
    bench, base, _, _ = world
    pairs = [{"prompt": "say:", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(20)]
    config = prepare_config(tmp_path, preferences=(Source(path=write_rows(tmp_path / "same.jsonl", pairs)),))
    data = bench.run("prepare_data", config, place=Place(1), base=base)
    assert len(rows(data, "held_out_preferences")) == 2
    assert len(rows(data, "preferences")) == 18


def test_a_preference_says_of_which_source_it_is_and_keeps_its_side_when_one_comes_before_it(world, tmp_path):
    bench, base, _, _ = world
    pairs = [{"prompt": "say:", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(40)]
    labels = [{"prompt": "do:", "completion": f" {word}", "label": word == "go"} for word in ("go", "no")]
    ours, theirs, new = (
        Source(path=write_rows(tmp_path / f"{name}.jsonl", rows))
        for name, rows in (("ours", pairs[:20]), ("theirs", [*pairs[19:], *labels]), ("new", labels))
    )

    def prepared(number, *sources, previous=None):
        config = prepare_config(tmp_path, preferences=sources)
        data = bench.run("prepare_data", config, place=Place(number), base=base, previous=previous)
        held_out = rows(data, "held_out_preferences")
        return data, {
            row["responses"][0]: (row["source"], row in held_out) for row in rows(data, "preferences") + held_out
        }

    data, before = prepared(1, ours, theirs)
    assert {text: source for text, (source, _) in before.items()} == {
        # The twentieth is in both.
        **{f" yes {i}": int(i > 19) for i in range(40)},
        " go": 1,
    }
    _, after = prepared(2, new, ours, theirs, previous=data)
    assert {text: source for text, (source, _) in after.items()} == {
        **{f" yes {i}": 1 + int(i > 19) for i in range(40)},
        " go": 0,
    }
    assert {text for text, (_, inside) in before.items() if inside} <= {t for t, (_, inside) in after.items() if inside}


def test_a_prompt_that_does_not_fit_is_refused_or_dropped(world, tmp_path):
    bench, base, _, _ = world
    prompts = [a_prompt(i) for i in range(8)] + [{"prompt": "lamp " * 80}]
    source = (Source(path=write_rows(tmp_path / "long.jsonl", prompts)),)
    with pytest.raises(
        DataError, match=r"long\.jsonl, row 9: a prompt of \d+ tokens .*context is 64; .*on_bad_row: drop"
    ):
        bench.run("prepare_data", prepare_config(tmp_path, prompts=source), place=Place(1), base=base)
    dropped = prepare_config(tmp_path, prompts=source, on_bad_row="drop")
    data = bench.run("prepare_data", dropped, place=Place(1), base=base)
    assert bench.metrics(data)["data/dropped"] == 1.0
    assert "left out 1 of 69 rows (1: too long for the model's context)" in warnings_of(bench)[-1]


def warnings_of(bench):
    return [event["warning"] for event in bench.events if "warning" in event]


def test_bad_rows_of_all_kinds_and_those_that_are_too_long_are_told_together_or_dropped_and_counted(world, tmp_path):
    bench, base, _, _ = world
    text = "".join(json.dumps(a_prompt(i)) + "\n" for i in range(8))
    (tmp_path / "p.jsonl").write_text(
        f'{text}{{"prompt":\n{{"prompt": "half \\ud83d"}}\n{{"prompt": "{"lamp " * 80}"}}\n'
    )
    pairs = [a_preference(i) for i in range(9)] + [{"prompt": "Q", "chosen": "a", "rejected": "a"}]
    pairs += [{"prompt": "Q", "chosen": "a", "rejected": ""}, {"chosen": "The lamp is a", "rejected": "The lamp is b"}]
    sources = {
        "prompts": (Source(path=str(tmp_path / "p.jsonl")),),
        "preferences": (Source(path=write_rows(tmp_path / "q.jsonl", pairs)),),
        "texts": (
            Source(path=write_rows(tmp_path / "t.jsonl", [{"text": "the lamp"}, {"text": None}, {"text": "x"}])),
        ),
    }
    with pytest.raises(DataError) as caught:
        bench.run("prepare_data", prepare_config(tmp_path, **sources), place=Place(1), base=base)
    said = str(caught.value)
    assert said.startswith("6 of 26 rows cannot be used (")
    for place in ("t.jsonl, row 2", "q.jsonl, row 11", "q.jsonl, row 12", "p.jsonl, row 9", "p.jsonl, row 10"):
        assert f"{place}: " in said
    assert " -- and 1 more; " in said
    assert "1: too long for the model's context" not in said.split("): ")[1]
    data = bench.run("prepare_data", prepare_config(tmp_path, **sources, on_bad_row="drop"), place=Place(1), base=base)
    metrics = bench.metrics(data)
    kept = {kind: metrics[f"data/{kind}"] + metrics[f"data/held_out_{kind}"] for kind in ("prompts", "preferences")}
    assert (kept, metrics["data/texts"], metrics["data/dropped"]) == ({"prompts": 8, "preferences": 9}, 2, 7)
    assert "left out 7 of 26 rows (" in warnings_of(bench)[-1]
    assert "1: text is null" in warnings_of(bench)[-1]


def test_how_transcripts_were_split_is_said(world, tmp_path):
    bench, base, _, _ = world
    start = "\n\nHuman: Q {}\n\nAssistant:"
    pairs = [
        {"chosen": f"{start.format(i)} the lamp is on", "rejected": f"{start.format(i)} the lamp is off"}
        for i in range(9)
    ]
    pairs.append({"chosen": "Q: Q\nA: yes", "rejected": "Q: Q\nA: no"})
    source = (Source(path=write_rows(tmp_path / "hh.jsonl", pairs)),)
    data = bench.run("prepare_data", prepare_config(tmp_path, preferences=source), place=Place(1), base=base)
    assert "10 pairs of transcripts were split" in warnings_of(bench)[-1]
    assert "(9: Assistant:; 1: Answer:)" in warnings_of(bench)[-1]
    split = [row for part in ("preferences", "held_out_preferences") for row in rows(data, part)]
    assert {row["prompt"] for row in split} == {start.format(i) for i in range(9)} | {"Q: Q\nA:"}


def test_what_is_prepared_depends_on_neither_time_zone_nor_the_order_of_hashes(tmp_path):
    """The other columns of a row hold a time with a zone; processes differ in zone, hash seed and locale."""
    times = [datetime.datetime(2024, 1, 31, hour, tzinfo=datetime.UTC) for hour in range(12)]
    table = pyarrow.table(
        {
            "prompt": [f"where is the red lamp {i}?" for i in range(12)],
            "at": pyarrow.array(times, pyarrow.timestamp("us", "Asia/Tokyo")),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    a_model(tmp_path / "model")
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/tasks']\n"
        "from pathlib import Path; from small_world import *\n"
        f"root = Path({str(tmp_path)!r}); (root / sys.argv[1]).mkdir()\n"
        "config = prepare_config(root / sys.argv[1], prompts=(Source(path=str(root / 'p.parquet')),))\n"
        "bench, base = Workbench(root / sys.argv[1] / 'run'), external(root / 'model')\n"
        "ref = bench.run('prepare_data', config, place=Place(1), base=base)\n"
        "print(ref.digest)"
    )
    digests = []
    for name, zone in {"a": "UTC", "b": "America/New_York"}.items():
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": str(ord(name)), "LC_ALL": "C"}
        command = [sys.executable, "-W", "ignore", "-c", code, name]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout)
    assert digests[0].strip()
    assert digests[0] == digests[1]


def test_a_model_from_scratch_is_the_same_for_the_same_seed(tmp_path):
    one, other = a_model(tmp_path / "one", seed=1), a_model(tmp_path / "other", seed=1)
    assert one.digest == other.digest
    assert a_model(tmp_path / "third", seed=2).digest != one.digest


# warm_up and train_reward_model


def test_warm_up_lowers_the_loss_and_keeps_the_tokenizer(world):
    bench, base, data, _ = world
    warm = bench.run("warm_up", WarmUpStageConfig(epochs=6, learning_rate=1e-2, batch_tokens=128), base=base, data=data)
    metrics = bench.metrics(warm)
    assert metrics["warm_up/loss"] < 0.7 * metrics["warm_up/first_loss"]
    assert (warm.directory / "policy/tokenizer.json").read_bytes() == (base.directory / "tokenizer.json").read_bytes()
    AutoModelForCausalLM.from_pretrained(warm.directory / "policy", use_safetensors=True)


@pytest.mark.parametrize("stage", ["warm_up", "train_reward_model"])
def test_activation_checkpointing_reaches_what_is_trained_before_ppo_and_changes_nothing(
    world, tmp_path, monkeypatch, stage
):
    _, base, data, _ = world

    def trained(name, **execution):
        bench = Workbench(tmp_path / name)
        bench.execution = ExecutionConfig(**{**bench.execution.model_dump(), **execution})
        if stage == "warm_up":
            return bench.run(stage, WarmUpStageConfig(batch_tokens=128), base=base, data=data)
        return train_reward_model(bench, base, data, epochs=1)

    layers = []

    def counted(forward, *args, **kwargs):
        layers.append(forward)
        return torch.utils.checkpoint.checkpoint(forward, *args, **kwargs)

    plain = trained("plain")
    monkeypatch.setattr("tasks.models.training.checkpoint", counted)
    again = trained("again", gradient_checkpointing=True)
    assert layers
    assert again.digest == plain.digest


def test_a_reward_model_learns_and_its_calibration_is_part_of_it(world):
    bench, base, data, _ = world
    ref = train_reward_model(bench, base, data)
    metrics = bench.metrics(ref)
    assert metrics["reward_model/accuracy"] == 1.0
    assert metrics["reward_model/mean_margin"] > 0
    directory = ref.directory / "reward_model"
    raw = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert (raw.config.num_labels, raw.config.score_std) == (1, pytest.approx(metrics["reward_model/score_std"]))
    ids = AutoTokenizer.from_pretrained(directory)("where is the lamp?")["input_ids"]
    ours = load_scalar_model(directory)(torch.tensor([ids]))[0, -1].item()
    theirs = raw(torch.tensor([ids])).logits.item()
    assert ours == pytest.approx((theirs - raw.config.score_mean) / raw.config.score_std, abs=1e-5)


def test_calibrated_scores_of_the_reference_have_mean_0_and_standard_deviation_1(world):
    bench, base, data, _ = world
    # As many samples as the rollouts of this test have, so that the law holds exactly for its own sample.
    ref = train_reward_model(bench, base, data, calibration_samples=512)
    (rollouts,) = generate(bench, base, data, prompts_per_iteration=16, samples_per_prompt=32)
    scored = score(bench, base, rollouts, {"trained": TrainedReward(model="trained")}, reward_model=ref)
    metrics = bench.metrics(scored)
    assert abs(metrics["score/mean"]) < 0.2
    assert metrics["score/std"] == pytest.approx(1.0, abs=0.2)


def test_groups_are_packed_whole_and_within_the_budget():
    groups = [[[0] * n for n in lengths] for lengths in ([3, 5], [9, 2, 2], [4, 4], [1, 1], [30, 1])]
    packed = pack_groups(groups, 24)
    assert sorted(i for part in packed for i in part) == [0, 1, 2, 3, 4]
    for part in packed:
        chosen = [row for i in part for row in groups[i]]
        assert len(part) == 1 or len(chosen) * max(map(len, chosen)) <= 24


# generate_rollouts


def test_rollouts_do_not_depend_on_shards_or_micro_batches(world, tmp_path):
    bench, base, data, _ = world
    (whole,) = generate(bench, base, data)
    shards = generate(bench, base, data, shards=3)
    small = Workbench(tmp_path / "small", micro_batch_tokens=1)
    (one_by_one,) = generate(small, base, data)

    def content(refs):
        keys = ("prompt_id", "sample_index", "response_token_ids", "finish_reason")
        return [[row[key] for key in keys] for ref in refs for row in rows(ref)]

    assert content([whole]) == content(shards) == content([one_by_one])


def test_stored_logprobs_are_those_of_the_policy_at_the_sampling_temperature(world):
    bench, base, data, _ = world
    (ref,) = generate(bench, base, data, sampling=SamplingConfig(max_new_tokens=6, temperature=0.7, top_k=5))
    model = AutoModelForCausalLM.from_pretrained(base.path).eval()
    for row in rows(ref):
        ids = row["prompt_token_ids"] + row["response_token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(row["prompt_token_ids"]) - 1 : -1]
        # Of the full tempered distribution, though only five tokens could be drawn.
        expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(row["response_token_ids"])[:, None])[:, 0]
        assert row["logprobs"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_responses_end_at_eos_or_at_the_limit_and_say_which(world):
    bench, base, data, _ = world
    (ref,) = generate(bench, base, data, prompts_per_iteration=16, samples_per_prompt=8)
    reasons = set()
    for row in rows(ref):
        ids, eos = row["response_token_ids"], 2
        assert eos not in ids[:-1]
        assert row["finish_reason"] == ("stop" if ids[-1] == eos else "length")
        assert len(ids) == 10 or ids[-1] == eos
        reasons.add(row["finish_reason"])
    assert reasons == {"stop", "length"}


def test_a_stop_string_ends_a_response(world):
    bench, base, data, _ = world
    (free,) = generate(bench, base, data)
    letter = rows(free)[0]["response"][3]
    (stopped,) = generate(bench, base, data, stop_strings=(letter,))
    for row, before in zip(rows(stopped), rows(free), strict=True):
        cut = row["response_token_ids"]
        assert cut == before["response_token_ids"][: len(cut)]
        if letter in before["response"]:
            assert row["finish_reason"] == "stop"
            assert letter in row["response"]
            assert len(cut) <= len(before["response_token_ids"])


def test_each_iteration_goes_on_through_the_prompts_and_uses_all_before_any_twice(world):
    bench, base, data, _ = world
    config = GenerateRolloutsConfig(prompts_per_iteration=4, sampling=SAMPLING)
    seen = []
    for iteration in range(1, 5):
        ref = bench.run("generate_rollouts", config, place=Place(1, iteration, 0), policy=base, data=data)
        seen += [row["prompt_id"] for row in rows(ref)]
    assert sorted(seen) == sorted(row["prompt_id"] for row in rows(data, "prompts"))


def test_each_pass_over_the_prompts_has_an_order_of_its_own(world):
    bench, base, data, _ = world
    config = GenerateRolloutsConfig(prompts_per_iteration=16, sampling=SAMPLING)
    places = [Place(1, 1, 0), Place(1, 2, 0), Place(2, 1, 0)]
    orders = [
        [row["prompt_id"] for row in rows(bench.run("generate_rollouts", config, place=place, policy=base, data=data))]
        for place in places
    ]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_a_response_that_does_not_fit_the_context_is_refused(world):
    bench, base, data, _ = world
    with pytest.raises(
        ModelError, match=r"more than the model's context of 64; lower rollouts\.sampling\.max_new_tokens"
    ):
        generate(bench, base, data, sampling=SamplingConfig(max_new_tokens=60))


# score_rollouts


def test_the_score_is_the_weighted_sum_of_named_components(world):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    rewards = {
        "length": FunctionReward(function="small_world:length_reward", weight=0.5),
        "answer": FunctionReward(function="small_world:answer_reward", weight=-2.0),
    }
    for row in rows(score(bench, base, rollouts, rewards)):
        assert row["score_length"] == len(row["response"])
        assert row["score_answer"] == json.loads(row["extra"])["answer"]
        assert row["score"] == pytest.approx(0.5 * row["score_length"] - 2.0 * row["score_answer"])


def test_the_reference_of_the_policy_itself_gives_its_own_logprobs(world):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    for row in rows(score(bench, base, rollouts, LENGTH)):
        assert row["ref_logprobs"] == pytest.approx(row["logprobs"], abs=1e-5)
        assert len(row["values"]) == len(row["response_token_ids"])


def test_values_are_the_critic_at_the_positions_that_predict_the_tokens(world):
    bench, base, data, _ = world
    reward_model = train_reward_model(bench, base, data)
    (rollouts,) = generate(bench, base, data)
    scored = score(bench, base, rollouts, LENGTH, critic=reward_model)
    critic = load_scalar_model(reward_model.directory / "reward_model")
    for row in rows(scored):
        ids = row["prompt_token_ids"] + row["response_token_ids"]
        with torch.no_grad():
            everywhere = critic(torch.tensor([ids]))[0]
        start = len(row["prompt_token_ids"]) - 1
        assert row["values"] == pytest.approx(everywhere[start:-1].tolist(), abs=1e-5)


def test_a_reward_model_with_another_tokenizer_reads_the_text(world, tmp_path):
    bench, base, data, _ = world
    reward_model = train_reward_model(bench, base, data)
    (rollouts,) = generate(bench, base, data)
    other = tmp_path / "other"
    other.mkdir()
    for file in (reward_model.directory / "reward_model").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    # Another tokenizer as far as its file says, though with the same ids: the way through the text must agree.
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    rewards = {"own": TrainedReward(model="trained"), "other": ModelReward(model="somewhere")}
    scored = score(bench, base, rollouts, rewards, reward_model=reward_model, external={"other": external(other)})
    agreeing = [row for row in rows(scored) if "\ufffd" not in row["response"] and row["finish_reason"] == "stop"]
    for row in agreeing:
        assert row["score_other"] == pytest.approx(row["score_own"], abs=1e-3) or retokenised(row, base)


def retokenised(row, base):
    """Whether sampled tokens are not those that the tokenizer makes of their text: then scores may differ."""
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    return tokenizer(row["response"], add_special_tokens=False)["input_ids"] != row["response_token_ids"][:-1]


def raising(prompts, responses, rows):
    raise KeyError("answer")


def too_few(prompts, responses, rows):
    return [0.0]


def not_a_number(prompts, responses, rows):
    return [math.nan for _ in responses]


def no_numbers(prompts, responses, rows):
    return "good"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "raising",
            r"rewards\.bad: test_stages:raising raised KeyError: 'answer' \(.*test_stages\.py, line \d+\); mend it",
        ),
        ("too_few", r"returned 1 scores for 6 responses; return one per response"),
        ("not_a_number", r"returned nan for rollout r1\.i1\.s0\..*; mend it so that it returns a finite score"),
        ("no_numbers", r"returned 'good', not a list of numbers"),
    ],
)
def test_a_reward_function_that_misbehaves_is_named_and_nothing_is_stored(world, function, message):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    before = len(list(bench.store.manifests()))
    with pytest.raises(RewardError, match=message):
        score(bench, base, rollouts, {"bad": FunctionReward(function=f"test_stages:{function}")})
    assert len(list(bench.store.manifests())) == before


def test_a_held_out_reward_is_named_by_its_own_field(world):
    bench, base, data, _ = world
    bad = {"bad": FunctionReward(function="test_stages:raising")}
    config = EvaluatePolicyConfig(samples_per_prompt=1, rewards=LENGTH, held_out_rewards=bad, sampling=SAMPLING)
    inputs = {"policy": base, "reference": base, "reward_model": None, "external": {}, "data": data}
    with pytest.raises(RewardError, match=r"^evaluation\.held_out_rewards\.bad: test_stages:raising raised"):
        bench.run("evaluate_policy", config, place=Place(1), **inputs)
    config = config.model_copy(update={"rewards": bad, "held_out_rewards": LENGTH})
    with pytest.raises(RewardError, match=r"^rewards\.bad: test_stages:raising raised"):
        bench.run("evaluate_policy", config, place=Place(1), **inputs)
    scored = score(bench, base, generate(bench, base, data)[0], LENGTH)
    audit = {"policy": base, "scored": [scored], "external": {}, "baseline": None}
    with pytest.raises(RewardError, match=r"^evaluation\.held_out_rewards\.bad: test_stages:raising raised"):
        bench.run("audit_rollouts", AuditRolloutsConfig(held_out_rewards=bad), **audit)


def a_judge(directory, base, *, seed):
    """A reward model that nobody trained, with the tokenizer of the base."""
    shutil.copytree(base.path, directory)
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=1).save_pretrained(directory)
    return external(directory)


def test_models_of_others_pair_with_rewards_by_name_in_whatever_order_they_are_written(world, tmp_path):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    judges = {name: a_judge(tmp_path / name, base, seed=seed) for seed, name in enumerate(("calm", "zeal"))}
    alone = {}
    for name, judge in judges.items():
        scored = score(bench, base, rollouts, {name: ModelReward(model=name)}, external={name: judge})
        alone[f"score_{name}"] = [row[f"score_{name}"] for row in rows(scored)]
    assert alone["score_calm"] != pytest.approx(alone["score_zeal"], abs=1e-3)
    digests = set()
    for names in (("calm", "zeal"), ("zeal", "calm")):
        rewards = {name: ModelReward(model=name) for name in names}
        for given in (names, reversed(names)):
            scored = score(bench, base, rollouts, rewards, external={name: judges[name] for name in given})
            digests.add(scored.digest)
            assert {column: [row[column] for row in rows(scored)] for column in alone} == alone
    assert len(digests) == 1


def test_a_model_without_a_trained_head_is_no_reward_model(world):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    with pytest.raises(ModelError, match="is a LlamaForCausalLM, not a sequence classifier"):
        score(bench, base, rollouts, {"other": ModelReward(model="somewhere")}, external={"other": base})


# compute_advantages


def test_advantages_equal_their_definition_row_by_row(world, tmp_path):
    bench, base, data, _ = world
    # Another model, or the KL would be 0 and its penalty could have any sign.
    reference = a_model(tmp_path / "reference", seed=5)
    scored = [score(bench, base, shard, LENGTH, reference=reference) for shard in generate(bench, base, data, shards=2)]
    beta, gamma, lam = 0.3, 0.9, 0.8
    ref = advantages(bench, scored, base, kl_coef=beta, gamma=gamma, lam=lam, whiten=False)
    assert [row["rollout_id"] for row in rows(ref)] == [row["rollout_id"] for s in scored for row in rows(s)]
    for row in rows(ref):
        kl = [p - q for p, q in zip(row["logprobs"], row["ref_logprobs"], strict=True)]
        assert max(map(abs, kl)) > 0.01
        rewards = [-beta * x for x in kl]
        rewards[-1] += row["score"]
        values = [*row["values"], 0.0]
        delta = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
        expected = [sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(delta))]
        assert row["kl"] == pytest.approx(kl, abs=1e-5)
        assert row["rewards"] == pytest.approx(rewards, abs=1e-4)
        assert row["advantages"] == pytest.approx(expected, abs=1e-3)
        # The critic has a lambda of its own, which is 1.
        received = [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
        assert row["returns"] == pytest.approx(received, abs=1e-3)


def test_whitened_advantages_have_mean_0_and_standard_deviation_1_over_all_shards(world):
    bench, base, data, _ = world
    scored = [score(bench, base, shard, LENGTH) for shard in generate(bench, base, data, shards=2)]
    ref = advantages(bench, scored, base)
    values = torch.tensor([a for row in rows(ref) for a in row["advantages"]])
    assert values.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert values.std().item() == pytest.approx(1.0, abs=1e-4)


# update_policy


def test_the_first_ratio_of_an_update_is_one(world):
    bench, base, data, _ = world
    metrics = bench.metrics(an_update(bench, base, data))
    assert metrics["update/first_minibatch_ratio_deviation"] < 1e-5
    assert metrics["update/num_optimizer_steps"] == 4


def test_a_checkpoint_holds_policy_critic_and_both_optimizers(world):
    bench, base, data, _ = world
    checkpoint = an_update(bench, base, data)
    names = {str(path.relative_to(checkpoint.directory)) for path in checkpoint.directory.rglob("*.safetensors")}
    assert (checkpoint.directory / "loop_state.json").exists()
    assert names == {
        "policy/model.safetensors",
        "critic/model.safetensors",
        "policy_optimizer.safetensors",
        "critic_optimizer.safetensors",
    }
    trained = AutoModelForCausalLM.from_pretrained(checkpoint.directory / "policy")
    start = AutoModelForCausalLM.from_pretrained(base.path)
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), start.parameters(), strict=True))


def test_models_in_memory_and_models_from_disk_give_the_same_bytes(world, tmp_path):
    _, base, _, config = world
    digests = []
    for forgets in (False, True):
        bench = Workbench(tmp_path / str(forgets))
        data = bench.run("prepare_data", config, place=Place(1), base=base)
        first = an_update(bench, base, data)
        if forgets:
            bench.models.clear()
        digests.append((first.digest, an_update(bench, base, data, start=first, iteration=2).digest))
    assert digests[0] == digests[1]


def test_the_second_update_goes_on_with_the_moments_of_the_first(world):
    bench, base, data, _ = world
    from safetensors.torch import load_file

    first = an_update(bench, base, data)
    second = an_update(bench, base, data, start=first, iteration=2)
    steps = [load_file(ref.directory / "policy_optimizer.safetensors")["0.step"].item() for ref in (first, second)]
    assert steps == [4.0, 8.0]


def test_moments_are_held_while_their_model_is_trained_and_no_longer(world, monkeypatch):
    from tasks.models.checkpoint import NextCheckpoint

    bench, base, data, _ = world
    held, on_trained = [], NextCheckpoint.on_trained

    def recorded(checkpoint, name):
        optimizers = {"policy": checkpoint.optimizers.policy, "critic": checkpoint.optimizers.critic}
        before = {part for part, optimizer in optimizers.items() if optimizer.state}
        on_trained(checkpoint, name)
        held.append((name, before, {part for part, optimizer in optimizers.items() if optimizer.state}))

    monkeypatch.setattr(NextCheckpoint, "on_trained", recorded)
    an_update(bench, base, data, weight_decay=0.5)
    assert held == [("policy", {"policy"}, set()), ("critic", {"critic"}, set())]


def test_policy_and_critic_learn_at_their_own_rates(world):
    bench, base, data, _ = world

    def weights(part, **rates):
        return (an_update(bench, base, data, **rates).directory / part / "model.safetensors").read_bytes()

    assert weights("policy", critic_learning_rate=1e-5) == weights("policy")
    assert weights("critic", critic_learning_rate=1e-5) != weights("critic")
    assert weights("policy", learning_rate=1e-5) != weights("policy")
    assert weights("critic", learning_rate=1e-5) == weights("critic")


def test_every_model_family_goes_through_a_whole_iteration(tmp_path):
    base = a_model(tmp_path / "gpt2", family="gpt2")
    bench = Workbench(tmp_path / "run")
    data = bench.run("prepare_data", prepare_config(tmp_path), place=Place(1), base=base)
    assert bench.metrics(an_update(bench, base, data))["update/first_minibatch_ratio_deviation"] < 1e-5


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("constant", [0.5, 1.0, 1.0, 1.0]), ("linear", [0.5, 1.0, 0.55, 0.1]), ("cosine", [0.5, 1.0, 0.55, 0.1])],
)
def test_learning_rates_rise_and_fall_within_a_round(decay, expected):
    optimizers = OptimizersConfig(warmup_iterations=1, decay=decay)
    assert [optimizers.factor(i, 4) for i in (1, 2, 3, 4)] == pytest.approx(expected)


# evaluate_policy


def test_a_policy_that_is_the_reference_gains_nothing(world):
    bench, base, data, _ = world
    config = EvaluatePolicyConfig(
        samples_per_prompt=2,
        rewards=LENGTH,
        held_out_rewards={"answer": FunctionReward(function="small_world:answer_reward")},
        sampling=SAMPLING,
    )
    ref = bench.run(
        "evaluate_policy",
        config,
        place=Place(1),
        policy=base,
        reference=base,
        reward_model=None,
        external={},
        data=data,
    )
    metrics = bench.metrics(ref)
    assert metrics["evaluation/kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["evaluation/length_gain"] == 0.0
    assert metrics["evaluation/answer"] == metrics["evaluation/reference_answer"]
    table = rows(ref, "evaluation")
    assert [row["sampled_by"] for row in table] == ["policy"] * 8 + ["reference"] * 8
    # What is only measured is no part of the score.
    assert all(row["score"] == row["score_length"] for row in table)


def test_the_kl_of_an_evaluation_is_that_of_the_policy_from_the_reference(world, tmp_path):
    bench, base, data, _ = world
    other = a_model(tmp_path / "other", seed=5)
    config = EvaluatePolicyConfig(samples_per_prompt=2, rewards=LENGTH, held_out_rewards={}, sampling=SAMPLING)
    inputs = {"policy": other, "reference": base, "reward_model": None, "external": {}, "data": data}
    ref = bench.run("evaluate_policy", config, place=Place(1), **inputs)
    models = [AutoModelForCausalLM.from_pretrained(model.path).eval() for model in (other, base)]
    kl = []
    for row in rows(ref, "evaluation"):
        if row["sampled_by"] == "policy":
            ids = torch.tensor([row["prompt_token_ids"] + row["response_token_ids"]])
            start = len(row["prompt_token_ids"])
            with torch.no_grad():
                own, theirs = (
                    model(ids).logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None]).sum()
                    for model in models
                )
            kl.append((own - theirs).item())
    expected = sum(kl) / len(kl)
    assert abs(expected) > 1e-3
    assert bench.metrics(ref)["evaluation/kl"] == pytest.approx(expected, abs=1e-4)
