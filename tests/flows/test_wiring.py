"""Which outputs each stage is handed, for each algorithm: the flows run with a caller that only notes its calls."""

from dataclasses import dataclass

import pytest
from fake_runs import document

from flows.config.reading import checked
from flows.plan.calls import external_models
from flows.round import rlhf_round
from tasks.stages import STAGES
from tasks.store.manifest import Place, flat

CRITIC_FREE = ("vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo")
PLACES = [(1, 1), (1, 2), (2, 1), (2, 2)]


@dataclass(frozen=True, kw_only=True)
class Call:
    stage: str
    place: Place
    settings: object
    inputs: dict

    @property
    def at(self):
        return self.place.round, self.place.iteration


@pytest.fixture
def calls(tmp_path):
    """The calls that a run of two rounds of two iterations makes; an output is named after its stage and place."""

    def of(**changes):
        config = checked(document(tmp_path, warm_up={}, **changes), where="test")
        noted = []

        def note(stage, place, settings, **inputs):
            noted.append(Call(stage=stage, place=place, settings=settings, inputs=inputs))
            return f"{stage}-{place.label}"

        state = None
        for number in (1, 2):
            state = rlhf_round(note, config, number, state, external_models(config, tmp_path))
        return noted

    return of


def inputs_of(calls, stage, name):
    """One input of a stage by round and iteration; shards must agree."""
    found = {}
    for call in calls:
        if call.stage == stage:
            assert found.setdefault(call.at, call.inputs[name]) == call.inputs[name]
    return found


def test_options_of_the_template_reach_each_stage_that_renders_or_samples_and_no_other(calls):
    options = {"enable_thinking": False}
    plain, optional = calls(), calls(model={"from_scratch": {}, "chat_template_kwargs": options})
    stages = {"prepare_data", "train_reward_model", "critic_pretraining", "generate_rollouts", "evaluate_policy"}
    for before, after in zip(plain, optional, strict=True):
        assert STAGES[after.stage].uses_models == hasattr(after.settings, "access")
        if STAGES[after.stage].uses_models:
            assert after.settings.access.chat_template_kwargs == (options if after.stage in stages else {})
        assert (after.settings == before.settings) == (after.stage not in stages)


def grouped(algorithm):
    rollouts = {"samples_per_prompt": 2, "shards": 2, "sampling": {"max_new_tokens": 4}}
    return {"algorithm": algorithm, "rollouts": rollouts}


@pytest.mark.parametrize("algorithm", CRITIC_FREE)
def test_without_a_critic_the_same_stages_run_and_none_is_handed_one(calls, algorithm):
    noted = calls(**grouped(algorithm))
    with_critic = [(call.stage, call.place) for call in calls()]
    assert [(call.stage, call.place) for call in noted] == [x for x in with_critic if x[0] != "critic_pretraining"]
    assert {call.stage for call in noted if "critic" in call.inputs} == {"score_rollouts", "update_policy"}
    assert [call.inputs["critic"] for call in noted if "critic" in call.inputs] == [None] * 12
    algorithms = {call.settings.algorithm for call in noted if call.stage == "compute_advantages"}
    assert algorithms == {algorithm}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_each_iteration_goes_on_from_the_checkpoint_of_the_one_before(calls, algorithm):
    noted = calls(**grouped(algorithm))
    chain = dict(zip(PLACES, ["warm_up-r1", *(f"update_policy-r{r}.i{i}" for r, i in PLACES)], strict=False))
    assert inputs_of(noted, "generate_rollouts", "policy") == chain
    assert inputs_of(noted, "score_rollouts", "policy") == chain
    assert inputs_of(noted, "update_policy", "policy") == chain
    # What the loop remembers is in the checkpoint; in the first iteration there is none.
    assert inputs_of(noted, "compute_advantages", "checkpoint") == chain
    assert set(inputs_of(noted, "score_rollouts", "reference").values()) == {"warm_up-r1"}


