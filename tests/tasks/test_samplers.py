"""Engines other than the builtin one: what they are asked, what becomes of their answers, and what is refused."""

import importlib
import json
import math
import shutil
import socket
import sys
import types
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from small_world import LENGTH, SAMPLING, Workbench, a_model, advantages, an_update, generate, make_world, rows, score
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from vllm_stand_in import head_in, serving

from ppo_core import Ragged, RolloutBatch, derive_seed
from tasks import environment
from tasks.config.engines import ENGINES, Engine, SamplingEngine, require_available
from tasks.config.evaluation import EvaluatePolicyConfig
from tasks.config.execution import ExecutionConfig, HealthConfig
from tasks.config.model_access import ModelAccess
from tasks.config.rollouts import GenerateRolloutsConfig
from tasks.contract.call import StageCall
from tasks.contract.failures import classify
from tasks.contract.resident import ResidentModels
from tasks.contract.stage import StageContext
from tasks.errors import ConfigError, ServerError, TransientError, UnhealthyError
from tasks.models.access import Models
from tasks.models.loading import load_policy
from tasks.models.parts import POLICY
from tasks.sampling.engines import policy_files, vllm_push, vllm_server
from tasks.sampling.engines.agreement import require_same_policy
from tasks.sampling.engines.builtin import open_builtin
from tasks.sampling.engines.policy_files import INDEX_FILE, TIED_FILE, PolicyFiles, tied_weights
from tasks.sampling.engines.vllm_in_process import vllm_in_process
from tasks.sampling.engines.vllm_push import push
from tasks.sampling.engines.vllm_server import Server
from tasks.sampling.sampler import Sampler
from tasks.store.data_sets import read_dataset
from tasks.store.manifest import Place, Ref


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def checkpoint(world):
    """The policy after an update that has moved it far."""
    bench, base, data, _ = world
    return an_update(bench, base, data)


@pytest.fixture
def server(world):
    with serving(world[1].directory) as server:
        yield server


@pytest.fixture
def bench(world, tmp_path, server):
    return a_bench(tmp_path / "run", server)


def a_bench(root, server, **health):
    bench = Workbench(root)
    bench.execution = ExecutionConfig(device="cpu", engine_servers=(server.url,))
    bench.health = HealthConfig(**health)
    return bench


def sampled(bench, base, data, **changes):
    return generate(bench, base, data, engine="vllm", **changes)


def difference(bench, ref):
    return bench.metrics(ref)["rollouts/engine_logprob_difference"]


# What is asked, and what becomes of the answer


def test_rollouts_are_the_servers_tokens_with_both_log_probabilities(world, bench, server):
    _, base, data, _ = world
    # One token of eight ends a response.
    ends = replace(SAMPLING, stop_token_ids=tuple(range(0, 300, 8)))
    (ref,) = sampled(bench, base, data, samples_per_prompt=2, sampling=ends)
    table = rows(ref)
    bodies = server.drawn
    assert len(table) == len(bodies) == 12
    assert len({body["seed"] for body in bodies}) == 12
    by_seed = {body["seed"]: body for body in bodies}
    stops = {*range(0, 300, 8), server.tokenizer.eos_token_id}
    for row in table:
        prompt = by_seed[row_seed(bench, row)]["prompt"]
        assert prompt == row["prompt_token_ids"]
        ids = row["response_token_ids"]
        assert row["finish_reason"] == ("stop" if ids[-1] in stops else "length")
        assert not stops & set(ids[:-1])
        z = server.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].detach().log_softmax(-1)
        by_definition = [float(z[t, token]) for t, token in enumerate(ids)]
        assert row["sampling_logprobs"] == pytest.approx(by_definition, abs=1e-4)
        assert row["logprobs"] == pytest.approx(by_definition, abs=1e-4)
    assert {row["finish_reason"] for row in table} == {"stop", "length"}
    metrics = bench.metrics(ref)
    apart = [abs(a - b) for row in table for a, b in zip(row["logprobs"], row["sampling_logprobs"], strict=True)]
    assert metrics["rollouts/engine_logprob_difference"] == pytest.approx(sum(apart) / len(apart), rel=1e-6)
    assert metrics["rollouts/engine_logprob_max_difference"] == pytest.approx(max(apart), rel=1e-6)
    assert 0 < max(apart) < 1e-4


def row_seed(bench, row):
    return derive_seed(bench.seed, 1, 1, "rollout", row["prompt_id"], row["sample_index"])


def test_every_setting_of_the_distribution_is_said_and_none_left_to_the_server(world, bench, server):
    _, base, data, _ = world
    sampling = replace(SAMPLING, top_p=0.9, top_k=7, stop_token_ids=(5,))
    sampled(bench, base, data, sampling=sampling, stop_strings=("lamp",))
    (body, *_) = server.drawn
    eos = server.tokenizer.eos_token_id
    assert {name: value for name, value in body.items() if name not in ("prompt", "seed")} == {
        "model": "base",
        "cache_salt": base.digest,
        "max_tokens": 10,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": ["lamp"],
        "stop_token_ids": sorted({5, eos}),
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "n": 1,
        "return_token_ids": True,
    }


