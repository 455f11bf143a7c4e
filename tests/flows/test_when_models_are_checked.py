"""When a run looks at its models, and what it asks of them."""

import json

import pytest
import torch
from conftest import TINY, overrides
from fake_runs import document, finished_run
from test_bad_models import a_model
from transformers import LlamaForSequenceClassification

from flows.config.reading import checked
from flows.orchestration.session import Session
from flows.plan.calls import model_checks, stage_call, with_code_digests
from flows.round import rlhf_round
from flows.state import Externals
from tasks.config.execution import ExecutionConfig
from tasks.config.model_access import ModelChecks
from tasks.contract.failures import StageError
from tasks.store.manifest import Ref

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def a_reward_model(directory, model):
    """A sequence classifier with the tokenizer of ``model``."""
    for path in model.glob("tokenizer*"):
        directory.mkdir(exist_ok=True)
        (directory / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(0)
    LlamaForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(directory)
    return directory


# What is asked


def asked(tmp_path, externals=(), **changes):
    config = checked(document(tmp_path, **changes), where="test")
    named = {"base": None, "critic": None, "reward_model_base": None, "rewards": {}, "held_out_rewards": {}}
    return model_checks(config, Externals(**{**named, **dict(externals)}), None)


def test_a_run_that_names_no_model_asks_nothing(tmp_path):
    assert asked(tmp_path) == ModelChecks(max_new_tokens=4, scalar_policy=True, critic_is_reward_model=True)


WITHOUT_REWARD_MODEL = {"reward_model": None, "rewards": {"q": {"function": "flows.presets.quickstart:true_quality"}}}
GRPO = {"algorithm": "grpo", "rollouts": {"samples_per_prompt": 2, "sampling": {"max_new_tokens": 4}}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (WITHOUT_REWARD_MODEL, {"scalar_policy": True, "critic_is_reward_model": False}),
        ({**WITHOUT_REWARD_MODEL, **GRPO}, {"scalar_policy": False, "critic_is_reward_model": False}),
        ({**GRPO}, {"scalar_policy": True, "critic_is_reward_model": False}),
        (
            {**WITHOUT_REWARD_MODEL, "model": {"policy": "p", "shared_trunk": True}},
            {"scalar_policy": False, "shared_trunk": True},
        ),
        (
            {**WITHOUT_REWARD_MODEL, "model": {"policy": "p", "lora": {"target_modules": ["q_proj"]}}},
            {"scalar_policy": False, "adapted_layers": ("q_proj",)},
        ),
        (
            {"model": {"policy": "p", "critic": "policy", "trust_remote_code": True}},
            {"scalar_policy": True, "critic_is_reward_model": False, "trust_remote_code": True},
        ),
        (
            {"execution": {"gradient_checkpointing": True}},
            {"execution": ExecutionConfig(gradient_checkpointing=True)},
        ),
    ],
)
def test_what_is_asked_follows_from_the_configuration(tmp_path, changes, expected):
    checks = asked(tmp_path, **changes)
    assert {name: getattr(checks, name) for name in expected} == expected


def test_each_model_is_asked_for_by_the_field_that_names_it(tmp_path):
    refs = {name: Ref(f"/models/{name}", name) for name in ("base", "critic", "reward_model_base")}
    checks = asked(
        tmp_path,
        {
            **refs,
            "rewards": {"c": Ref("/models/c", "c"), "a": Ref("/models/a", "a")},
            "held_out_rewards": {"b": Ref("/models/b", "b")},
        },
        model={"policy": "p", "critic": "q"},
        reward_model={"base": "r"},
        rewards={"c": {"model": "c"}, "preference": {"model": "trained"}, "a": {"model": "a"}},
        evaluation={"held_out_rewards": {"b": {"model": "b"}}},
    )
    assert (checks.policy, checks.critic, checks.reward_model_base) == (
        "/models/base",
        "/models/critic",
        "/models/reward_model_base",
    )
    assert dict(checks.reward_models) == {
        "rewards.a.model": "/models/a",
        "rewards.c.model": "/models/c",
        "evaluation.held_out_rewards.b.model": "/models/b",
    }
    assert not checks.scalar_policy


# When it is looked


