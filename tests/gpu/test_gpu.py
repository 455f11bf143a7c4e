"""The stages on a CUDA device: the same functions, models and configuration as on the processor, elsewhere."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tasks"))
from small_world import Workbench, a_model
from torch import distributed

from ppo_core import PPOConfig, SamplingConfig, inside, sharded, whole
from tasks import environment
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.data import DataConfig, PrepareDataConfig, Source
from tasks.config.evaluation import EvaluatePolicyConfig
from tasks.config.execution import ExecutionConfig
from tasks.config.model_access import ModelAccess
from tasks.config.rewards import ScoreRolloutsConfig, TrainedReward
from tasks.config.rollouts import GenerateRolloutsConfig
from tasks.config.training import TrainRewardModelConfig, WarmUpStageConfig
from tasks.config.update import UpdatePolicyConfig
from tasks.contract.stage import StageContext
from tasks.models.access import Models
from tasks.models.devices import pick_device, pick_dtype
from tasks.models.loading import load_policy
from tasks.models.parts import part_directory
from tasks.models.training import adamw
from tasks.store.data_sets import read_dataset
from tasks.store.manifest import Place

CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this PyTorch sees none"),
)


def on_cuda(test):
    for mark in CUDA:
        test = mark(test)
    return test


SAMPLING = SamplingConfig(max_new_tokens=12)
REWARDS = {"preference": TrainedReward(model="trained")}


@pytest.fixture(scope="module", autouse=True)
def engine_settings():
    """cuBLAS as the worker's process has it; read when the device is first used."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", environment.worker_environment()["CUBLAS_WORKSPACE_CONFIG"])
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that the processor has warmed up, so that all start from one, and its data."""
    root = tmp_path_factory.mktemp("world")
    config = PrepareDataConfig(
        data=DataConfig(
            prompts=(rows_in(root / "prompts.jsonl", [{"prompt": f"where is the red lamp {i}?"} for i in range(40)]),),
            preferences=(rows_in(root / "preferences.jsonl", [a_preference(i) for i in range(24)]),),
            texts=(rows_in(root / "texts.jsonl", [{"text": f"the lamp is on the table {i}"} for i in range(40)]),),
            num_held_out_prompts=8,
        ),
        response_tokens=12,
    )
    bench = bench_on(root / "run", device="cpu", dtype="float32")
    base = a_model(root / "model")
    data = bench.run("prepare_data", config, place=Place(1), base=base)
    warm = bench.run("warm_up", WarmUpStageConfig(epochs=8, learning_rate=1e-2, batch_tokens=256), base=base, data=data)
    return warm, data


def rows_in(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


def a_preference(i):
    return {"prompt": f"question {i}:", "chosen": f" on the table. thank you {i}", "rejected": f" go away now {i}"}


def bench_on(root, **execution):
    bench = Workbench(root)
    bench.execution = ExecutionConfig(**{"micro_batch_tokens": 512, **execution})
    return bench


def generate(bench, world):
    warm, data = world
    config = GenerateRolloutsConfig(prompts_per_iteration=16, samples_per_prompt=4, sampling=SAMPLING)
    return bench.run("generate_rollouts", config, place=Place(1, 1, 0), policy=warm, data=data)


def train_reward_model(bench, world):
    warm, data = world
    config = TrainRewardModelConfig(
        epochs=4, learning_rate=3e-3, batch_size=8, calibration_samples=32, sampling=SAMPLING
    )
    return bench.run("train_reward_model", config, place=Place(1), base=warm, reference=warm, data=data)


def score(bench, world, rollouts, reward_model):
    warm, _ = world
    return bench.run(
        "score_rollouts",
        ScoreRolloutsConfig(rewards=REWARDS, temperature=SAMPLING.temperature),
        place=Place(1, 1, 0),
        rollouts=rollouts,
        policy=warm,
        reference=warm,
        critic=reward_model,
        reward_model=reward_model,
        external={},
    )


def update(bench, world, scored, reward_model):
    warm, _ = world
    experience = bench.run("compute_advantages", ComputeAdvantagesConfig(), scored=[scored], checkpoint=warm)
    config = UpdatePolicyConfig(
        ppo=PPOConfig(epochs=2, num_minibatches=4),
        temperature=SAMPLING.temperature,
        learning_rate=1e-3,
        critic_learning_rate=1e-3,
        weight_decay=0.0,
    )
    return bench.run("update_policy", config, experience=experience, policy=warm, critic=reward_model, reference=None)


def an_iteration(bench, world):
    """Reward model, rollouts, scores and checkpoint."""
    reward_model = train_reward_model(bench, world)
    rollouts = generate(bench, world)
    scored = score(bench, world, rollouts, reward_model)
    return reward_model, rollouts, scored, update(bench, world, scored, reward_model)


def rows(ref):
    return read_dataset(ref.directory / "rollouts").to_pylist()


def deviation(bench, checkpoint):
    return bench.metrics(checkpoint)["update/first_minibatch_ratio_deviation"]


@on_cuda
def test_auto_takes_the_cuda_device_and_bfloat16_where_it_has_it():
    device = pick_device(ExecutionConfig())
    assert device.type == "cuda"
    assert pick_device(ExecutionConfig(device="cuda:0")) == torch.device("cuda:0")
    assert pick_device(ExecutionConfig(device="cpu")) == torch.device("cpu")
    expected = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    assert pick_dtype(ExecutionConfig(), device) == expected
    assert pick_dtype(ExecutionConfig(), torch.device("cpu")) == torch.float32
    assert pick_dtype(ExecutionConfig(dtype="float32"), device) == torch.float32


@on_cuda
def test_the_models_of_a_stage_are_on_the_device_and_their_weights_float32(world, tmp_path):
    bench = bench_on(tmp_path)
    warm, _ = world
    generate(bench, world)
    policy = bench.models.get(warm, "policy", lambda: pytest.fail("the sampler kept no policy"))
    assert {(p.device.type, p.dtype) for p in policy.parameters()} == {("cuda", torch.float32)}


@on_cuda
def test_by_default_the_update_has_the_numerics_of_the_rollouts(world, tmp_path):
    default = bench_on(tmp_path / "default")
    *_, checkpoint = an_iteration(default, world)
    # What it would be if rollouts were in float32 and the update in bfloat16: the measure of what is tiny.
    mixed = bench_on(tmp_path / "mixed", dtype="float32")
    reward_model = train_reward_model(mixed, world)
    scored = score(mixed, world, generate(mixed, world), reward_model)
    mixed.execution = ExecutionConfig(dtype="bfloat16", micro_batch_tokens=512)
    rounding = deviation(mixed, update(mixed, world, scored, reward_model))
    assert rounding > 1e-4
    assert deviation(default, checkpoint) < rounding / 10


@on_cuda
def test_in_float32_the_first_ratio_is_one(world, tmp_path):
    bench = bench_on(tmp_path, dtype="float32")
    *_, checkpoint = an_iteration(bench, world)
    assert deviation(bench, checkpoint) < 1e-4


@on_cuda
def test_in_float32_the_device_samples_what_the_processor_samples(world, tmp_path):
    theirs = rows(generate(bench_on(tmp_path / "cpu", device="cpu", dtype="float32"), world))
    ours = rows(generate(bench_on(tmp_path / "cuda", dtype="float32"), world))
    assert [row["rollout_id"] for row in ours] == [row["rollout_id"] for row in theirs]
    pairs = list(zip(ours, theirs, strict=True))
    same = [(a, b) for a, b in pairs if a["response_token_ids"] == b["response_token_ids"]]
    # Each of 64 rows draws up to 12 tokens; one changes where a draw falls within rounding, 1e-6, of a token's border.
    assert len(same) >= len(pairs) - 1
    for a, b in same:
        assert a["finish_reason"] == b["finish_reason"]
        assert a["logprobs"] == pytest.approx(b["logprobs"], abs=1e-4)


@on_cuda
def test_in_float32_the_device_scores_and_trains_as_the_processor_does(world, tmp_path):
    cpu = bench_on(tmp_path / "cpu", device="cpu", dtype="float32")
    cuda = bench_on(tmp_path / "cuda", dtype="float32")
    reward_model, rollouts, scored, checkpoint = an_iteration(cpu, world)
    again = score(cuda, world, rollouts, reward_model)
    for ours, theirs in zip(rows(again), rows(scored), strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)
        assert ours["ref_logprobs"] == pytest.approx(theirs["ref_logprobs"], abs=1e-4)
        assert ours["values"] == pytest.approx(theirs["values"], abs=1e-3)
    ours, theirs = cuda.metrics(update(cuda, world, scored, reward_model)), cpu.metrics(checkpoint)
    assert ours.keys() == theirs.keys()
    for name in ("update/policy_loss", "update/value_loss", "update/entropy", "update/approx_kl"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-4), name


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        # What these tests call must not change unseen where there is no GPU.
        ("cpu", "float32"),
        pytest.param("cuda", "auto", marks=CUDA),
        pytest.param("cuda", "float32", marks=CUDA),
    ],
)
def test_the_same_device_gives_the_same_bytes(world, tmp_path, device, dtype):
    one = an_iteration(bench_on(tmp_path / "one", device=device, dtype=dtype), world)
    other = an_iteration(bench_on(tmp_path / "other", device=device, dtype=dtype), world)
    assert [ref.digest for ref in one] == [ref.digest for ref in other]


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), pytest.param("cuda", "nccl", marks=CUDA)])
def test_a_step_of_a_model_in_parts_is_that_of_a_whole_one(world, tmp_path, monkeypatch, device, backend):
    warm, _ = world
    bench = bench_on(tmp_path)
    monkeypatch.setattr(sharded, "_roots", {})
    # One process, whose part is all.
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        context = StageContext(
            output=tmp_path / "output",
            place=Place(1, 1),
            run_seed=7,
            execution=ExecutionConfig(device=device, dtype="float32", train_processes=2, sharded=True),
            health=bench.health,
            resident=bench.models,
            report=bench.events.append,
        )
        parts = Models(context, ModelAccess()).take_policy(warm).model
        other = load_policy(part_directory(warm, "policy")).to(device)
        text = torch.tensor([[5, 9, 250, 17]], device=device)
        for model in (parts, other):
            inside(model, lambda model=model: model(text).logits.log_softmax(-1)[..., 7].mean()).backward()
            adamw([{"params": list(model.parameters()), "lr": 1e-3}]).step()
        assert {parameter.device.type for parameter in parts.parameters()} == {device}
        for ours, theirs in zip(parts.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(whole(ours.detach()), theirs.detach(), rtol=0, atol=1e-5)
    finally:
        distributed.destroy_process_group()


@on_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("is_sharded", [False, True])
def test_two_devices_train_as_one_does(world, tmp_path, is_sharded):
    alone = bench_on(tmp_path / "alone", device="cuda", dtype="float32")
    layout = {"dtype": "float32", "train_processes": 2, "sharded": is_sharded}
    together, again = (bench_on(tmp_path / name, device="cuda", **layout) for name in ("together", "again"))
    reward_model, _, scored, checkpoint = an_iteration(alone, world)
    by_two = update(together, world, scored, reward_model)
    assert by_two.digest == update(again, world, scored, reward_model).digest
    ours, theirs = together.metrics(by_two), alone.metrics(checkpoint)
    for name in ("update/policy_loss", "update/value_loss", "update/entropy", "update/approx_kl"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-4), name


@on_cuda
def test_evaluation_runs_on_the_device_and_finds_no_gain_of_the_reference_over_itself(world, tmp_path):
    warm, data = world
    bench = bench_on(tmp_path)
    config = EvaluatePolicyConfig(samples_per_prompt=2, rewards=REWARDS, held_out_rewards={}, sampling=SAMPLING)
    ref = bench.run(
        "evaluate_policy",
        config,
        place=Place(1),
        policy=warm,
        reference=warm,
        reward_model=train_reward_model(bench, world),
        external={},
        data=data,
    )
    assert bench.metrics(ref)["evaluation/kl"] == pytest.approx(0.0, abs=1e-3)
    assert bench.metrics(ref)["evaluation/score_gain"] == pytest.approx(0.0, abs=1e-3)
