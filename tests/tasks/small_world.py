"""What the stage tests build on: tiny models and tokenizers made on the spot, and a way to run one stage."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ppo_core import PPOConfig, SamplingConfig
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.base import StageConfig
from tasks.config.data import DataConfig, FromScratchConfig, PrepareDataConfig, Source
from tasks.config.execution import ExecutionConfig, HealthConfig
from tasks.config.model_access import ModelAccess
from tasks.config.rewards import FunctionReward, ScoreRolloutsConfig
from tasks.config.rollouts import GenerateRolloutsConfig
from tasks.config.training import TrainRewardModelConfig
from tasks.config.update import UpdatePolicyConfig
from tasks.contract.execution import run_stage
from tasks.contract.resident import ResidentModels
from tasks.contract.stage import StageContext
from tasks.data.shapes.records import Text
from tasks.models.from_scratch import make_model
from tasks.stages import STAGES
from tasks.store.data_sets import read_dataset
from tasks.store.digests import digest_file, digest_files
from tasks.store.manifest import Place, Recipe, Ref, input_digests
from tasks.store.store import Store
from tasks.worker.ranks import train_together

WORDS = ("the", "is", "on", "under", "by", "door", "thank", "you", "go", "away", "now", "glad", "to", "help", "table")
TEXTS = [f"the {a} {b} is on the {c}. thank you" for a in ("red", "blue") for b in ("lamp", "clock") for c in WORDS]


def a_model(directory: Path, *, family: str = "llama", seed: int = 0, context_length: int = 64) -> Ref:
    """A causal language model with a byte-level tokenizer, as an external reference."""
    texts = [Text(prompt=None, response=text, place="") for text in TEXTS]
    shape = FromScratchConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
    make_model(directory, shape.model_copy(update={"context_length": context_length}), texts, seed=seed)
    if family == "gpt2":
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=context_length, bos_token_id=1, eos_token_id=2,
            pad_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(str(directory))
    return external(directory)


def external(directory: Path) -> Ref:
    """A directory as ``model_ref`` would name it."""
    files = {path.name: digest_file(path) for path in sorted(directory.iterdir()) if path.is_file()}
    return Ref(str(directory), digest_files(files))


class Workbench:
    """Runs single stages and commits what they make."""

    def __init__(self, root: Path, *, micro_batch_tokens: int = 4096, seed: int = 7) -> None:
        self.store = Store(root)
        self.execution = ExecutionConfig(device="cpu", micro_batch_tokens=micro_batch_tokens)
        self.health = HealthConfig()
        self.seed = seed
        self.models = ResidentModels()
        self.events: list[Any] = []

    def run(self, name: str, config: StageConfig, *, place: Place = Place(1, 1), **inputs: Any) -> Ref:
        recipe = Recipe(
            stage=name,
            version=STAGES[name].version,
            place=place,
            seed=self.seed,
            settings=json.loads(config.model_dump_json()),
            inputs=input_digests(inputs),
        )
        scratch = self.store.scratch(recipe)
        context = StageContext(
            output=scratch,
            place=place,
            run_seed=self.seed,
            execution=self.execution,
            health=self.health,
            resident=self.models,
            report=self.events.append,
            together=train_together,
        )
        output = run_stage(name, context, recipe.settings, inputs)
        return self.store.commit(recipe, scratch, inputs=inputs, rows=output.rows, metrics=output.metrics, seconds=0.0)

    def metrics(self, ref: Ref) -> dict[str, float]:
        return dict(json.loads((ref.directory / "manifest.json").read_text())["metrics"])


SAMPLING = SamplingConfig(max_new_tokens=10)


def write_rows(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def a_prompt(i):
    return {"prompt": f"where is the {('red', 'blue')[i % 2]} lamp {i}?", "answer": i}


def a_preference(i):
    good, bad = f" on the table. thank you {i}", f" go away now {i}"
    if i % 4:
        return {"prompt": f"question {i}:", "chosen": good, "rejected": bad}
    responses = [bad, good, good + "!", bad + "!"]
    return {"prompt": f"question {i}:", "responses": responses, "ranks": [3, 1, 1, 3]}


def make_world(root):
    """A bench to run stages on, a model, its data prepared, and how; to be shared, since a stage changes no input."""
    base = a_model(root / "model")
    config = prepare_config(root)
    bench = Workbench(root / "run")
    return bench, base, bench.run("prepare_data", config, place=Place(1), base=base), config


def prepare_config(root, *, num_prompts=20, **changes):
    settings = {
        "prompts": (Source(path=write_rows(root / "prompts.jsonl", [a_prompt(i) for i in range(num_prompts)])),),
        "preferences": (Source(path=write_rows(root / "pairs.jsonl", [a_preference(i) for i in range(40)])),),
        "texts": (
            Source(path=write_rows(root / "texts.jsonl", [{"text": f"the lamp is red {i}"} for i in range(20)])),
        ),
        "num_held_out_prompts": 4,
    }
    return PrepareDataConfig(data=DataConfig(**{**settings, **changes}), response_tokens=10)


def rows(ref, name="rollouts"):
    return read_dataset(ref.directory / name).to_pylist()


def with_access(settings):
    """Settings of a stage, with those of how its models are loaded where they belong."""
    access = {name: settings[name] for name in ModelAccess.model_fields if name in settings}
    return {"access": ModelAccess(**access), **{name: value for name, value in settings.items() if name not in access}}


def generate(bench, base, data, lora_base=None, iteration=1, **changes):
    config = GenerateRolloutsConfig(**with_access({"prompts_per_iteration": 6, "sampling": SAMPLING, **changes}))
    places = [Place(1, iteration, shard) for shard in range(config.shards)]
    inputs = {"policy": base, "data": data, "lora_base": lora_base}
    return [bench.run("generate_rollouts", config, place=place, **inputs) for place in places]


def score(bench, base, rollouts, rewards, *, reference=None, reward_model=None, external=None, **inputs):
    """``critic=None`` leaves the critic out; by default it starts from the policy."""
    settings = with_access({name: inputs.pop(name, False) for name in ("exact_kl", "shared_trunk")})
    return bench.run(
        "score_rollouts",
        ScoreRolloutsConfig(rewards=rewards, temperature=SAMPLING.temperature, **settings),
        place=Place(1, 1, 0),
        **{
            "rollouts": rollouts,
            "policy": base,
            "reference": reference or base,
            "critic": base,
            "reward_model": reward_model,
            "external": external or {},
            **inputs,
        },
    )


def length_reward(prompts, responses, rows):
    return [float(len(response)) for response in responses]


def answer_reward(prompts, responses, rows):
    return [float(row["answer"]) for row in rows]


LENGTH = {"length": FunctionReward(function="small_world:length_reward")}


def train_reward_model(bench, base, data, **changes):
    settings = {"epochs": 8, "learning_rate": 3e-3, "batch_size": 8, "calibration_samples": 32, "sampling": SAMPLING}
    config = TrainRewardModelConfig(**with_access({**settings, **changes}))
    return bench.run("train_reward_model", config, place=Place(1), base=base, reference=base, data=data)


def advantages(bench, scored, checkpoint, *, place=Place(1, 1), **settings):
    config = ComputeAdvantagesConfig(**settings)
    return bench.run("compute_advantages", config, place=place, scored=scored, checkpoint=checkpoint)


def an_update(
    bench, base, data, *, start=None, reference=None, iteration=1, experience=None, treatment=None, **changes
):
    """One iteration from ``start`` (a checkpoint; the base by default) to the next checkpoint."""
    start = start or base
    algorithm = changes.pop("algorithm", "ppo")
    lora_base = base if changes.get("lora") else None
    critic = start if algorithm == "ppo" else None
    if experience is None:
        (rollouts,) = generate(bench, start, data, lora_base, samples_per_prompt=1 if algorithm == "ppo" else 3)
        models = {"critic": critic, "reference": reference or base, "lora_base": lora_base}
        scored = score(bench, start, rollouts, LENGTH, **models, shared_trunk=changes.get("shared_trunk", False))
        place = Place(1, iteration)
        experience = advantages(bench, [scored], start, place=place, algorithm=algorithm, **(treatment or {}))
    settings = {
        "ppo": PPOConfig(epochs=2, num_minibatches=2),
        "temperature": SAMPLING.temperature,
        "learning_rate": 1e-2,
        "critic_learning_rate": 1e-2,
        "weight_decay": 0.0,
    }
    config = UpdatePolicyConfig(**with_access({**settings, **changes}))
    exact = config.ppo.kl_loss_coef > 0 and config.ppo.kl_loss_estimator == "exact"
    return bench.run(
        "update_policy",
        config,
        place=Place(1, iteration),
        experience=experience,
        policy=start,
        critic=critic,
        reference=(reference or base) if exact else None,
        lora_base=lora_base,
    )