def test_a_row_is_a_function_of_its_coordinates_whatever_the_shards(world, bench, server):
    _, base, data, _ = world
    (whole,) = sampled(bench, base, data)
    parts = sampled(bench, base, data, shards=2)

    def by_prompt(refs):
        return {row["prompt_id"]: row["response_token_ids"] for ref in refs for row in rows(ref)}

    assert by_prompt(parts) == by_prompt([whole])


def test_a_response_ends_where_our_own_rules_end_it(world, bench, server):
    _, base, data, _ = world
    (plain,) = sampled(bench, base, data, samples_per_prompt=4)
    # A text that is in some responses, and not at their end.
    stop = rows(plain)[0]["response"][1:3]
    server.overrun = 2
    (ref,) = sampled(bench, base, data, samples_per_prompt=4, stop_strings=(stop,))
    eos, cut = server.tokenizer.eos_token_id, 0
    for row, before in zip(rows(ref), rows(plain), strict=True):
        ids = row["response_token_ids"]
        assert ids == before["response_token_ids"][: len(ids)]
        assert len(row["sampling_logprobs"]) == len(ids)
        contains = stop in row["response"]
        assert stop not in server.tokenizer.decode(ids[:-1])
        assert row["finish_reason"] == ("stop" if contains or ids[-1] == eos else "length")
        cut += contains and len(ids) < len(before["response_token_ids"])
    assert cut > 0


def test_progress_counts_rows_and_tokens(world, bench, server):
    _, base, data, _ = world
    (ref,) = sampled(bench, base, data)
    tokens = sum(len(row["response_token_ids"]) for row in rows(ref))
    assert [event["done"] for event in bench.events] == [1, 2, 3, 4, 5, 6]
    assert bench.events[-1] == {"done": 6, "total": 6, "unit": "rows", "tokens": tokens}


# Weights


def test_each_stage_samples_from_the_checkpoint_that_it_is_given(world, checkpoint, bench, server):
    _, base, data, _ = world
    (first,) = sampled(bench, base, data)
    (later,) = sampled(bench, checkpoint, data)
    assert difference(bench, first) < 1e-4
    assert difference(bench, later) < 1e-4
    assert rows(first)[0]["policy_version"] != rows(later)[0]["policy_version"]
    # The server had been started with the first.
    assert server.loaded[1:] == [str(base.directory), str(checkpoint.directory / POLICY)]
    label = "/update_weight_version"
    assert server.paths()[:6] == ["/version", "/v1/models", label, "/collective_rpc", "/reset_prefix_cache", label]
    assert "/reset_prefix_cache" in server.paths()[6:]


NOT_THIS_POLICY = (
    r"^the largest difference between the engine's log-probabilities and the trainer's, in nats, over 80 tokens tried "
    r"before sampling is [\d.]+, above health\.max_engine_difference=0\.0001; the engine at http://127\.0\.0\.1:\d+ does "
    r"not hold this policy, or computes in another precision: give it the trainer's dtype \(--dtype float32\), let no "
    r"other run use it, and restart"
)


def test_a_server_that_keeps_other_weights_is_refused_before_anything_is_sampled(world, checkpoint, tmp_path, server):
    _, _, data, _ = world
    server.is_stuck = True
    with pytest.raises(UnhealthyError, match=NOT_THIS_POLICY):
        sampled(a_bench(tmp_path / "strict", server), checkpoint, data)
    assert server.tried
    assert not server.drawn
    warned = a_bench(tmp_path / "warned", server, action="warn")
    (ref,) = sampled(warned, checkpoint, data)
    assert difference(warned, ref) > 0.01
    assert warned.metrics(ref)["health/warnings"] == 1
    told = [event["warning"] for event in warned.events if "warning" in event]
    assert ["tried before sampling" in text for text in told] == [True, False]


def test_a_push_that_leaves_the_output_head_is_refused(world, checkpoint, bench, server, monkeypatch):
    _, base, data, _ = world
    monkeypatch.setattr(policy_files, "tied_weights", lambda policy: {})
    # The server has the head of this one.
    sampled(bench, base, data)
    with pytest.raises(UnhealthyError, match=NOT_THIS_POLICY):
        sampled(bench, checkpoint, data)
    assert len(server.drawn) == 6


def test_a_difference_is_found_at_a_single_token_and_in_bfloat16_on_average(world, tmp_path):
    engine = Shifted(torch.zeros(128))
    for dtype, shift, passes in (
        (torch.float32, 9e-5, True),
        (torch.float32, 1.1e-4, False),
        (torch.float32, -1.1e-4, False),
        (torch.bfloat16, 3.7, True),  # 0.0289 on average
        (torch.bfloat16, 3.9, False),  # 0.0305
        (torch.bfloat16, -3.9, False),
    ):
        engine.shift = torch.zeros(128)
        engine.shift[17] = shift
        bench = Workbench(tmp_path)
        assert accepts(engine, bench, dtype) == passes, (dtype, shift)
        # A limit of one's own takes the place of rounding's.
        assert accepts(engine, bench, dtype, max_engine_difference=5.0)
        assert not accepts(engine, bench, dtype, max_engine_difference=1e-6)