class Watching:
    """An observer and a worker at once that note what happens; a stage that would execute is refused."""

    def __init__(self, mistake=None):
        self.seen = []
        self.mistake = mistake

    def check_models(self, checks, *, timeout_s, is_cancelled):
        self.seen.append(
            ("looked", None if checks.data is None else checks.data.rpartition("stages/")[2].split("/")[1])
        )
        if self.mistake:
            raise StageError("user", self.mistake)

    def run(self, call, **_):
        self.seen.append(("executes", call.stage))
        raise StageError("user", "not here")

    def __getattr__(self, name):
        return lambda *_, **__: None


def what_happens(tmp_path, *, stop_before=None, mistake=None):
    """What a session does about a run that is finished, or finished before some stage."""
    run = finished_run(tmp_path, "run", document(tmp_path), stop_before=stop_before)
    watching = Watching(mistake)
    named = Externals(base=None, critic=None, reward_model_base=None, rewards={}, held_out_rewards={})
    config = with_code_digests(run.config)
    session = Session(run, config, watching, watching, named)
    session.workers = watching

    def call(stage, place, settings, **inputs):
        done = session._supervise(stage_call(run, config, stage, place, settings, run.generations), inputs)
        return done.data

    state = None
    try:
        for number in range(1, config.rounds + 1):
            state = rlhf_round(call, config, number, state, named)
    except StageError as error:
        watching.seen.append(("failed", error.message))
    return watching.seen


def test_where_all_is_committed_nothing_is_looked_at(tmp_path):
    assert what_happens(tmp_path) == []


def test_models_are_looked_at_before_the_first_stage_executes(tmp_path):
    seen = what_happens(tmp_path, stop_before=("prepare_data", 1, 0))
    assert seen == [("looked", None), ("executes", "prepare_data"), ("failed", "not here")]


def test_with_data_that_is_there_models_are_looked_at_together_with_it(tmp_path):
    seen = what_happens(tmp_path, stop_before=("score_rollouts", 1, 1))
    assert seen == [("looked", "prepare_data"), ("executes", "score_rollouts"), ("failed", "not here")]


def test_a_mistake_is_told_and_nothing_executes(tmp_path):
    seen = what_happens(tmp_path, stop_before=("update_policy", 2, 1), mistake="rewards.r.model: no")
    assert seen == [("looked", "prepare_data"), ("failed", "rewards.r.model: no")]


# The command


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A policy that reads conversations, and a reward model that does not."""
    root = tmp_path_factory.mktemp("models")
    policy = a_model(root / "policy")
    reward = a_reward_model(root / "reward", policy)
    (policy / "chat_template.jinja").write_text(CHATML)
    rows = [{"prompt": [{"role": "user", "content": f"where is lamp {i}?"}]} for i in range(6)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return policy, reward, root / "prompts.jsonl"


def arguments(world, rewards):
    policy, _, prompts = world
    settings = {
        "model": f"{{policy: {policy}}}",
        "algorithm": "reinforce",
        "warm_up": "null",
        "reward_model": "null",
        "data": f"{{prompts: [{prompts}], num_held_out_prompts: 1}}",
        "rounds": 1,
        "iterations": 1,
        "rewards": rewards,
        "evaluation": "{}",
        "rollouts": "{prompts_per_iteration: 2, sampling: {max_new_tokens: 4}}",
        "ppo": "{epochs: 1, num_minibatches: 1}",
        "advantages": "{kl_coef: 0.0}",
    }
    return overrides(settings)


def test_a_reward_model_that_cannot_read_the_prompts_is_told_before_anything_is_made(home, world):
    done = home.rounds("run", TINY, "--name", "deaf", *arguments(world, f"{{r: {{model: {world[1]}}}}}"), code=2)
    told = done.stderr.splitlines()[-1]
    assert told.startswith("error: rewards.r.model: prompt ")
    assert "is a list of messages, but the tokenizer of" in told
    assert "has no chat template" in told
    assert not (home.path / "runs" / "deaf").exists()


@pytest.mark.slow
def test_a_reward_model_that_is_named_later_is_looked_at_too(home, world):
    function = "{q: {function: 'flows.presets.stories:variety'}}"
    home.rounds("run", TINY, "--name", "later", *arguments(world, function))
    before = home.digests("later")
    both = function.replace("}}", f"}}, r: {{model: {world[1]}}}}}")
    done = home.rounds("run", TINY, "--name", "later", *arguments(world, both), code=2)
    assert "error: rewards.r.model: prompt " in done.stderr
    assert home.digests("later") == before
