"""What a run would execute, and why: on runs whose stages are committed without a model, by the flows themselves."""

import dataclasses
import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest

from flows.config.reading import load_config
from flows.outcomes import stage_statuses
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.plan.plan import Planner, forced_by, make_plan
from flows.round import rlhf_round
from flows.runs.workspace import Run, create_or_open
from tasks.config.advantages import AdvantagesConfig
from tasks.config.rollouts import GenerateRolloutsConfig
from tasks.errors import ConfigError, ModelError
from tasks.stages import STAGES
from tasks.store.manifest import Manifest, Place, Ref

TINY = str(Path(__file__).parent / "tiny.yaml")
# tiny.yaml has two rounds of two iterations; new preferences come in the second.
ITERATION = ("generate_rollouts", "score_rollouts", "compute_advantages", "update_policy")
CLOSING = ("evaluate_policy", "report_round")


def iteration(number, index, *, since="generate_rollouts"):
    """From a stage on; the audit reads the scored rollouts, and nothing that trains reads the audit."""
    stages = ITERATION[ITERATION.index(since) :]
    return {(stage, number, index) for stage in (*stages, *["audit_rollouts"] * ("score_rollouts" in stages))}


def closing(number, *stages):
    return {(stage, number, 0) for stage in stages or CLOSING}


def after(number, index, *, rounds=2, iterations=2):
    """All that an update leads to: the next iterations, the round's end, and the same of each later round."""
    later = {x for i in range(index + 1, iterations + 1) for x in iteration(number, i)} | closing(number)
    if number < rounds:
        later |= iteration(number + 1, 1) | after(number + 1, 1, rounds=rounds, iterations=iterations)
    return later


def since(stage, number=1, index=1):
    return iteration(number, index, since=stage) | after(number, index)


DATA = {("prepare_data", 1, 0), ("prepare_data", 2, 0)}
WARM_UP = {("warm_up", 1, 0)}
REWARD_MODELS = {("train_reward_model", 1, 0), ("train_reward_model", 2, 0)}
AUDITED_FIRST = {("audit_rollouts", 1, index) for index in (1, 2)}
AUDITS = AUDITED_FIRST | {("audit_rollouts", 2, index) for index in (1, 2)}
PRETRAINED = {("critic_pretraining", 1, 0)}
ALL = DATA | WARM_UP | REWARD_MODELS | PRETRAINED | since("generate_rollouts")
# What the critic learns first decides all values, but the first rollouts are the policy's alone.
FROM_CRITIC = PRETRAINED | since("score_rollouts")


class Commit:
    """Calls a stage by committing a file that is another one for another recipe, and notes that it did."""

    def __init__(self, run, config, *, limit=None, constant=()):
        self.run, self.config, self.limit, self.constant = run, config, limit, constant
        self.executed = []

    def __call__(self, stage, place, settings, **inputs):
        call = stage_call(self.run, self.config, stage, place, settings, self.run.generations).with_inputs(inputs)
        recipe = call.recipe()
        if (done := self.run.store.find(recipe)) is not None:
            return done
        if self.limit == len(self.executed):
            raise Interrupted
        self.executed.append((stage, place.round, place.iteration))
        scratch = self.run.store.scratch(recipe)
        (scratch / "output").write_text(recipe.directory if stage in self.constant else recipe.fingerprint)
        return self.run.store.commit(recipe, scratch, inputs=inputs, rows=1, metrics={"made": 2.0}, seconds=1.5)


class Interrupted(Exception):
    pass


def carry_out(run, config, **options):
    """Carry a run out; what it executed, in order. With a limit, it is interrupted after so many stages."""
    run.set_config(config)
    config = with_code_digests(config)
    commit = Commit(run, config, **options)
    state, externals = None, external_models(config, run.home)
    try:
        for number in range(1, config.rounds + 1):
            state = rlhf_round(commit, config, number, state, externals)
    except Interrupted:
        assert "limit" in options
    return commit.executed


def planned(run, config):
    """What would execute, with each reason."""
    stages = [p for p in make_plan(run, config).stages if p.ref is None]
    return {(p.stage, p.place.round, p.place.iteration): p.reason for p in stages}