def made_from(calls, stage, at):
    """All stages that an output of a stage is made from, at whatever distance, by name and place."""
    inputs = {f"{call.stage}-{call.place.label}": set(flat(call.inputs)) for call in calls}
    found, left = set(), [name for name in inputs if name.startswith(f"{stage}-{at}")]
    while left:
        for name in inputs.get(left.pop(), set()) - found:
            found.add(name)
            left.append(name)
    return found


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_with_a_lag_rollouts_come_from_an_earlier_checkpoint_and_all_else_from_the_last(calls, lag):
    rollouts = {"shards": 2, "lag": lag, "sampling": {"max_new_tokens": 4}}
    noted = calls(iterations=4, rollouts=rollouts)
    starts = {1: "warm_up-r1", 2: "update_policy-r1.i4"}

    def checkpoint(round, number):
        return f"update_policy-r{round}.i{number}" if number else starts[round]

    places = [(round, i) for round in (1, 2) for i in (1, 2, 3, 4)]
    newest = {(round, i): checkpoint(round, i - 1) for round, i in places}
    assert inputs_of(noted, "generate_rollouts", "policy") == {
        (round, i): checkpoint(round, max(0, i - 1 - lag)) for round, i in places
    }
    for stage in ("score_rollouts", "update_policy", "audit_rollouts"):
        assert inputs_of(noted, stage, "policy") == newest
    assert inputs_of(noted, "compute_advantages", "checkpoint") == newest
    # Each iteration learns from its own rollouts.
    for call in noted:
        if call.stage == "score_rollouts":
            assert call.inputs["rollouts"] == f"generate_rollouts-{call.place.label}"


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_rollouts_are_asked_for_before_the_updates_that_they_need_not_wait_for(calls, lag):
    noted = calls(iterations=4, rollouts={"lag": lag, "sampling": {"max_new_tokens": 4}})
    order = [f"{call.stage}-{call.place.label}" for call in noted]
    for i in range(1, 5):
        before = {f"update_policy-r1.i{number}" for number in range(1, i)}
        waits_for = made_from(noted, "generate_rollouts", f"r1.i{i}") & before
        assert waits_for == {f"update_policy-r1.i{number}" for number in range(1, i - lag)}
        asked_for = order.index(f"generate_rollouts-r1.i{i}.s0")
        assert {name for name in before if order.index(name) < asked_for} == waits_for


def test_the_lag_itself_is_no_setting_of_any_stage(calls):
    plain, lagging = (calls(rollouts={"lag": lag, "sampling": {"max_new_tokens": 4}}, iterations=3) for lag in (0, 1))
    settings = [{(call.stage, call.place): call.settings for call in noted} for noted in (plain, lagging)]
    assert settings[0] == settings[1]


WITHOUT_REWARD_MODEL = {"reward_model": None, "rewards": {"quality": {"function": "flows.presets.quickstart:quality"}}}


@pytest.mark.parametrize("is_pretrained", [True, False])
@pytest.mark.parametrize(
    ("critic", "changes", "first"),
    [
        (None, {}, "train_reward_model-r1"),
        ("reward_model", {}, "train_reward_model-r1"),
        ("policy", {}, "warm_up-r1"),
        (None, WITHOUT_REWARD_MODEL, "warm_up-r1"),
        ("policy", WITHOUT_REWARD_MODEL, "warm_up-r1"),
    ],
)
def test_the_critic_starts_from_what_is_named_and_is_then_the_checkpoints_own(
    calls, critic, changes, first, is_pretrained
):
    pretraining = {} if is_pretrained else {"critic_pretraining": None}
    noted = calls(model={"from_scratch": {}, "critic": critic}, **changes, **pretraining)
    if is_pretrained:
        # In the first round alone: later ones go on from what the critic has learned.
        assert inputs_of(noted, "critic_pretraining", "critic") == {(1, 0): first}
        assert inputs_of(noted, "critic_pretraining", "reference") == {(1, 0): "warm_up-r1"}
        expected = None if changes else "train_reward_model-r1"
        assert inputs_of(noted, "critic_pretraining", "reward_model") == {(1, 0): expected}
        first = "critic_pretraining-r1"
    chain = dict(zip(PLACES, [first, *(f"update_policy-r{r}.i{i}" for r, i in PLACES)], strict=False))
    assert inputs_of(noted, "score_rollouts", "critic") == chain
    assert inputs_of(noted, "update_policy", "critic") == chain