class Shifted:
    """An engine whose log-probabilities are so far from -1."""

    def __init__(self, shift):
        self.shift = shift

    def draw(self, prompts, *, sampling, seeds, **_):
        self.asked = prompts, sampling, seeds
        responses = Ragged.from_rows([[5] * sampling.max_new_tokens] * len(prompts), torch.int64)
        stopped = torch.zeros(len(prompts), dtype=torch.bool)
        return RolloutBatch(
            prompts=prompts, responses=responses, stopped=stopped, token_columns={"logprobs": self.shift - 1}
        )


def accepts(engine, bench, dtype, sampling=SAMPLING, **health):
    context = types.SimpleNamespace(run_seed=7, health=HealthConfig(**health), warn=bench.events.append)
    prompts = Ragged.from_rows([[3, i] for i in range(8)], torch.int64)
    sampling = replace(sampling, max_new_tokens=100, stop_token_ids=(5,), top_p=0.5, top_k=3, suppress_token_ids=(7,))
    try:
        require_same_policy(
            engine,
            "the engine",
            prompts,
            lambda batch, temperature: torch.full((128,), -1.0),
            sampling=sampling,
            context=context,
            dtype=dtype,
        )
    except UnhealthyError:
        return False
    finally:
        _, asked, seeds = engine.asked
        # Of the whole distribution, to the end, by the run's seed alone.
        assert (asked.max_new_tokens, asked.stop_token_ids, asked.top_p, asked.top_k) == (16, (), 1.0, 0)
        assert asked.suppress_token_ids == ()
        assert seeds == [derive_seed(7, "proof", i) for i in range(8)]
    return True


def test_each_push_is_tried_on_the_same_tokens(world, checkpoint, bench, server):
    _, base, data, _ = world
    sampled(bench, base, data)
    first = [(body["prompt"], body["seed"]) for body in server.tried]
    bench.run("generate_rollouts", GenerateRolloutsConfig(prompts_per_iteration=3, sampling=SAMPLING, engine="vllm"),
              place=Place(1, 2, 0), policy=checkpoint, data=data)  # fmt: skip
    tried = [(body["prompt"], body["seed"]) for body in server.tried]
    assert len(first) == 8
    assert sorted(tried[8:]) == sorted(first)


def test_a_bias_of_the_engine_is_the_metric_and_the_trainers_numbers_stay(world, tmp_path, server):
    _, base, data, _ = world
    server.bias = 0.3
    bench = a_bench(tmp_path / "run", server, max_engine_difference=0.5)
    (ref,) = sampled(bench, base, data)
    assert difference(bench, ref) == pytest.approx(0.3, abs=1e-4)
    assert bench.metrics(ref)["rollouts/engine_logprob_max_difference"] == pytest.approx(0.3, abs=1e-4)
    for row in rows(ref):
        assert row["sampling_logprobs"] == pytest.approx([x + 0.3 for x in row["logprobs"]], abs=1e-4)
    server.bias = 0.6
    with pytest.raises(UnhealthyError, match=r"is 0\.6, above health\.max_engine_difference=0\.5"):
        sampled(bench, base, data)


def test_rollouts_of_another_model_than_the_tried_one_are_refused(world, tmp_path, server):
    _, base, data, _ = world
    # Somebody pushes to the server in between.
    server.bias_of_drawn = 0.5
    with pytest.raises(UnhealthyError, match=r"in nats a token, is 0\.5, above health\.max_engine_difference=0\.0001"):
        sampled(a_bench(tmp_path / "run", server), base, data)
    assert server.drawn