QUALITY = """
def quality(prompts, responses, rows):
    return [-float(len(response)) for response in responses]
"""
# The world of tiny.yaml in files of its own, so that nothing outside these tests decides what they find.
FILES = {
    "prompts.jsonl": '{"prompt": "a"}\n',
    "other_prompts.jsonl": '{"prompt": "b"}\n',
    "preferences.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
    "later.jsonl": '{"prompt": "b", "chosen": "c", "rejected": "d"}\n',
    "texts.jsonl": '{"text": "a b c"}\n',
    "plan_rewards.py": QUALITY,
}
IN_FILES = (
    "data.prompts=[prompts.jsonl]",
    "data.texts=[texts.jsonl]",
    "data.preferences=[preferences.jsonl, {path: later.jsonl, from_round: 2}]",
    "rewards.quality.function=plan_rewards:quality",
    "evaluation.held_out_rewards={true_quality: {function: 'plan_rewards:quality'}}",
)


def tiny(*overrides):
    return load_config(TINY, [*IN_FILES, *overrides])


@pytest.fixture(autouse=True, scope="module")
def world(tmp_path_factory):
    """The current directory with the files; and no flushing to the disk, which here takes longer than all else."""
    directory = tmp_path_factory.mktemp("world")
    for name, text in FILES.items():
        (directory / name).write_text(text)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(directory)
        monkeypatch.syspath_prepend(directory)
        monkeypatch.setattr("tasks.store.files.flush", lambda path: None)
        yield


@pytest.fixture(scope="module")
def template(world, tmp_path_factory):
    run = create_or_open(tmp_path_factory.mktemp("template"), "run")
    carry_out(run, tiny())
    return run


@pytest.fixture
def finished(template, tmp_path):
    """A run that went through, of a test's own."""
    shutil.copytree(template.home, tmp_path / "home")
    return Run(tmp_path / "home" / "runs" / "run")


@pytest.fixture
def fresh(tmp_path):
    return create_or_open(tmp_path / "home", "run")


# What there is to do


def test_an_empty_run_has_everything_to_do_in_the_order_of_the_flow(fresh):
    plan = make_plan(fresh, tiny())
    labels = [f"{p.stage}-{p.place.label}" for p in plan.stages]
    assert labels[:11] == [
        "prepare_data-r1",
        "warm_up-r1",
        "train_reward_model-r1",
        "critic_pretraining-r1",
        "generate_rollouts-r1.i1.s0",
        "generate_rollouts-r1.i1.s1",
        "score_rollouts-r1.i1.s0",
        "score_rollouts-r1.i1.s1",
        "compute_advantages-r1.i1",
        "update_policy-r1.i1",
        "audit_rollouts-r1.i1",
    ]
    assert labels[18:22] == ["evaluate_policy-r1", "report_round-r1", "prepare_data-r2", "train_reward_model-r2"]
    assert len(labels) == len(set(labels)) == 38
    assert {p.reason for p in plan.stages} == {"not run yet"}
    assert set(planned(fresh, tiny())) == ALL


def test_another_lag_keeps_what_comes_from_the_same_policies_and_says_why_the_rest_executes(fresh):
    settings = ("rounds=1", "iterations=3", "rollouts.shards=1")
    carry_out(fresh, tiny(*settings))
    lagging = tiny(*settings, "rollouts.lag=1")
    # Iteration 2 samples from the policy that the round starts from, as iteration 1 does at any lag.
    reasons = planned(fresh, lagging)
    assert set(reasons) == iteration(1, 2) | iteration(1, 3) | closing(1)
    assert reasons["generate_rollouts", 1, 2] == "input policy changed"
    # From checkpoint 1, which stays what it is.
    assert reasons["generate_rollouts", 1, 3] == "input policy changed"
    assert reasons["score_rollouts", 1, 2] == "input generate_rollouts changes"
    carry_out(fresh, lagging)
    assert planned(fresh, lagging) == {}
    further = set(planned(fresh, tiny(*settings, "rollouts.lag=2")))
    assert further == iteration(1, 3) | closing(1)
    assert planned(fresh, tiny(*settings)) == {}


def test_with_a_lag_an_update_that_is_forced_spares_the_rollouts_that_do_not_wait_for_it(fresh):
    config = tiny("rounds=1", "iterations=4", "rollouts.shards=1", "rollouts.lag=1")
    carry_out(fresh, config)
    forced = forced_by(make_plan(fresh, config), "update_policy", round=1, iteration=2)
    assert {(p.stage, p.place.round, p.place.iteration) for p in forced} == (
        {("update_policy", 1, 2)} | iteration(1, 3, since="score_rollouts") | iteration(1, 4) | closing(1)
    )


def test_planning_writes_nothing_into_the_run(fresh):
    make_plan(fresh, tiny())
    assert list(fresh.root.iterdir()) == []