def pretraining_of(calls, **changes):
    (call,) = (call for call in calls(**changes) if call.stage == "critic_pretraining")
    return call.settings


def test_the_pretrained_critic_learns_what_an_iteration_would_make_of_a_response_but_for_kl_and_lambda(calls):
    changed = {"gamma": 0.9, "score_clip": 2.0, "kl_coef": 0.3, "lam": 0.5, "critic_lam": 0.7, "horizon": 3}
    settings = pretraining_of(calls, advantages=changed)
    own = settings.advantages
    assert (own.gamma, own.score_clip) == (0.9, 2.0)
    assert (own.kl_coef, own.critic_lam, own.horizon) == (0.0, 1.0, None)
    only_these = {name: changed[name] for name in ("kl_coef", "lam", "critic_lam", "horizon")}
    assert pretraining_of(calls, advantages=only_these) == pretraining_of(calls)
    assert settings.scoring.rewards["preference"].is_trained_in_run


def test_the_rate_of_pretraining_is_the_critics_unless_it_has_one_of_its_own(calls):
    optimizers = {"critic_learning_rate": 0.25}
    assert pretraining_of(calls, optimizers=optimizers).learning_rate == 0.25
    assert pretraining_of(calls, optimizers=optimizers, critic_pretraining={"learning_rate": 0.5}).learning_rate == 0.5


@pytest.mark.parametrize(("iterations", "expected"), [(0, []), (1, [(1, 1)])])
def test_in_the_critics_warm_up_the_policy_rests_at_the_beginning_of_the_run_alone(calls, iterations, expected):
    noted = calls(optimizers={"critic_warmup": iterations})
    updates = [call for call in noted if call.stage == "update_policy"]
    assert [call.at for call in updates] == PLACES
    assert [call.at for call in updates if not call.settings.train_policy] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        *(({"ppo": {"kl_loss_coef": 0.1, "kl_loss_estimator": name}}, None) for name in ("k1", "k2", "k3")),
        ({"ppo": {"kl_loss_coef": 0.1, "kl_loss_estimator": "exact"}}, "warm_up-r1"),
        # A penalty of the exact KL is a column of the scored rollouts.
        ({"advantages": {"kl_estimator": "exact"}}, None),
    ],
)
def test_the_update_is_handed_the_reference_for_an_exact_kl_loss_alone(calls, changes, expected):
    noted = calls(**changes)
    assert inputs_of(noted, "update_policy", "reference") == dict.fromkeys(PLACES, expected)
    exact = {call.settings.exact_kl for call in noted if call.stage == "score_rollouts"}
    assert exact == {changes.get("advantages") is not None}


def test_an_audit_reads_scored_rollouts_and_the_first_audit_of_its_round_and_only_the_report_reads_it(calls):
    noted = calls()
    first = {(1, 1): None, (1, 2): "audit_rollouts-r1.i1", (2, 1): None, (2, 2): "audit_rollouts-r2.i1"}
    assert inputs_of(noted, "audit_rollouts", "baseline") == first
    scored = {(r, i): [f"score_rollouts-r{r}.i{i}.s{shard}" for shard in (0, 1)] for r, i in PLACES}
    assert inputs_of(noted, "audit_rollouts", "scored") == scored
    readers = {call.stage for call in noted if "audit_rollouts" in repr(call.inputs)}
    assert readers == {"audit_rollouts", "report_round"}
    assert inputs_of(noted, "report_round", "audits") == {
        (number, 0): [f"audit_rollouts-r{number}.i{index}" for index in (1, 2)] for number in (1, 2)
    }