def test_weights_that_were_not_kept_are_written_for_the_server_and_removed(world, checkpoint, bench, server, tmp_path):
    _, _, data, _ = world
    bare = tmp_path / "checkpoint"
    shutil.copytree(checkpoint.directory, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    ref = Ref(str(bare), checkpoint.digest)
    bench.models.keep(ref, POLICY, load_policy(checkpoint.directory / POLICY))
    (rollouts,) = sampled(bench, ref, data)
    assert difference(bench, rollouts) < 1e-4
    (pushed,) = [body["kwargs"]["weights_path"] for body in server.bodies("/collective_rpc")]
    assert not pushed.startswith(str(bare))
    assert not list(tmp_path.rglob("policy-*"))


def test_a_head_of_a_tied_model_is_handed_over_beside_links_to_its_files(tmp_path):
    a_model(tmp_path / "model")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    policy.save_pretrained(tmp_path / "model", max_shard_size="10KB")
    (tmp_path / "model" / "model.safetensors").unlink()
    index = (tmp_path / "model" / INDEX_FILE).read_bytes()
    tied = tied_weights(policy)
    assert list(tied) == ["lm_head.weight"]
    files = PolicyFiles(directory=tmp_path / "model", digest="0", tied=tied, scratch=tmp_path)
    with files.with_tied_weights() as directory:
        assert torch.equal(head_in(directory), policy.get_input_embeddings().weight)
        before = {path.name for path in (tmp_path / "model").iterdir()}
        assert {path.name for path in directory.iterdir()} == {*before, TIED_FILE}
        assert all(path.is_symlink() for path in directory.iterdir() if path.name not in (INDEX_FILE, TIED_FILE))
        assert AutoModelForCausalLM.from_pretrained(directory).config.tie_word_embeddings
    assert (tmp_path / "model" / INDEX_FILE).read_bytes() == index
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_without_tied_weights_is_handed_over_as_it_is(tmp_path):
    config = LlamaConfig(vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    assert tied_weights(LlamaForCausalLM(config)) == {}
    with PolicyFiles(directory=tmp_path, digest="0", tied={}, scratch=tmp_path).with_tied_weights() as directory:
        assert directory == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_server_whose_model_has_no_head_gets_the_embedding_alone(world, checkpoint, bench, server):
    _, _, data, _ = world
    server.has_head = False
    (ref,) = sampled(bench, checkpoint, data)
    assert difference(bench, ref) < 1e-4
    assert len(server.bodies("/collective_rpc")) == 2
    assert server.loaded[1:] == [str(checkpoint.directory / POLICY)]


def test_a_prefix_cache_that_is_not_forgotten_is_asked_again_and_worth_another_attempt(
    world, checkpoint, bench, server, impatient
):
    _, _, data, _ = world
    server.num_busy = 3
    with pytest.raises(TransientError, match="it keeps its prefix cache while it answers others; it serves one run"):
        sampled(bench, checkpoint, data)


def test_evaluation_samples_policy_and_reference_by_the_same_engine(world, checkpoint, bench, server):
    _, base, data, _ = world
    config = EvaluatePolicyConfig(
        samples_per_prompt=1, rewards=LENGTH, held_out_rewards={}, sampling=SAMPLING, engine="vllm"
    )
    inputs = {"policy": checkpoint, "reference": base, "reward_model": None, "external": {}, "data": data}
    ref = bench.run("evaluate_policy", config, place=Place(1), **inputs)
    assert server.loaded[1:] == [str(checkpoint.directory / POLICY), str(base.directory)]
    assert len(server.drawn) == 8
    table = rows(ref, "evaluation")
    assert "sampling_logprobs" not in table[0]
    reference = [row for row in table if row["sampled_by"] == "reference"]
    assert all(row["ref_logprobs"] == pytest.approx(row["logprobs"], abs=1e-4) for row in reference)
    # The same check of both, where nothing else would notice.
    server.is_stuck = True
    strict = a_bench(bench.store.root.parent / "strict", server)
    with pytest.raises(UnhealthyError, match="over 40 tokens tried before sampling"):
        strict.run("evaluate_policy", config, place=Place(1), **inputs)


def pushed(server, directory, digest):
    with Server(server.url) as asked:
        policy = PolicyFiles(directory=directory, digest=digest, tied={}, scratch=directory.parent)
        return push(asked, policy, directory).model


def an_adapter(directory):
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    return directory


def test_an_adapter_is_loaded_by_a_name_of_its_content_and_earlier_ones_are_unloaded(world, tmp_path, server):
    one, two = an_adapter(tmp_path / "one"), an_adapter(tmp_path / "two")
    server.adapters = {"of-somebody-else": "/elsewhere"}
    assert pushed(server, one, "1a") == "rlhf-rounds-1a"
    assert pushed(server, one, "1a") == "rlhf-rounds-1a"
    assert server.bodies("/v1/load_lora_adapter") == [{"lora_name": "rlhf-rounds-1a", "lora_path": str(one)}]
    assert pushed(server, two, "2b") == "rlhf-rounds-2b"
    assert server.adapters == {"of-somebody-else": "/elsewhere", "rlhf-rounds-2b": str(two)}
    assert not server.bodies("/collective_rpc")


def test_a_server_of_adapters_alone_has_the_weights_it_was_started_with(world, checkpoint, server):
    server.dev_mode = False
    assert pushed(server, world[1].directory.resolve(), "0") == "base"
    directory = checkpoint.directory / POLICY
    message = (
        f"it cannot load the weights in {directory}; start it with VLLM_SERVER_DEV_MODE=1, or with that directory as"
    )
    with pytest.raises(ServerError) as caught:
        pushed(server, directory, "0")
    assert str(caught.value).startswith(f"execution.engine_servers {server.url}: {message}")


def test_a_server_that_is_not_vllm_is_asked_for_the_checkpoint_by_its_directory(world, checkpoint, bench, server):
    _, _, data, _ = world
    server.is_vllm = False
    server.head = None
    server.load(checkpoint.directory / POLICY)
    (ref,) = sampled(bench, checkpoint, data)
    assert {body["model"] for body in server.bodies("/v1/completions")} == {str(checkpoint.directory / POLICY)}
    assert set(server.paths()) == {"/version", "/v1/completions"}
    assert difference(bench, ref) < 1e-4


@pytest.mark.parametrize(
    ("switched_off", "gone", "message"),
    [
        (
            {"lora": False},
            False,
            r"refused with 404 \(Not Found\); start it with --enable-lora and VLLM_ALLOW_RUNTIME_LO",
        ),
        ({}, True, r"refused with 404 \(No adapter found for .*where it can see"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_says_what_to_do(world, tmp_path, server, switched_off, gone, message):
    vars(server).update(switched_off)
    directory = an_adapter(tmp_path / "adapter")
    if gone:
        # The server sees another file system.
        server.load_adapter = lambda body, original=server.load_adapter: original({**body, "lora_path": "/not/here"})
    with pytest.raises(ServerError, match=message):
        pushed(server, directory, "1a")


# Temperature


def test_log_probabilities_before_temperature_are_noticed(world, bench, server):
    _, base, data, _ = world
    sampling = replace(SAMPLING, temperature=0.6)
    with pytest.raises(
        ServerError, match=r"temperature=0\.6: the engine at http:.* gives .* --logprobs-mode processed_logprobs"
    ):
        sampled(bench, base, data, sampling=sampling)
    server.logprobs_mode = "processed_logprobs"
    (ref,) = sampled(bench, base, data, sampling=sampling)
    assert difference(bench, ref) < 1e-4


# Errors


def choice(**changes):
    logprobs = {"token_logprobs": changes.pop("token_logprobs", [-1.0, -2.0])}
    return {"index": 0, "text": "", "finish_reason": "stop", "token_ids": [7, 8], "logprobs": logprobs, **changes}


def answered(*choices):
    return 200, {"choices": list(choices)}


REFUSALS = {
    "bad request": (
        (400, {"error": {"message": "max_tokens is\n too large"}}),
        r"400 \(max_tokens is too large\); it has to",
    ),
    "fastapi's words": ((422, {"detail": [{"msg": "Field required"}]}), r"refused with 422 \(.*Field required"),
    "no such model": (
        (404, {"error": {"message": "The model `base` does not exist."}}),
        r"404 \(The model `base` does not",
    ),
    "another server": ((302, ""), "refused with 302; it has to take and to give token ids"),
    "not JSON": ((200, "<html>"), r"answered no JSON \('<html>'\); a vLLM server is expected there"),
    "a list": ((200, []), r"answered no object \(\[\]\)"),
    "no choices": ((200, {"text": "hello"}), "answered not the one choice that was asked for"),
    "none of one": (answered(), "not the one choice"),
    "two of one": (answered(choice(), choice()), "not the one choice"),
    "no token ids": (answered(choice(token_ids=None)), r"answered no token ids of the response \("),
    "true for an id": (answered(choice(token_ids=[True, 7])), "no token ids"),
    "texts for ids": (answered(choice(token_ids=["a", "b"])), "no token ids"),
    "no logprobs": (answered(choice(logprobs=None)), "answered no log-probabilities of the response's tokens"),
    "a list for logprobs": (answered(choice(logprobs=[-1.0, -2.0])), "no log-probabilities"),
    "null logprobs": (answered(choice(token_logprobs=[None, -1.0])), "no log-probabilities"),
    "infinite": (answered(choice(token_logprobs=[-math.inf, -1.0])), "no log-probabilities"),
    "one short": (
        answered(choice(token_logprobs=[-1.0])),
        "gave 2 token ids and 1 log-probabilities for a response of at",
    ),
    "empty": (answered(choice(token_ids=[], token_logprobs=[])), "gave 0 token ids and 0 log-probabilities"),
    "too long": (
        answered(choice(token_ids=[7] * 11, token_logprobs=[-1.0] * 11)),
        "gave 11 token ids .* at most 10 tokens",
    ),
    "other prompt": (answered(choice(prompt_token_ids=[1])), "a response to another prompt than it was given"),
    "cut": (
        answered(choice(finish_reason="length")),
        "cut a response off after 2 tokens, before .*max_new_tokens=10; give",
    ),
}


@pytest.mark.parametrize(("answer", "message"), REFUSALS.values(), ids=REFUSALS)
def test_an_answer_that_no_row_can_be_made_of_is_one_sentence_and_stops_at_once(world, bench, server, answer, message):
    _, base, data, _ = world
    server.answers["/v1/completions"] = [answer]
    with pytest.raises(ServerError, match=message) as caught:
        sampled(bench, base, data)
    assert str(caught.value).startswith(f"execution.engine_servers {server.url}")
    assert "\n" not in str(caught.value)
    assert classify(caught.value) == "user"
    assert len(server.drawn) <= 6


def test_a_response_of_our_own_stop_rules_is_complete_whatever_reason_the_server_gives(world, bench, server):
    _, base, data, _ = world
    eos = server.tokenizer.eos_token_id
    by_string = choice(token_ids=[9, eos, 4], token_logprobs=[-1.0, -2.0, -3.0], finish_reason="length")
    server.answers["/v1/completions"] = [answered(by_string)] * 5 + [answered(choice(token_ids=[9, 9]))]
    bench.health = HealthConfig(max_engine_difference=100)
    (ref,) = sampled(bench, base, data)
    found = sorted((row["response_token_ids"], row["finish_reason"]) for row in rows(ref))
    # The last ended by a rule of the server's own.
    assert found == [*[([9, eos], "stop")] * 5, ([9, 9], "stop")]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(vllm_server, "DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(vllm_push, "DELAYS_S", (0.0, 0.0))


def test_what_passes_by_itself_is_asked_again_and_changes_nothing(world, bench, server, impatient):
    _, base, data, _ = world
    (untroubled,) = sampled(bench, base, data)
    # Fewer than a single row may meet, should one meet them all.
    server.answers["/v1/completions"] = [(503, ""), None]
    server.answers["/collective_rpc"] = [(429, {"error": "busy"})]
    (troubled,) = sampled(bench, base, data)
    assert [row["response_token_ids"] for row in rows(troubled)] == [
        row["response_token_ids"] for row in rows(untroubled)
    ]


@pytest.mark.parametrize(
    ("path", "answers", "message"),
    [
        ("/v1/completions", [(503, "")] * 18, "POST /v1/completions was answered 503"),
        ("/v1/completions", [(500, {"error": {"message": "CUDA error"}})], r"was answered 500 \(CUDA error\)"),
        (
            "/v1/completions",
            [None] * 18,
            "POST /v1/completions was not answered .*start the server, or correct the address",
        ),
        ("/v1/completions", [answered(choice(finish_reason="abort"))], "gave up a response after 2 tokens"),
        # What went wrong there is not what goes wrong here.
        (
            "/collective_rpc",
            [(500, "[Errno 2] No such file")] * 2,
            r"answered 500 \(\[Errno 2\] No such file\); it has to see /",
        ),
        (
            "/collective_rpc",
            [(500, "Internal Server Error")] * 2,
            r"was answered 500 \(Internal Server Error\); it has to see /",
        ),
    ],
)
def test_what_may_pass_later_is_worth_another_attempt(world, bench, server, impatient, path, answers, message):
    _, base, data, _ = world
    server.answers[path] = answers
    with pytest.raises(TransientError, match=message) as caught:
        sampled(bench, base, data)
    assert classify(caught.value) == "transient"


def test_a_server_that_is_not_there_is_worth_another_attempt(world, tmp_path, impatient):
    _, base, data, _ = world
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    bench = a_bench(tmp_path, types.SimpleNamespace(url=url))
    with pytest.raises(TransientError, match=rf"engine_servers {url}: GET /version was not answered \(ConnectError"):
        sampled(bench, base, data)


def test_a_key_is_sent_and_its_lack_told(world, bench, server, monkeypatch):
    _, base, data, _ = world
    server.key = "secret"
    with pytest.raises(
        ServerError, match=r"GET /version was refused with 401 \(Unauthorized\); set ROUNDS_ENGINE_API_KEY to its key"
    ):
        sampled(bench, base, data)
    monkeypatch.setenv("ROUNDS_ENGINE_API_KEY", "secret")
    assert environment.engine_api_key() == "secret"
    sampled(bench, base, data)


def test_the_address_is_asked_itself_without_the_machines_proxies(world, bench, server, monkeypatch):
    _, base, data, _ = world
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    bench.execution = ExecutionConfig(device="cpu", engine_servers=(f"{server.url}/v1/",))
    sampled(bench, base, data)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://me:secret@host", "http://host?a=b"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url):
    with pytest.raises(ValueError, match="is no address like http://host:8000, without user, password and query"):
        ExecutionConfig(engine_servers=(url,))


# On its way through the stages


def test_the_engines_log_probabilities_reach_the_update_and_correct_it(world, tmp_path, server):
    _, base, data, _ = world
    bench = a_bench(tmp_path / "run", server, max_engine_difference=0.5)
    # A token of weight e^-0.4 = 0.67: as if the engine had drawn all of them too often.
    server.bias = 0.4
    (rollouts,) = sampled(bench, base, data)
    scored = score(bench, base, rollouts, LENGTH)
    experience = advantages(bench, [scored], base)
    for before, after in zip(rows(rollouts), rows(experience), strict=True):
        assert after["sampling_logprobs"] == before["sampling_logprobs"]
    updated = bench.metrics(an_update(bench, base, data, experience=experience))
    assert updated["update/importance_mean"] == pytest.approx(math.exp(-0.4), abs=1e-4)
    assert updated["update/importance_capped"] == 0
    assert updated["update/first_minibatch_ratio_deviation"] < 1e-4


def test_of_an_earlier_policy_by_another_engine_the_engines_log_probabilities_stay(world, tmp_path, server):
    _, base, data, _ = world
    bench = a_bench(tmp_path / "run", server, max_engine_difference=0.5)
    server.bias = 0.4
    (rollouts,) = sampled(bench, base, data)
    later = an_update(bench, base, data, experience=advantages(bench, [score(bench, base, rollouts, LENGTH)], base))
    rescored = rows(score(bench, later, rollouts, LENGTH, reference=base))
    # One weight a token for both: the engine's bias, and the update in between.
    for before, after in zip(rows(rollouts), rescored, strict=True):
        assert after["sampling_logprobs"] == before["sampling_logprobs"]
        assert max(abs(a - b) for a, b in zip(after["logprobs"], before["logprobs"], strict=True)) > 1e-3


def test_where_the_server_stands_changes_no_fingerprint_and_the_engine_does(world, tmp_path):
    def fingerprint(engine, *urls):
        config = GenerateRolloutsConfig(sampling=SAMPLING, engine=engine)
        call = StageCall(
            stage="generate_rollouts",
            place=Place(1, 1, 0),
            settings=json.loads(config.model_dump_json()),
            seed=0,
            run_root=str(tmp_path),
            execution=ExecutionConfig(engine_servers=urls).model_dump(mode="json"),
        )
        return call.recipe().fingerprint

    assert fingerprint("vllm", "http://one:8000") == fingerprint("vllm") != fingerprint("builtin")


# In process


class Recorded:
    """Stands in for the package: records what is called, and gives each prompt the same response."""

    def __init__(self):
        self.calls = []
        self.reloaded = []
        self.sleeps = self.has_head = True

    def modules(self):
        recorded = self

        class LLM:
            def __init__(self, **options):
                recorded.calls.append(("LLM", options))

            def generate(self, prompts, parameters, **options):
                recorded.calls.append(("generate", prompts, parameters, options))
                step = {7: types.SimpleNamespace(logprob=-5.0), 1: types.SimpleNamespace(logprob=-0.1)}
                output = types.SimpleNamespace(token_ids=(7, 7), logprobs=[step, step], finish_reason="stop")
                return [types.SimpleNamespace(outputs=[output]) for _ in prompts]

            def collective_rpc(self, method, *, kwargs):
                recorded.calls.append(("collective_rpc", (method,), {"kwargs": kwargs}))
                directory = Path(kwargs["weights_path"])
                has_head = head_in(directory) is not None
                recorded.reloaded.append((str((directory / "config.json").resolve().parent), has_head))
                if has_head and not recorded.has_head:
                    raise ValueError("There is no module or parameter named 'lm_head'")

            def __getattr__(self, name):
                return lambda *args, **options: recorded.calls.append((name, args, options))

        def sampling_params(**fields):
            return fields

        def lora_request(*fields):
            return fields

        request = types.SimpleNamespace(LoRARequest=lora_request)
        platform = types.SimpleNamespace(is_sleep_mode_available=lambda: recorded.sleeps)
        platforms = types.SimpleNamespace(current_platform=platform)
        vllm = types.ModuleType("vllm")
        vllm.LLM, vllm.SamplingParams = LLM, sampling_params
        vllm.__spec__ = types.SimpleNamespace()
        return {
            "vllm": vllm,
            "vllm.lora": types.ModuleType("vllm.lora"),
            "vllm.lora.request": request,
            "vllm.platforms": platforms,
        }


@pytest.fixture
def recorded(monkeypatch):
    recorded = Recorded()
    for name, module in recorded.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return recorded


def in_process(root):
    bench = Workbench(root)
    bench.health = HealthConfig(max_engine_difference=100)
    return bench


def test_in_process_one_engine_is_kept_and_given_the_weights_of_each_checkpoint(world, checkpoint, tmp_path, recorded):
    _, base, data, _ = world
    bench = in_process(tmp_path)
    (ref,) = sampled(bench, base, data)
    sampled(bench, checkpoint, data)
    # Each time it is tried first.
    drawn = ["generate", "generate", "sleep"]
    assert [call[0] for call in recorded.calls] == [
        "LLM", *drawn, "wake_up", "collective_rpc", "reset_prefix_cache", *drawn
    ]  # fmt: skip
    assert recorded.calls[0][1] == {
        "model": str(base.directory),
        "dtype": "float32",
        "trust_remote_code": False,
        "load_format": "safetensors",
        "gpu_memory_utilization": 0.4,
        "enable_sleep_mode": True,
        "logprobs_mode": "raw_logprobs",
    }
    name, methods, options = recorded.calls[5]
    assert (name, methods, list(options), list(options["kwargs"])) == (
        "collective_rpc", ("reload_weights",), ["kwargs"], ["weights_path"]
    )  # fmt: skip
    assert recorded.reloaded == [(str(checkpoint.directory / POLICY), True)]
    _, prompts, parameters, options = recorded.calls[2]
    table = rows(ref)
    assert prompts == [{"prompt_token_ids": row["prompt_token_ids"]} for row in table]
    assert [fields["seed"] for fields in parameters] == [row_seed(bench, row) for row in table]
    assert options == {"lora_request": None, "use_tqdm": False}
    assert {tuple(row["sampling_logprobs"]) for row in table} == {(-5.0, -5.0)}
    assert bench.events[-1]["done"] == bench.events[-1]["total"] == 6
    # After an error the engine may be half changed.
    bench.models.clear()
    sampled(bench, base, data)
    assert recorded.calls[10][0] == "LLM"


def test_in_process_a_model_without_a_head_gets_the_embedding_alone(world, checkpoint, tmp_path, recorded):
    _, base, data, _ = world
    recorded.has_head = False
    bench = in_process(tmp_path)
    sampled(bench, base, data)
    sampled(bench, checkpoint, data)
    assert recorded.reloaded == [(str(checkpoint.directory / POLICY), has_head) for has_head in (True, False)]


def test_in_process_without_sleep_the_engine_stays_awake(world, checkpoint, tmp_path, recorded):
    _, base, data, _ = world
    recorded.sleeps = False
    bench = in_process(tmp_path)
    sampled(bench, base, data)
    sampled(bench, checkpoint, data)
    assert recorded.calls[0][1]["enable_sleep_mode"] is False
    assert {call[0] for call in recorded.calls} == {"LLM", "generate", "collective_rpc", "reset_prefix_cache"}


def test_in_process_an_engine_with_other_weights_is_refused_before_anything_is_sampled(world, tmp_path, recorded):
    bench = in_process(tmp_path)
    bench.health = HealthConfig()
    with pytest.raises(UnhealthyError, match="over 16 tokens tried before sampling is"):
        sampled(bench, world[1], world[2])
    assert [call[0] for call in recorded.calls] == ["LLM", "generate"]


def test_in_process_log_probabilities_are_those_after_temperature_where_there_is_one(world, tmp_path, recorded):
    _, base, data, _ = world
    sampled(in_process(tmp_path), base, data, sampling=replace(SAMPLING, temperature=0.7))
    assert recorded.calls[0][1]["logprobs_mode"] == "processed_logprobs"


def test_in_process_an_adapter_goes_with_the_request_over_its_base(world, tmp_path, recorded):
    directory = an_adapter(tmp_path / "adapter")
    models, digest, base = ResidentModels(), "c0ffee0123456789", world[1].directory
    for policy in (base, directory):
        files = PolicyFiles(directory=policy, digest=digest, tied={}, scratch=tmp_path)
        settings = {"lora_base": base, "dtype": torch.bfloat16, "temperature": 1.0, "trust_remote_code": True}
        with vllm_in_process(models, files, **settings) as engine:
            batch = engine.draw(
                Ragged.from_rows([[3, 4], [5]], torch.int64),
                samples_per_prompt=2,
                sampling=SAMPLING,
                stop_strings=(),
                should_stop=None,
                seeds=[1, 2, 3, 4],
                on_rows=lambda rows, tokens: None,
            )
    assert [row.tolist() for row in map(batch.prompts.row, range(4))] == [[3, 4], [3, 4], [5], [5]]
    assert [call[0] for call in recorded.calls] == ["LLM", "generate", "sleep", "wake_up", "generate", "sleep"]
    options = recorded.calls[0][1]
    assert options["model"] == str(world[1].directory)
    assert (options["enable_lora"], options["dtype"], options["trust_remote_code"]) == (True, "bfloat16", True)
    assert options["max_lora_rank"] == 128
    assert recorded.calls[1][3]["lora_request"] is None
    name, number, path = recorded.calls[4][3]["lora_request"]
    assert (name, path) == (digest, str(directory))
    assert number > 0


# The table of engines


def test_every_name_of_the_configuration_has_a_row_whose_factory_is_there():
    assert set(get_args(SamplingEngine)) == set(ENGINES)
    for engine in ENGINES.values():
        module, _, name = engine.factory.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@contextmanager
def open_echo(policy, *, temperature):
    """Another engine, which happens to sample as the trainer does."""
    with open_builtin(policy, temperature=temperature) as engine:
        yield engine


def test_a_row_of_the_table_is_all_that_an_engine_needs(world, tmp_path, monkeypatch):
    _, base, data, _ = world
    monkeypatch.setitem(ENGINES, "echo", Engine(factory="test_samplers:open_echo"))
    bench = Workbench(tmp_path)
    prompts = read_dataset(data.directory / "held_out_prompts")

    def drawn(engine):
        context = StageContext(
            output=tmp_path / engine,
            place=Place(1),
            run_seed=0,
            execution=bench.execution,
            health=bench.health,
            resident=bench.models,
            report=lambda event: None,
        )
        sampler = Sampler(Models(context, ModelAccess()), base, engine=engine, proof_prompts=prompts)
        return sampler.sample(
            prompts,
            samples_per_prompt=1,
            sampling=SAMPLING,
            stop_strings=(),
            seed_of=lambda prompt_id, index: 5,
            on_rows=lambda rows, tokens: None,
        ).to_pylist()

    ours, echoed = drawn("builtin"), drawn("echo")
    # It is no trainer, so its own log-probabilities are kept beside the trainer's.
    assert all("sampling_logprobs" not in row for row in ours)
    assert [row["sampling_logprobs"] for row in echoed] == [row["logprobs"] for row in ours]
    assert [row["response_token_ids"] for row in echoed] == [row["response_token_ids"] for row in ours]


def test_an_engine_that_is_not_installed_is_refused_before_the_run_begins(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    message = r"rollouts\.engine=vllm: the package vllm is not installed here; pip install 'rlhf-rounds\[vllm\]' where"
    with pytest.raises(ConfigError, match=message):
        require_available("vllm", ())
    with pytest.raises(ConfigError, match=message):
        sampled(in_process(tmp_path), world[1], world[2])
    require_available("vllm", ("http://host:8000",))
    require_available("builtin", ())