def test_a_finished_run_has_nothing_to_do(finished):
    assert planned(finished, tiny()) == {}
    assert carry_out(finished, tiny()) == []
    assert all(p.ref is not None and p.reason == "" for p in make_plan(finished, tiny()).stages)


@pytest.mark.parametrize("done", [0, 1, 3, 8, 9, 22])
def test_an_interrupted_run_goes_on_where_it_stopped(fresh, done):
    first = carry_out(fresh, tiny(), limit=done)
    assert len(first) == done
    reasons = planned(fresh, tiny())
    assert set(reasons.values()) == {"not run yet"}
    # Of two shards that share a stage and place, one may be done.
    assert set(reasons) | set(first) == ALL
    rest = carry_out(fresh, tiny())
    assert len(first) + len(rest) == 38
    assert set(rest) == set(reasons)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("advantages.lam=0.5", since("compute_advantages")),
        ("advantages.critic_lam=0.9", since("compute_advantages")),
        ("advantages.gamma=0.9", FROM_CRITIC),
        ("advantages.kl_coef=0.2", since("compute_advantages")),
        ("advantages.kl_target=6", since("compute_advantages")),
        ("advantages.normalize_scores=true", FROM_CRITIC),
        # The KL over the whole vocabulary needs the models that score.
        ("advantages.kl_estimator=exact", since("score_rollouts")),
        ("rewards.quality.weight=0.7", FROM_CRITIC),
        ("rewards.more={function: 'plan_rewards:quality'}", FROM_CRITIC),
        ("rollouts.samples_per_prompt=2", since("generate_rollouts")),
        ("rollouts.prompts_per_iteration=7", since("generate_rollouts")),
        ("rollouts.shards=1", since("generate_rollouts")),
        # A reward model is calibrated on responses that are sampled in the same way.
        ("rollouts.sampling.temperature=0.7", REWARD_MODELS | PRETRAINED | since("generate_rollouts")),
        ("rollouts.sampling.top_k=5", REWARD_MODELS | PRETRAINED | since("generate_rollouts")),
        ("rollouts.stop_strings=[stop]", REWARD_MODELS | PRETRAINED | since("generate_rollouts")),
        # Without a critic, nothing has values.
        ("algorithm=reinforce", since("score_rollouts")),
        ("model.critic=policy", FROM_CRITIC),
        ("critic_pretraining.epochs=2", FROM_CRITIC),
        ("critic_pretraining=null", since("score_rollouts")),
        # As it is by default.
        ("model.critic=reward_model", set()),
        # A prompt has to leave room for the response.
        ("rollouts.sampling.max_new_tokens=9", ALL),
        # The critic starts from the reward model; the first rollouts are the policy's alone.
        ("reward_model.epochs=2", REWARD_MODELS | FROM_CRITIC),
        # The second round's data is prepared for the model that the warm-up made.
        ("warm_up.epochs=2", ALL - {("prepare_data", 1, 0)}),
        ("warm_up=null", ALL - {("prepare_data", 1, 0)} - WARM_UP),
        ("optimizers.learning_rate=0.1", since("update_policy")),
        # By default, also the rate at which the critic is pre-trained.
        ("optimizers.critic_learning_rate=0.1", FROM_CRITIC),
        ("optimizers.weight_decay=0.1", since("update_policy")),
        ("ppo.epochs=3", since("update_policy")),
        ("ppo.kl_loss_estimator=exact", since("update_policy")),
        ("optimizers.critic_warmup=1", since("update_policy")),
        # The first of two iterations has the full rate on any schedule.
        ("optimizers.decay=linear", since("update_policy", 1, 2)),
        ("evaluation.samples_per_prompt=2", closing(1) | closing(2)),
        ("evaluation.held_out_rewards={}", AUDITS | closing(1) | closing(2)),
        ("evaluation.held_out_rewards.more={function: 'plan_rewards:quality'}", AUDITS | closing(1) | closing(2)),
        ("report.num_samples=3", closing(1, "report_round") | closing(2, "report_round")),
        ("data.num_held_out_prompts=5", ALL),
        ("data.prompts=[other_prompts.jsonl]", ALL),
        ("data.prompts=[{path: prompts.jsonl, limit: 3}]", ALL),
        # What only the second round knows.
        (
            "data.preferences.1.path=other_prompts.jsonl",
            {("prepare_data", 2, 0), ("train_reward_model", 2, 0)} | since("generate_rollouts", 2, 1),
        ),
        ("seed=4", ALL),
        ("model.trust_remote_code=true", ALL),
        ("execution.dtype=bfloat16", ALL),
        ("execution.head_dtype=bfloat16", ALL),
        *((f"health.{limit}", set()) for limit in ("action=warn", "max_kl=1", "min_entropy=50", "max_approx_kl=1")),
        ("health.max_ratio_deviation=0.1", set()),
        ("execution.device=cpu", set()),
        ("execution.micro_batch_tokens=100", set()),
        ("execution.retries=0", set()),
        ("execution.stage_timeout_s=60", set()),
        ("tracking.experiment=other", set()),
        ("rounds=1", set()),
        ("rounds=3", {x for i in (1, 2) for x in iteration(3, i)} | closing(3)),
        ("iterations=1", closing(1) | iteration(2, 1) | closing(2)),
        ("iterations=3", iteration(1, 3) | after(1, 3, iterations=3)),
    ],
)
def test_a_changed_setting_recomputes_what_depends_on_it_and_nothing_else(finished, change, expected):
    reasons = planned(finished, tiny(change))
    assert set(reasons) == expected
    # The plan does not change what it is of, and what it says is what then happens.
    assert planned(finished, tiny()) == {}
    assert set(carry_out(finished, tiny(change))) == expected
    assert planned(finished, tiny(change)) == {}
    # Going back costs nothing.
    assert carry_out(finished, tiny()) == []


