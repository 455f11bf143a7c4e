"""The critic's training before the first iteration: its targets, what it leaves alone, and what comes of it."""

import pytest
import torch
from safetensors.torch import load_file
from small_world import (
    LENGTH,
    SAMPLING,
    Workbench,
    advantages,
    generate,
    make_world,
    rows,
    score,
    train_reward_model,
    with_access,
)

from ppo_core import PPOConfig
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.model_access import AdapterConfig, ModelAccess
from tasks.config.rewards import FunctionReward, ScoreRolloutsConfig, TrainedReward
from tasks.config.training import CriticPretrainingStageConfig
from tasks.config.update import UpdatePolicyConfig
from tasks.contract.resident import ResidentModels
from tasks.contract.stage import StageContext
from tasks.critic_pretraining import held_out_rows
from tasks.models.access import Models
from tasks.models.scalar import load_scalar_model
from tasks.models.training import descend, shuffled
from tasks.sampling import calibration
from tasks.store.data_sets import read_dataset
from tasks.store.manifest import Place
from tasks.store.schemas import Table

LORA = AdapterConfig(rank=4, alpha=8)
TRAINED = {"preference": TrainedReward(model="trained")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def reward_model(world):
    bench, base, data, _ = world
    return train_reward_model(bench, base, data, calibration_samples=64)


def five(prompts, responses, rows):
    return [5.0] * len(rows)


def colour(prompts, responses, rows):
    """What the critic can know from the prompt on."""
    return [1.0 if "red" in prompt else -1.0 for prompt in prompts]


COLOUR = {"colour": FunctionReward(function="test_critic_pretraining:colour")}


def pretrain(
    bench, base, data, *, critic=None, reward_model=None, rewards=LENGTH, treatment=None, lora=None, **changes
):
    own = {"rewards": rewards, "temperature": SAMPLING.temperature, "shared_trunk": changes.get("shared_trunk", False)}
    settings = {
        "samples": 64,
        "learning_rate": 3e-3,
        "scoring": ScoreRolloutsConfig(**with_access(own)),
        "advantages": ComputeAdvantagesConfig(**(treatment or {})),
        "versions": {},
        "sampling": SAMPLING,
        "lora": lora,
    }
    return bench.run(
        "critic_pretraining",
        CriticPretrainingStageConfig(**with_access({**settings, **changes})),
        place=Place(1),
        reference=base,
        critic=critic or reward_model or base,
        reward_model=reward_model,
        external={},
        data=data,
        lora_base=base if lora else None,
    )


def models_of(bench, tmp_path, base, **settings):
    context = StageContext(
        output=tmp_path,
        place=Place(1, 1),
        run_seed=bench.seed,
        execution=bench.execution,
        health=bench.health,
        resident=bench.models,
        report=lambda _: None,
        lora_base=base if settings.get("lora") else None,
    )
    return Models(context, ModelAccess(**settings))


def explained(bench, ref):
    metrics = bench.metrics(ref)
    return metrics["critic_pretraining/explained_variance_before"], metrics["critic_pretraining/explained_variance"]


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_the_targets_are_the_discounted_score_whatever_the_policys_lambda_is(world, gamma):
    bench, base, data, _ = world
    settings = {"gamma": gamma, "lam": 0.3, "kl_coef": 0.1}
    table = rows(pretrain(bench, base, data, treatment=settings, epochs=1), "experience/rollouts")
    assert len(table) == 64
    for row in table:
        length = len(row["response_token_ids"])
        expected = [gamma ** (length - 1 - t) * row["score"] for t in range(length)]
        assert row["score"] == len(row["response"])
        # The reference against itself has no KL but rounding.
        assert row["returns"] == pytest.approx(expected, abs=1e-4)


def test_scores_are_treated_as_in_an_iteration(world):
    bench, base, data, _ = world
    settings = {"score_clip": 3.0, "length_cut": {"penalty": 1.5}}
    table = rows(pretrain(bench, base, data, treatment=settings, epochs=1), "experience/rollouts")
    assert {row["finish_reason"] for row in table} == {"stop", "length"}
    for row in table:
        expected = min(3.0, float(len(row["response"]))) - 1.5 * (row["finish_reason"] == "length")
        assert row["returns"][0] == pytest.approx(expected, abs=1e-4)


def test_a_constant_score_is_known_before_the_first_iteration(world):
    bench, base, data, _ = world
    rewards = {"five": FunctionReward(function="test_critic_pretraining:five")}
    ref = pretrain(bench, base, data, rewards=rewards, epochs=30, learning_rate=1e-2)
    (rollouts,) = generate(bench, base, data)
    values = [v for row in rows(score(bench, base, rollouts, rewards, critic=ref)) for v in row["values"]]
    assert min(values) > 4.5
    assert max(values) < 5.5
    metrics = bench.metrics(ref)
    assert metrics["critic_pretraining/first_loss"] == pytest.approx(12.5, rel=1e-3)
    assert metrics["critic_pretraining/loss"] < 0.05
    assert metrics["critic_pretraining/steps"] == 30 * 4
    # A constant leaves nothing to explain.
    assert explained(bench, ref) == (0, 0)


def test_responses_that_the_reward_model_was_calibrated_on_are_not_sampled_again(world, reward_model, monkeypatch):
    bench, base, data, _ = world

    def refuse(*_, **__):
        raise AssertionError("sampled twice")

    monkeypatch.setattr(calibration, "calibration_rollouts", refuse)
    ref = pretrain(bench, base, data, reward_model=reward_model, rewards=TRAINED)
    calibrated = rows(reward_model, "calibration/rollouts")
    table = rows(ref, "experience/rollouts")
    assert [row["response_token_ids"] for row in table] == [row["response_token_ids"] for row in calibrated]
    scores = torch.tensor([row["score"] for row in table])
    # On them the scores have mean 0 and standard deviation 1.
    assert (scores.mean().item(), scores.std().item()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert not (ref.directory / "calibration").exists()


def test_a_mixture_of_rewards_is_what_the_critic_learns(world, reward_model):
    bench, base, data, _ = world
    rewards = {"preference": TrainedReward(model="trained", weight=2.0), **LENGTH}
    table = rows(pretrain(bench, base, data, reward_model=reward_model, rewards=rewards), "experience/rollouts")
    for row in table:
        assert row["returns"][-1] == pytest.approx(2 * row["score_preference"] + len(row["response"]), abs=1e-3)


KINDS = {
    "reward model": {"rewards": TRAINED, "epochs": 4, "learning_rate": 1e-3},
    "policy": {},
    "lora": {"lora": LORA},
    "shared trunk": {"shared_trunk": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_critic_learns_and_the_policy_stays(world, reward_model, kind, tmp_path):
    _, base, data, _ = world
    bench, changes = Workbench(tmp_path / "run"), KINDS[kind]
    parts = {name: changes[name] for name in ("lora", "shared_trunk") if name in changes}
    prompt = torch.tensor([[5, 9, 250]])
    before = models_of(bench, tmp_path, base, **parts).policy(base)(input_ids=prompt, use_cache=False).logits
    settings = {"rewards": COLOUR, "epochs": 25, "learning_rate": 1e-2, **changes}
    ref = pretrain(bench, base, data, reward_model=reward_model if kind == "reward model" else None, **settings)
    metrics = bench.metrics(ref)
    assert metrics["critic_pretraining/loss"] < 0.98 * metrics["critic_pretraining/first_loss"]
    if kind != "reward model":
        # Zeros explain nothing.
        assert explained(bench, ref)[0] == 0
    models = models_of(bench, tmp_path, base, **parts)
    policy = models.policy(base)
    assert torch.equal(policy(input_ids=prompt, use_cache=False).logits, before)
    assert all(x.grad is None for name, x in policy.named_parameters() if ".critic." not in name)
    # What stays in memory is what was written.
    in_memory, bench.models = models.critic(ref, base)(prompt), ResidentModels()
    torch.testing.assert_close(models_of(bench, tmp_path, base, **parts).critic(ref, base)(prompt), in_memory)
    assert in_memory.abs().max() > 0.01


def test_what_the_prompt_tells_is_explained_on_prompts_that_trained_nothing(world):
    bench, base, data, _ = world
    ref = pretrain(bench, base, data, rewards=COLOUR, epochs=25, learning_rate=1e-2)
    assert explained(bench, ref)[1] > 0.2


def test_only_the_head_of_a_critic_on_the_policys_body_is_written(world):
    bench, base, data, _ = world
    ref = pretrain(bench, base, data, shared_trunk=True)
    assert [path.name for path in (ref.directory / "critic").glob("*.safetensors")] == ["head.safetensors"]


def test_the_values_before_are_those_of_the_critic_that_is_given(world, reward_model):
    bench, base, data, _ = world
    table = rows(pretrain(bench, base, data, reward_model=reward_model, rewards=TRAINED), "experience/rollouts")
    critic = load_scalar_model(reward_model.directory / "reward_model")
    for row in table[:3]:
        ids = row["prompt_token_ids"] + row["response_token_ids"]
        values = critic(torch.tensor([ids]))[0, len(row["prompt_token_ids"]) - 1 : -1]
        assert row["values"] == pytest.approx(values.tolist(), abs=1e-4)


def test_the_order_of_training_is_drawn_by_the_runs_seed_and_by_the_epoch(world, tmp_path, monkeypatch):
    _, base, data, _ = world

    def of_the_epochs(seed):
        asked = []

        def heard(length, *, seed, epoch):
            asked.append((seed, epoch))
            return shuffled(length, seed=seed, epoch=epoch)

        monkeypatch.setattr("tasks.critic_pretraining.shuffled", heard)
        pretrain(Workbench(tmp_path / str(seed), seed=seed), base, data, epochs=2)
        # Those before drew the prompts.
        return asked[-2:]

    (first, _), (again, _) = of_the_epochs(0)
    assert first == again
    (other, before), (_, after) = of_the_epochs(1)
    assert other != first
    assert (before, after) == (0, 1)


def test_the_first_update_starts_from_the_pretrained_critic(world, tmp_path):
    _, base, data, _ = world
    bench = Workbench(tmp_path / "run")
    ref = pretrain(bench, base, data, epochs=2)
    (rollouts,) = generate(bench, base, data)
    scored = score(bench, base, rollouts, LENGTH, critic=ref)
    table = rows(scored)
    critic = load_scalar_model(ref.directory / "critic")
    for row in table[:3]:
        ids = row["prompt_token_ids"] + row["response_token_ids"]
        values = critic(torch.tensor([ids]))[0, len(row["prompt_token_ids"]) - 1 : -1]
        assert row["values"] == pytest.approx(values.tolist(), abs=1e-4)
    assert max(abs(v) for row in table for v in row["values"]) > 0


def test_the_same_seed_gives_the_same_bytes_whatever_the_micro_batches_and_another_seed_other_ones(world, tmp_path):
    _, base, data, _ = world

    def weights(name, **options):
        ref = pretrain(Workbench(tmp_path / name, **options), base, data, epochs=1)
        return (ref.directory / "critic/model.safetensors").read_bytes()

    first = weights("first")
    assert weights("again") == first
    assert weights("other", seed=8) != first


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("aabbc", [2]),
        ("abcdefghij", [7]),
        ("aabbccddeeffgghhii", [7]),
        ("aaaa", None),
        ("ab", [1]),
    ],
)
def test_whole_prompts_are_held_out_one_of_eight_and_never_all(prompts, expected):
    table = Table.from_pydict({"prompt_id": list(prompts)})
    held_out = held_out_rows(table).tolist()
    if expected is None:
        assert held_out == [False, False, False, True]
        return
    names = sorted(set(prompts))
    assert {prompt for prompt, held in zip(prompts, held_out, strict=True) if held} == {names[i] for i in expected}
    assert {prompt for prompt, held in zip(prompts, held_out, strict=True) if not held} == set(names) - {
        names[i] for i in expected
    }


def test_prompts_that_are_held_out_train_nothing(world, monkeypatch):
    bench, base, data, _ = world
    seen = []

    def noting(parameters, batches, backward, **options):
        seen.extend(row for batch in batches(0) for row in batch)
        return descend(parameters, batches, backward, **options)

    monkeypatch.setattr("tasks.critic_pretraining.descend", noting)
    ref = pretrain(bench, base, data, samples=30)
    table = read_dataset(ref.directory / "experience/rollouts")
    held_out = int(held_out_rows(table).sum())
    assert held_out > 0
    assert sorted(seen) == list(range(table.num_rows - held_out))


@pytest.mark.parametrize("changes", [{}, {"lora": LORA}, {"shared_trunk": True}], ids=["whole", "lora", "trunk"])
def test_the_first_iteration_goes_on_from_the_pretrained_critic(world, tmp_path, changes):
    _, base, data, _ = world
    bench = Workbench(tmp_path / "run")
    ref = pretrain(bench, base, data, epochs=2, **changes)
    lora_base = base if "lora" in changes else None
    # In other processes nothing is in memory.
    bench.models = ResidentModels()
    (rollouts,) = generate(bench, base, data, lora_base)
    trunk = changes.get("shared_trunk", False)
    scored = score(bench, base, rollouts, LENGTH, critic=ref, lora_base=lora_base, shared_trunk=trunk)
    assert max(abs(v) for row in rows(scored) for v in row["values"]) > 0
    bench.models = ResidentModels()
    experience = advantages(bench, [scored], base, kl_coef=0.0)
    # A step of no size: the checkpoint has the critic that it was given.
    settings = {"temperature": SAMPLING.temperature, "learning_rate": 1e-30, "critic_learning_rate": 1e-30}
    done = bench.run(
        "update_policy",
        UpdatePolicyConfig(
            ppo=PPOConfig(epochs=1, num_minibatches=1), weight_decay=0.0, **with_access({**settings, **changes})
        ),
        place=Place(1, 1),
        experience=experience,
        policy=base,
        critic=ref,
        reference=None,
        lora_base=lora_base,
    )
    names = {path.name for path in (ref.directory / "critic").glob("*.safetensors")}
    assert len(names) == 1
    for name in names:
        before, after = (load_file(str(x.directory / "critic" / name)) for x in (ref, done))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