def test_unchanged_content_stops_the_recomputing_early(fresh):
    same = {"constant": ("prepare_data",)}
    carry_out(fresh, tiny(), **same)
    changed = tiny("data.held_out_preferences=0.3")
    # Nobody can know before it has run that it will make the same.
    assert set(planned(fresh, changed)) == ALL
    assert set(carry_out(fresh, changed, **same)) == DATA
    assert planned(fresh, changed) == {}


def test_an_output_that_lost_a_file_is_made_again_and_what_follows_is_kept(finished):
    (warm_up,) = make_plan(finished, tiny()).select("warm_up")
    (warm_up.ref.directory / "output").unlink()
    reasons = planned(finished, tiny())
    assert reasons["warm_up", 1, 0] == "output is damaged"
    assert carry_out(finished, tiny()) == [("warm_up", 1, 0)]


# Why


@pytest.mark.parametrize(
    ("changes", "stage", "reason"),
    [
        (["advantages.lam=0.5"], ("compute_advantages", 1, 1), "lam: 0.95 → 0.5"),
        (["advantages.lam=0.5"], ("update_policy", 1, 1), "input compute_advantages changes"),
        (["advantages.lam=0.5"], ("compute_advantages", 1, 2), "input score_rollouts changes"),
        (
            ["advantages.lam=0.5", "advantages.kl_coef=0.2"],
            ("compute_advantages", 1, 1),
            "kl_coef: 0.05 → 0.2, lam: 0.95 → 0.5",
        ),
        (["rewards.quality.weight=0.7"], ("critic_pretraining", 1, 0), "scoring.rewards.quality.weight: 0.5 → 0.7"),
        (["rewards.quality.weight=0.7"], ("score_rollouts", 1, 1), "input critic_pretraining changes"),
        (["rollouts.sampling.temperature=0.7"], ("generate_rollouts", 1, 1), "sampling.temperature: 1.0 → 0.7"),
        (["ppo.epochs=3"], ("update_policy", 1, 1), "ppo.epochs: 2 → 3"),
        (["ppo.dual_clip=3"], ("update_policy", 1, 1), "ppo.dual_clip: null → 3.0"),
        (["execution.dtype=float32"], ("warm_up", 1, 0), "input prepare_data changes"),
        (["execution.dtype=float32"], ("prepare_data", 1, 0), "dtype: auto → float32"),
        (["seed=4"], ("prepare_data", 1, 0), "seed: 3 → 4"),
        (["seed=4", "data.num_held_out_prompts=5"], ("prepare_data", 1, 0), "seed: 3 → 4"),
        (["rounds=3"], ("generate_rollouts", 3, 1), "not run yet"),
        (["iterations=3"], ("update_policy", 1, 3), "not run yet"),
        (["iterations=3"], ("evaluate_policy", 1, 0), "input update_policy changes"),
    ],
)
def test_the_reason_names_what_changed(finished, changes, stage, reason):
    assert planned(finished, tiny(*changes))[stage] == reason


def test_of_a_long_value_the_reason_has_the_beginning_and_a_digest(finished):
    # As in JSON: brackets, quotes and 500 letters.
    text = f'["{"x" * 500}"]'
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    reason = planned(finished, tiny(f"rollouts.stop_strings={text}"))["generate_rollouts", 1, 1]
    assert reason == f'stop_strings: [] → ["{"x" * 22}… (digest {digest})'


def test_the_reason_names_sources_that_came_and_went_and_fields_of_those_that_stayed(finished, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "a"}\n')
    reasons = planned(finished, tiny(f"data.prompts=[prompts.jsonl, {tmp_path}/more.jsonl]"))
    assert reasons["prepare_data", 1, 0] == f"data.prompts: with {tmp_path}/more.jsonl"
    reasons = planned(finished, tiny("data.prompts=[{path: prompts.jsonl, limit: 5}]"))
    assert reasons["prepare_data", 1, 0] == "data.prompts.0.limit: null → 5"


def test_an_input_that_has_changed_already_is_the_reason_after_an_interruption(finished):
    carry_out(finished, tiny("advantages.lam=0.5"), limit=1)
    reasons = planned(finished, tiny("advantages.lam=0.5"))
    assert ("compute_advantages", 1, 1) not in reasons
    assert reasons["update_policy", 1, 1] == "input experience changed"


def test_the_reason_is_against_the_variant_that_was_made_last(finished):
    carry_out(finished, tiny("advantages.lam=0.5"))
    assert planned(finished, tiny("advantages.lam=0.6"))["compute_advantages", 1, 1] == "lam: 0.5 → 0.6"


def changed_stage(monkeypatch, name, **changes):
    rows = [dataclasses.replace(row, **changes) if row.name == name else row for row in STAGES]
    monkeypatch.setattr(STAGES, "rows", tuple(rows))


def test_another_version_of_a_stage_makes_its_outputs_anew(finished, monkeypatch):
    before = STAGES["evaluate_policy"].version
    changed_stage(monkeypatch, "evaluate_policy", version="next")
    reasons = planned(finished, tiny())
    assert set(reasons) == closing(1) | closing(2)
    assert reasons["evaluate_policy", 1, 0] == f"stage version {before} → next"


class NewerGenerateRolloutsConfig(GenerateRolloutsConfig):
    """As a later release may have it."""

    neutral: int = 0


def test_a_release_that_adds_a_setting_leaves_a_finished_run_finished(finished, monkeypatch):
    monkeypatch.setattr("flows.iteration.GenerateRolloutsConfig", NewerGenerateRolloutsConfig)
    changed_stage(monkeypatch, "generate_rollouts", config=NewerGenerateRolloutsConfig)
    assert planned(finished, tiny()) == {}


def test_a_setting_that_differs_from_a_new_field_s_default_recomputes(finished, monkeypatch):
    class Decided(NewerGenerateRolloutsConfig):
        def __init__(self, **settings):
            super().__init__(**settings, neutral=5)

    monkeypatch.setattr("flows.iteration.GenerateRolloutsConfig", Decided)
    changed_stage(monkeypatch, "generate_rollouts", config=NewerGenerateRolloutsConfig)
    reasons = planned(finished, tiny())
    assert reasons["generate_rollouts", 1, 1] == "neutral: 0 → 5"


# Data, code and models from outside


def digest_of_lines(text):
    """Of one file: its ending, and the digest of its bytes."""
    own = hashlib.sha256(text.encode()).hexdigest()
    return hashlib.sha256(f'["files", [[".jsonl", "{own}"]]]'.encode()).hexdigest()


def test_data_counts_by_its_content(fresh, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    config = tiny(f"data.prompts=[{prompts}]")
    carry_out(fresh, config)
    os.utime(prompts, (1, 1))
    assert planned(fresh, config) == {}
    prompts.write_text('{"prompt": "a"}\n{"prompt": "c"}\n')
    reasons = planned(fresh, config)
    assert set(reasons) == ALL
    old, new = (digest_of_lines(f'{{"prompt": "a"}}\n{{"prompt": "{second}"}}\n') for second in "bc")
    assert reasons["prepare_data", 1, 0] == f"content of prompts.jsonl: {old[:8]} → {new[:8]}"


@pytest.mark.parametrize(
    ("where", "expected"),
    [("rewards", FROM_CRITIC), ("evaluation.held_out_rewards", AUDITS | closing(1) | closing(2))],
)
def test_an_edited_reward_function_scores_anew_but_a_comment_costs_nothing(
    fresh, tmp_path, monkeypatch, where, expected
):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / f"edited_{where.replace('.', '_')}.py"
    module.write_text(QUALITY)
    config = tiny(f"{where}.brevity={{function: '{module.stem}:quality'}}")
    carry_out(fresh, config)
    module.write_text(
        '"""Short is good."""\n# And how.\n' + QUALITY.replace("float(len(response))", "float( len(response) )")
    )
    assert planned(fresh, config) == {}
    module.write_text(QUALITY.replace("-float", "-2 * float"))
    reasons = planned(fresh, config)
    assert set(reasons) == expected
    first = ("critic_pretraining", 1, 0) if where == "rewards" else ("audit_rollouts", 1, 1)
    named = f"code of {'scoring.rewards' if where == 'rewards' else 'held_out_rewards'}.brevity: "
    assert re.fullmatch(rf"{named}[0-9a-f]{{8}} → [0-9a-f]{{8}}", reasons[first])


def a_model(directory, weights="weights"):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_text(weights)
    return directory


def on_models(tmp_path, *overrides):
    """tiny.yaml on models from outside: the policy, two rewards and a held-out one."""
    paths = {name: a_model(tmp_path / name, name) for name in ("base", "zeal", "calm", "judge")}
    return tiny(
        f"model={{policy: {paths['base']}}}",
        "warm_up=null",
        "reward_model=null",
        f"rewards={{zeal: {{model: {paths['zeal']}}}, calm: {{model: {paths['calm']}}}}}",
        f"evaluation.held_out_rewards={{judge: {{model: {paths['judge']}}}}}",
        *overrides,
    )


WITHOUT_TRAINING = ALL - WARM_UP - REWARD_MODELS


@pytest.mark.parametrize(
    ("model", "expected", "first", "reason"),
    [
        ("base", WITHOUT_TRAINING, ("prepare_data", 1, 0), "input base changed"),
        ("zeal", FROM_CRITIC, ("critic_pretraining", 1, 0), "input external changed"),
        ("calm", FROM_CRITIC, ("critic_pretraining", 1, 0), "input external changed"),
        ("judge", AUDITS | closing(1) | closing(2), ("audit_rollouts", 1, 1), "input external changed"),
    ],
)
def test_other_weights_in_a_directory_are_another_input(fresh, tmp_path, model, expected, first, reason):
    config = on_models(tmp_path)
    assert set(carry_out(fresh, config)) == WITHOUT_TRAINING | {("prepare_data", 2, 0)}
    assert planned(fresh, config) == {}
    a_model(tmp_path / model, "other weights")
    reasons = planned(fresh, config)
    assert set(reasons) == expected
    assert reasons[first] == reason


def test_a_model_that_moved_is_the_same_input(fresh, tmp_path):
    carry_out(fresh, on_models(tmp_path))
    shutil.copytree(tmp_path / "base", tmp_path / "elsewhere")
    assert planned(fresh, on_models(tmp_path, f"model.policy={tmp_path / 'elsewhere'}")) == {}


def test_a_critic_of_its_own_is_what_is_pretrained(fresh, tmp_path):
    carry_out(fresh, on_models(tmp_path))
    critic = a_model(tmp_path / "critic", "critic")
    reasons = planned(fresh, on_models(tmp_path, f"model.critic={critic}"))
    assert set(reasons) == FROM_CRITIC
    assert reasons["critic_pretraining", 1, 0] == "input critic changed"


def test_the_configuration_that_a_run_keeps_is_the_one_it_was_started_with(fresh, tmp_path):
    # The file that keeps it has its keys sorted, and zeal comes before calm in what was given.
    carry_out(fresh, on_models(tmp_path))
    assert planned(fresh, fresh.config) == {}


def test_the_order_in_which_rewards_are_written_decides_nothing(fresh, tmp_path):
    config = on_models(tmp_path)
    carry_out(fresh, config)
    calm, zeal = tmp_path / "calm", tmp_path / "zeal"
    turned = on_models(tmp_path, f"rewards={{calm: {{model: {calm}}}, zeal: {{model: {zeal}}}}}")
    assert planned(fresh, turned) == {}


def test_a_stage_is_handed_the_models_of_rewards_by_their_names(fresh, tmp_path):
    config = on_models(tmp_path)
    carry_out(fresh, config)
    handed = {}
    for _, manifest in fresh.store.manifests():
        given = fresh.store.inputs_of(manifest).get("external")
        if given is not None:
            own = {name: Path(ref.path).name for name, ref in given.items()}
            assert handed.setdefault(manifest.stage, own) == own
    trained_on, held_out = {"calm": "calm", "zeal": "zeal"}, {"judge": "judge"}
    assert handed == {
        **dict.fromkeys(("critic_pretraining", "score_rollouts"), trained_on),
        "audit_rollouts": held_out,
        "evaluate_policy": trained_on | held_out,
    }


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("model.policy=/nowhere", "model.policy"),
        ("model.critic=/nowhere", "model.critic"),
        ("rewards.zeal.model=/nowhere", "rewards.zeal.model"),
        ("evaluation.held_out_rewards.judge.model=/nowhere", "evaluation.held_out_rewards.judge.model"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_its_field(fresh, tmp_path, override, field):
    with pytest.raises(ModelError, match=rf"^{field}: /nowhere is no directory"):
        make_plan(fresh, on_models(tmp_path, override))


def test_the_base_of_the_reward_model_is_named_with_its_field(fresh):
    with pytest.raises(ModelError, match=r"^reward_model\.base: /nowhere is no directory"):
        make_plan(fresh, tiny("reward_model.base=/nowhere"))


# Forced reruns


def forced(run, stage, *, config=None, **where):
    chosen = forced_by(make_plan(run, config or tiny()), stage, **{"round": None, "iteration": None, **where})
    return {(p.stage, p.place.round, p.place.iteration) for p in chosen}, [p.key for p in chosen]


@pytest.mark.parametrize(
    ("stage", "where", "expected"),
    [
        ("update_policy", {"round": 1, "iteration": 2}, since("update_policy", 1, 2)),
        ("update_policy", {"round": 1}, since("update_policy", 1, 1)),
        ("update_policy", {}, since("update_policy", 2, 1)),
        ("generate_rollouts", {"round": 2, "iteration": 2}, since("generate_rollouts", 2, 2)),
        ("generate_rollouts", {"iteration": 2}, since("generate_rollouts", 2, 2)),
        ("compute_advantages", {"round": 1}, since("compute_advantages")),
        ("prepare_data", {"round": 1}, ALL - {("prepare_data", 2, 0)} | {("prepare_data", 2, 0)}),
        ("prepare_data", {}, {("prepare_data", 2, 0), ("train_reward_model", 2, 0)} | since("generate_rollouts", 2, 1)),
        # There is only one.
        ("warm_up", {}, ALL - {("prepare_data", 1, 0)}),
        # The policy of the second round does not come from its reward model, its scores do.
        ("train_reward_model", {}, {("train_reward_model", 2, 0)} | since("score_rollouts", 2, 1)),
        ("critic_pretraining", {}, FROM_CRITIC),
        # Each audit of a round is held against its first one; no training reads them.
        ("audit_rollouts", {"round": 1}, AUDITED_FIRST | closing(1, "report_round") | closing(2, "report_round")),
        ("evaluate_policy", {"round": 1}, closing(1) | closing(2, "report_round")),
        ("report_round", {}, closing(2, "report_round")),
    ],
)
def test_a_rerun_forces_the_stage_and_all_that_is_made_from_it(finished, stage, where, expected):
    chosen, keys = forced(finished, stage, **where)
    assert chosen == expected
    assert len(keys) == len(set(keys))


def test_both_shards_of_an_iteration_are_forced(finished):
    _, keys = forced(finished, "score_rollouts", round=2, iteration=2)
    at = "round-002/iteration-002/score_rollouts"
    assert keys[:2] == [f"{at}/shard-000", f"{at}/shard-001"]


@pytest.mark.parametrize(
    ("stage", "where", "message"),
    [
        ("score", {}, r"--from score: no such stage; stages are prepare_data, warm_up, .*, report_round"),
        ("warm_up", {"round": 2}, r"--from warm_up: this run has no such stage in round 2; rounds status shows"),
        ("update_policy", {"round": 3}, r"--from update_policy: this run has no such stage in round 3"),
        ("update_policy", {"iteration": 3}, r"--iteration 3: round 2 has no update_policy there; see rounds status"),
        ("report_round", {"iteration": 1}, r"--iteration 1: round 2 has no report_round there"),
    ],
)
def test_a_rerun_from_where_nothing_is_is_refused(finished, stage, where, message):
    with pytest.raises(ConfigError, match=message):
        forced(finished, stage, **where)


def test_a_forced_stage_runs_once_more_and_then_never_again(finished):
    expected, keys = forced(finished, "update_policy", round=1, iteration=2)
    before = {p.key: p.ref for p in make_plan(finished, tiny()).stages}
    finished.raise_generations(keys)
    reasons = planned(finished, tiny())
    assert set(reasons) == expected
    assert reasons["update_policy", 1, 2] == "forced"
    assert reasons["evaluate_policy", 1, 0] == "input update_policy changes"
    assert set(carry_out(finished, tiny())) == expected
    assert planned(finished, tiny()) == {}
    assert carry_out(finished, tiny()) == []
    # In places of their own: what was there before is there still.
    now = {p.key: p.ref for p in make_plan(finished, tiny()).stages}
    assert {key for key in now if now[key] != before[key]} == set(keys)
    assert all(ref.directory.is_dir() for ref in before.values())
    finished.raise_generations(keys)
    assert set(planned(finished, tiny())) == expected


def test_what_is_made_from_a_forced_output_of_the_same_content_is_forced_all_the_same(fresh):
    same = {"constant": ("update_policy",)}
    carry_out(fresh, tiny(), **same)
    expected, keys = forced(fresh, "update_policy", round=2, iteration=1)
    fresh.raise_generations(keys)
    assert set(carry_out(fresh, tiny(), **same)) == expected


def test_an_interrupted_forced_rerun_goes_on_instead_of_starting_again(finished):
    expected, keys = forced(finished, "compute_advantages", round=1)
    finished.raise_generations(keys)
    first = carry_out(finished, tiny(), limit=5)
    assert planned(finished, tiny())["score_rollouts", 1, 2] == "forced"
    rest = carry_out(finished, tiny())
    assert len(first) + len(rest) == len(keys)
    assert set(first) | set(rest) == expected


# The plan as others read it


def test_a_stage_counts_as_undone_while_one_of_its_inputs_is_missing(fresh):
    # Without the missing one, its inputs are those of an output that is there.
    place, scored = Place(1, 1), Ref("/somewhere", "digest")
    Commit(fresh, tiny())("compute_advantages", place, AdvantagesConfig(), scored=[scored])
    planner = Planner(fresh, tiny())
    missing = planner("compute_advantages", Place(1, 2), AdvantagesConfig(), scored=[])
    assert planner("compute_advantages", place, AdvantagesConfig(), scored=[scored]).ref is not None
    both = planner("compute_advantages", place, AdvantagesConfig(), scored=[scored, missing])
    assert (both.ref, both.reason) == (None, "input compute_advantages changes")


def test_stages_are_selected_by_name_round_and_iteration(finished):
    plan = make_plan(finished, tiny())
    assert [p.place for p in plan.select("compute_advantages", round=2)] == [Place(2, 1), Place(2, 2)]
    assert [p.place for p in plan.select("score_rollouts", round=1, iteration=2)] == [Place(1, 2, 0), Place(1, 2, 1)]
    assert plan.select("nothing") == []


def test_a_planned_stage_has_its_output_and_what_its_manifest_counts(finished, fresh):
    (audit,) = make_plan(finished, tiny()).select("audit_rollouts", round=2, iteration=1)
    assert isinstance(audit.ref, Ref)
    # As ``Commit`` has them.
    assert (audit.rows, audit.seconds, audit.metrics) == (1, 1.5, {"made": 2.0})
    empty = create_or_open(finished.home, "empty")
    (nothing,) = make_plan(empty, tiny()).select("report_round", round=2)
    assert (nothing.ref, nothing.rows, nothing.seconds, nothing.metrics) == (None, 0, 0.0, {})


def test_a_plan_and_its_status_read_each_manifest_once(finished, monkeypatch):
    read, reading = [], Manifest.read
    monkeypatch.setattr(Manifest, "read", lambda directory: read.append(str(directory)) or reading(directory))
    plan = make_plan(finished, tiny())
    assert sum(status.committed for status in stage_statuses(plan)) == len(plan.stages)
    assert sorted(read) == sorted(planned.ref.path for planned in plan.stages)


def test_the_last_state_of_a_finished_run_is_what_its_stages_committed(finished):
    plan = make_plan(finished, tiny())
    assert len(plan.rounds) == 2
    assert plan.rounds[1].train.policy is plan.select("update_policy", round=2, iteration=2)[0]
    assert plan.rounds[1].reference is plan.select("warm_up")[0] is plan.rounds[0].reference
    assert plan.rounds[1].reward_model is plan.select("train_reward_model", round=2)[0]
