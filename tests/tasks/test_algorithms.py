"""The algorithms as stages: advantages without a critic, what is remembered, losses with a reference, gates, audits."""

import itertools
import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from small_world import (
    LENGTH,
    Workbench,
    a_model,
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
from transformers import AutoModelForCausalLM

from ppo_core import NonFiniteError, PPOConfig, SamplingConfig
from tasks.config.data import Source
from tasks.config.evaluation import AuditRolloutsConfig
from tasks.config.execution import HealthConfig
from tasks.config.rewards import FunctionReward, ModelReward
from tasks.errors import ConfigError, DataError, RewardError, UnhealthyError
from tasks.metrics.policy_comparison import correlation, distinct_share
from tasks.models.scalar import load_scalar_model
from tasks.store.data_sets import read_dataset, write_dataset
from tasks.store.manifest import Place, Ref
from tasks.store.schemas import with_columns
from tasks.text.tokens import encode_dialogue, load_tokenizer

CRITIC_FREE = ("vanilla_pg", "reinforce", "rloo", "grpo", "dr_grpo")
ONE_STEP = PPOConfig(epochs=1, num_minibatches=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A reference that is not the policy: the KL is not 0."""
    return a_model(tmp_path_factory.mktemp("other"), seed=5)


@pytest.fixture(scope="module")
def scored(world, other):
    """Three samples of each of six prompts in two shards, scored by their length, without a critic."""
    bench, base, data, _ = world
    shards = generate(bench, base, data, shards=2, samples_per_prompt=3)
    return [score(bench, base, shard, LENGTH, reference=other, critic=None) for shard in shards]


def weights(checkpoint, part="policy"):
    return (checkpoint.directory / part / "model.safetensors").read_bytes()


def file_names(checkpoint):
    return {str(path.relative_to(checkpoint.directory)) for path in checkpoint.directory.rglob("*.safetensors")}


# advantages without a critic


def by_definition(algorithm, totals, prompts, i):
    """The advantage of response i, from the total reward of each."""
    same = [x for x, prompt in zip(totals, prompts, strict=True) if prompt == prompts[i]]
    others = [x for j, (x, prompt) in enumerate(zip(totals, prompts, strict=True)) if prompt == prompts[i] and j != i]
    return {
        "vanilla_pg": lambda: totals[i],
        "reinforce": lambda: totals[i] - statistics.mean(totals),
        "rloo": lambda: totals[i] - statistics.mean(others),
        "grpo": lambda: (totals[i] - statistics.mean(same)) / (statistics.stdev(same) + 1e-6),
        "dr_grpo": lambda: totals[i] - statistics.mean(same),
    }[algorithm]()


@pytest.mark.parametrize("algorithm", CRITIC_FREE)
def test_all_tokens_of_a_response_share_its_advantage_over_the_others(world, scored, algorithm):
    bench, base, _, _ = world
    beta = 0.3
    table = rows(advantages(bench, scored, base, algorithm=algorithm, kl_coef=beta))
    totals = [
        row["score"] - beta * sum(p - q for p, q in zip(row["logprobs"], row["ref_logprobs"], strict=True))
        for row in table
    ]
    prompts = [row["prompt_id"] for row in table]
    assert len(set(prompts)) == 6
    for i, row in enumerate(table):
        expected = by_definition(algorithm, totals, prompts, i)
        assert row["advantages"] == pytest.approx([expected] * len(row["response_token_ids"]), rel=1e-3, abs=1e-3)
        assert "values" not in row
        assert "returns" not in row


def test_without_a_critic_advantages_are_whitened_only_when_asked_for(world, scored):
    bench, base, _, _ = world
    asked = advantages(bench, scored, base, algorithm="reinforce", whiten=True)
    tokens = torch.tensor([a for row in rows(asked) for a in row["advantages"]])
    assert tokens.std().item() == pytest.approx(1.0, abs=1e-4)
    plain = advantages(bench, scored, base, algorithm="reinforce")
    assert torch.tensor([a for row in rows(plain) for a in row["advantages"]]).std().item() > 1.5


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("algorithm", ["reinforce", "vanilla_pg"])
def test_with_rewards_to_go_a_token_counts_what_came_from_it_on(world, scored, algorithm, gamma):
    bench, base, _, _ = world
    table = rows(advantages(bench, scored, base, algorithm=algorithm, reward_to_go=True, gamma=gamma, kl_coef=0.3))
    to_go = [
        [sum(gamma**k * r for k, r in enumerate(row["rewards"][t:])) for t in range(len(row["rewards"]))]
        for row in table
    ]
    assert any(len(own) > 1 and abs(own[0] - own[1]) > 0.01 for own in to_go)
    baseline = statistics.mean(x for own in to_go for x in own) if algorithm == "reinforce" else 0.0
    for row, own in zip(table, to_go, strict=True):
        assert row["advantages"] == pytest.approx([x - baseline for x in own], abs=1e-3)


# advantages with a critic


@pytest.mark.parametrize(("critic_lam", "lam"), [(None, 0.5), (0.0, 0.5), (1.0, 0.0)])
def test_the_critic_learns_what_came_in_the_end_unless_told_to_trust_itself(world, other, critic_lam, lam):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    ref = score(bench, base, rollouts, LENGTH, reference=other, critic=train_reward_model(bench, base, data))
    changes = {} if critic_lam is None else {"critic_lam": critic_lam}
    for row in rows(advantages(bench, [ref], base, lam=lam, whiten=False, **changes)):
        values, rewards = [*row["values"], 0.0], row["rewards"]
        for t, target in enumerate(row["returns"]):
            expected = rewards[t] + values[t + 1] if critic_lam == 0 else sum(rewards[t:])
            assert target == pytest.approx(expected, abs=1e-3)
        deltas = [r + values[t + 1] - values[t] for t, r in enumerate(rewards)]
        of_policy = [sum(lam**k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]
        assert row["advantages"] == pytest.approx(of_policy, abs=1e-3)


def test_a_lambda_that_grows_with_the_response_is_of_its_own_length(world, other):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data, samples_per_prompt=4)
    ref = score(bench, base, rollouts, LENGTH, reference=other)
    table = rows(advantages(bench, [ref], base, lam_alpha=0.5, whiten=False))
    assert len({len(row["rewards"]) for row in table}) > 1
    for row in table:
        lam = max(0.0, 1 - 2 / len(row["rewards"]))
        values = [*row["values"], 0.0]
        deltas = [r + values[t + 1] - values[t] for t, r in enumerate(row["rewards"])]
        expected = [sum(lam**k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]
        assert row["advantages"] == pytest.approx(expected, abs=1e-3)


def test_bootstrapping_counts_the_value_after_a_response_that_was_cut_off_and_no_other(world, other):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data, prompts_per_iteration=16, samples_per_prompt=4)
    reward_model = train_reward_model(bench, base, data)
    ref = score(bench, base, rollouts, LENGTH, reference=other, critic=reward_model)
    critic = load_scalar_model(reward_model.directory / "reward_model")
    table = rows(advantages(bench, [ref], base, bootstrap=True, whiten=False, gamma=0.9, lam=0.0, kl_coef=0.0))
    assert {row["finish_reason"] for row in table} == {"stop", "length"}
    for row in table:
        with torch.no_grad():
            after = critic(torch.tensor([row["prompt_token_ids"] + row["response_token_ids"]]))[0, -1].item()
        assert row["final_value"] == pytest.approx(after, abs=1e-4)
        # The value stands for the score that an unfinished response does not have.
        comes = 0.9 * after if row["finish_reason"] == "length" else row["score"]
        expected = comes - row["values"][-1]
        assert row["advantages"][-1] == pytest.approx(expected, abs=1e-3)


def test_a_horizon_cuts_the_sum_of_errors(world, other):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    ref = score(bench, base, rollouts, LENGTH, reference=other)
    for row in rows(advantages(bench, [ref], base, horizon=2, lam=0.5, whiten=False)):
        values = [*row["values"], 0.0]
        delta = [r + values[t + 1] - values[t] for t, r in enumerate(row["rewards"])]
        expected = [d + (0.5 * delta[t + 1] if t + 1 < len(delta) else 0.0) for t, d in enumerate(delta)]
        assert row["advantages"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_the_penalty_is_made_of_the_estimator_that_is_asked_for(world, other, estimator):
    bench, base, data, _ = world
    (rollouts,) = generate(bench, base, data)
    ref = score(bench, base, rollouts, LENGTH, reference=other, exact_kl=estimator == "exact")
    policy, reference = (AutoModelForCausalLM.from_pretrained(model.path).eval() for model in (base, other))
    for row in rows(advantages(bench, [ref], base, kl_estimator=estimator, kl_coef=0.5)):
        d = [p - q for p, q in zip(row["logprobs"], row["ref_logprobs"], strict=True)]
        if estimator == "exact":
            ids = torch.tensor([row["prompt_token_ids"] + row["response_token_ids"]])
            start = len(row["prompt_token_ids"]) - 1
            with torch.no_grad():
                p, q = (model(ids).logits[0, start:-1].double().log_softmax(-1) for model in (policy, reference))
            expected = [math.fsum(row) for row in (p.exp() * (p - q)).tolist()]
        else:
            expected = [x * x / 2 if estimator == "k2" else math.exp(-x) - 1 + x for x in d]
        assert row["kl"] == pytest.approx(expected, abs=1e-5)
        assert row["rewards"][:-1] == pytest.approx([-0.5 * x for x in expected[:-1]], abs=1e-5)


# treatment of scores, and what is remembered


def test_scores_are_normalised_by_all_of_them_so_far_then_clipped_and_cut_off_ones_pay(world, other):
    bench, base, data, _ = world
    treatment = {"normalize_scores": True, "score_clip": 1.0, "length_cut": {"penalty": 0.25}, "kl_coef": 0.0}
    checkpoint, seen = None, []
    for iteration in (1, 2, 3):
        checkpoint = an_update(bench, base, data, start=checkpoint, iteration=iteration, treatment=treatment)
        manifest = json.loads((checkpoint.directory / "manifest.json").read_text())
        table = read_dataset(bench.store.root / manifest["input_paths"]["experience"] / "rollouts").to_pylist()
        seen += [row["score"] for row in table]
        mean, std = statistics.mean(seen), statistics.stdev(seen)
        for row in table:
            expected = max(-1.0, min(1.0, (row["score"] - mean) / std))
            expected -= 0.25 if row["finish_reason"] == "length" else 0.0
            assert row["treated_score"] == pytest.approx(expected, abs=1e-4)
            assert sum(row["rewards"]) == pytest.approx(expected, abs=1e-4)
        state = json.loads((checkpoint.directory / "loop_state.json").read_text())
        assert state["scores"]["count"] == len(seen)
        assert state["scores"]["mean"] == pytest.approx(mean)


def mixed(world, other, *, samples_per_prompt=4):
    """Scored rollouts of which some finished and some were cut off."""
    bench, base, data, _ = world
    sampling = SamplingConfig(max_new_tokens=6, stop_token_ids=tuple(range(3, 300, 9)))
    (rollouts,) = generate(bench, base, data, samples_per_prompt=samples_per_prompt, sampling=sampling)
    ref = score(bench, base, rollouts, LENGTH, reference=other)
    assert {row["finish_reason"] for row in rows(ref)} == {"stop", "length"}
    return ref


def finished(row):
    return row["finish_reason"] == "stop"


def test_what_a_response_that_was_cut_off_counts_for_is_a_setting(world, other):
    bench, base, _, _ = world
    ref = mixed(world, other)

    def treated(**length_cut):
        table = rows(advantages(bench, [ref], base, length_cut=length_cut, max_new_tokens=6))
        return [(row["treated_score"], row["score"], finished(row), len(row["response_token_ids"])) for row in table]

    assert all(got == score for got, score, *_ in treated())
    assert treated(score="keep") == treated()
    assert all(got == (score if ended else 0.0) for got, score, ended, _ in treated(score="zero"))
    assert all(got == (score if ended else -1.0) for got, score, ended, _ in treated(score="zero", penalty=1.0))
    assert all(got == score - (not ended) for got, score, ended, _ in treated(penalty=1.0))
    # Over the last four of six tokens, finished or not.
    for got, own, _, length in treated(ramp_tokens=4, ramp_penalty=2.0):
        assert got == pytest.approx(own - max(0, length - 2) / 2)


def test_scores_that_do_not_count_are_not_in_the_running_moments(world, other):
    bench, base, _, _ = world
    ref = mixed(world, other)
    ended = [row["score"] for row in rows(ref) if finished(row)]
    for settings in ({"length_cut": {"score": "zero"}}, {"length_cut": {"exclude": True}}, {"bootstrap": True}):
        experience = advantages(bench, [ref], base, normalize_scores=True, **settings)
        state = json.loads((experience.directory / "loop_state.json").read_text())
        assert state["scores"]["count"] == len(ended)
        assert state["scores"]["mean"] == pytest.approx(statistics.mean(ended))


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce", "rloo", "grpo", "dr_grpo"])
def test_excluding_responses_is_as_if_they_had_never_been(world, other, algorithm):
    bench, base, _, _ = world
    ref = mixed(world, other)
    table = read_dataset(ref.directory / "rollouts")
    ended = [finished(row) for row in table.to_pylist()]
    if algorithm in ("rloo", "grpo", "dr_grpo"):
        prompts = table.column("prompt_id").to_pylist()
        many = [sum(e for e, q in zip(ended, prompts, strict=True) if q == p) > 1 for p in prompts]
        ended = [e and m for e, m in zip(ended, many, strict=True)]
    alone = bench.store.root / f"alone-{algorithm}"
    write_dataset(alone / "rollouts", table.filter(ended))
    without = advantages(bench, [replace(ref, path=str(alone), digest=f"alone {algorithm}")], base, algorithm=algorithm)
    excluded = advantages(bench, [ref], base, algorithm=algorithm, length_cut={"exclude": True})
    assert rows(excluded) == rows(without)
    assert len(rows(excluded)) == sum(ended)
    metrics = bench.metrics(excluded)
    assert metrics["advantages/excluded_share"] == pytest.approx(1 - sum(ended) / len(ended))
    assert metrics["advantages/std_before_whitening"] == bench.metrics(without)["advantages/std_before_whitening"]


def test_an_update_takes_what_exclusion_leaves_even_if_that_is_little(world, other):
    bench, base, data, _ = world
    experience = advantages(bench, [mixed(world, other)], base, length_cut={"exclude": True})
    left = len(rows(experience))
    ppo = PPOConfig(epochs=1, num_minibatches=left + 5)
    metrics = bench.metrics(an_update(bench, base, data, experience=experience, ppo=ppo))
    assert metrics["update/num_optimizer_steps"] == left
    assert metrics["update/num_tokens"] == sum(len(row["response_token_ids"]) for row in rows(experience))


def all_cut_off(bench, scored):
    """The same scored rollouts, of which no response has finished."""
    refs = []
    for number, ref in enumerate(scored):
        table = read_dataset(ref.directory / "rollouts")
        columns = {"finish_reason": ["length"] * table.num_rows}
        directory = bench.store.root / f"all-cut-off-{number}"
        if not directory.exists():
            write_dataset(
                directory / "rollouts", with_columns(table.drop_columns(list(columns)), columns, table.schema)
            )
        refs.append(Ref(str(directory), f"all cut off {number}"))
    return refs


def test_where_nothing_is_left_to_learn_from_the_setting_is_named(world, scored):
    bench, base, _, _ = world
    scored = all_cut_off(bench, scored)
    with pytest.raises(
        ConfigError, match=r"length_cut\.exclude: of the 18 responses of .* 18 were cut off at .*=10, and"
    ):
        advantages(bench, scored, base, algorithm="grpo", length_cut={"exclude": True}, max_new_tokens=10)


def test_most_responses_cut_off_is_said_once_and_not_where_a_setting_is_meant_for_it(world, scored):
    bench, base, _, _ = world
    scored = all_cut_off(bench, scored)

    def said(checkpoint=base, **settings):
        bench.events.clear()
        experience = advantages(bench, scored, checkpoint, algorithm="grpo", **settings)
        return experience, [event["warning"] for event in bench.events if "warning" in event]

    experience, warnings = said()
    assert len(warnings) == 1
    assert warnings[0].startswith("100% of the responses were cut off at rollouts.sampling.max_new_tokens")
    assert said(experience)[1] == []
    assert said(length_cut={"score": "keep"})[1] == []


# Bootstrapping.


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_bootstrapping_has_the_constant_score_as_its_fixed_point(world, other, share):
    """A critic that takes its returns for its values, over a score of 1: its values become 1 where responses finish, and
    stay what they are where none does; they never grow without end."""
    bench, base, _, _ = world
    table = read_dataset(mixed(world, other).directory / "rollouts")
    num_cut = round(share * table.num_rows)
    reasons = ["length"] * num_cut + ["stop"] * (table.num_rows - num_cut)
    value = 2.5
    for step in range(60):
        values = [[value] * len(ids) for ids in table.column("response_token_ids").to_pylist()]
        columns = {"finish_reason": reasons, "score": [1.0] * table.num_rows, "values": values}
        columns["final_value"] = [value] * table.num_rows
        changed = with_columns(table.drop_columns(list(columns)), columns, table.schema)
        directory = bench.store.root / f"constant-{share}-{step}"
        write_dataset(directory / "rollouts", changed)
        ref = Ref(str(directory), f"constant {share} {step}")
        experience = advantages(bench, [ref], base, bootstrap=True, kl_coef=0.0, lam=1.0)
        value = statistics.mean(row["returns"][0] for row in rows(experience))
        assert abs(value - 1) <= 1.5 + 1e-6
    assert value == pytest.approx(2.5 if share == 1 else 1.0, abs=1e-5)


def test_whitened_scores_keep_their_mean(world, scored):
    bench, base, _, _ = world
    table = rows(advantages(bench, scored, base, algorithm="reinforce", whiten_scores=True))
    treated = [row["treated_score"] for row in table]
    assert statistics.stdev(treated) == pytest.approx(1.0, abs=1e-4)
    assert statistics.mean(treated) == pytest.approx(statistics.mean(row["score"] for row in table), abs=1e-4)


def test_the_kl_coefficient_follows_its_target_through_checkpoints(world, other):
    bench, base, data, _ = world
    treatment = {"kl_coef": 0.1, "kl_target": 1e-6, "kl_horizon": 60.0, "kl_estimator": "k3"}
    first = an_update(bench, base, data, reference=other, treatment=treatment)
    second = an_update(bench, base, data, start=first, reference=other, iteration=2, treatment=treatment)
    states = [json.loads((ref.directory / "loop_state.json").read_text())["kl_coef"] for ref in (first, second)]
    # Six responses, far above the target: a fifth of 6/60 more each time.
    assert states == pytest.approx([0.1 * 1.02, 0.1 * 1.02**2])
    paths = [json.loads((ref.directory / "manifest.json").read_text())["input_paths"] for ref in (first, second)]
    used = [json.loads((bench.store.root / p["experience"] / "manifest.json").read_text()) for p in paths]
    assert [manifest["metrics"]["kl/coef"] for manifest in used] == pytest.approx([0.1, 0.102])


def test_without_a_target_the_coefficient_is_the_configuration_s_own(world, other):
    bench, base, data, _ = world
    first = an_update(bench, base, data, reference=other, treatment={"kl_coef": 0.1})
    ref = score(bench, first, generate(bench, first, data)[0], LENGTH)
    assert bench.metrics(advantages(bench, [ref], first, kl_coef=0.7))["kl/coef"] == 0.7


# updates


@pytest.mark.parametrize("algorithm", CRITIC_FREE)
def test_without_a_critic_none_is_loaded_or_written(world, algorithm):
    bench, base, data, _ = world
    checkpoint = an_update(bench, base, data, algorithm=algorithm)
    assert file_names(checkpoint) == {"policy/model.safetensors", "policy_optimizer.safetensors"}
    assert not {name for name in bench.metrics(checkpoint) if "critic" in name or "value" in name}
    assert weights(checkpoint) != (base.directory / "model.safetensors").read_bytes()


def test_in_a_warm_up_the_critic_learns_and_the_policy_stays(world):
    bench, base, data, _ = world
    checkpoint = an_update(bench, base, data, train_policy=False)
    start = AutoModelForCausalLM.from_pretrained(base.path)
    after = AutoModelForCausalLM.from_pretrained(checkpoint.directory / "policy")
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), after.parameters(), strict=True))
    assert file_names(checkpoint) == {
        "policy/model.safetensors",
        "critic/model.safetensors",
        "critic_optimizer.safetensors",
    }
    metrics = bench.metrics(checkpoint)
    assert "update/approx_kl" not in metrics
    assert metrics["update/value_loss"] > 0
    again = an_update(bench, base, data, start=checkpoint, iteration=2)
    assert bench.metrics(again)["update/first_minibatch_ratio_deviation"] < 1e-5
    assert "policy_optimizer.safetensors" in file_names(again)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_the_kl_loss_of_one_step_is_the_estimator_over_the_rollouts(world, other, estimator, direction):
    bench, base, data, _ = world
    ppo = replace(ONE_STEP, kl_loss_coef=0.1, kl_loss_estimator=estimator, kl_loss_direction=direction)
    checkpoint = an_update(bench, base, data, reference=other, ppo=ppo)
    ref = score(bench, base, generate(bench, base, data)[0], LENGTH, reference=other)
    models = [AutoModelForCausalLM.from_pretrained(model.path).eval() for model in (base, other)]
    terms = []
    for row in rows(ref):
        d = torch.tensor(row["logprobs"], dtype=torch.float64) - torch.tensor(row["ref_logprobs"], dtype=torch.float64)
        if estimator == "exact":
            ids = torch.tensor([row["prompt_token_ids"] + row["response_token_ids"]])
            start = len(row["prompt_token_ids"]) - 1
            with torch.no_grad():
                p, q = (model(ids).logits[0, start:-1].double().log_softmax(-1) for model in models)
            p, q = (p, q) if direction == "reverse" else (q, p)
            terms += (p.exp() * (p - q)).sum(-1).tolist()
            continue
        # Forward: from samples of the policy to a mean under the reference by the weight exp(-d), and d turns its sign.
        weight, d = (1.0, d) if direction == "reverse" else ((-d).exp(), -d)
        terms += (weight * {"k1": d, "k2": d * d / 2, "k3": (-d).exp() - 1 + d}[estimator]).tolist()
    assert bench.metrics(checkpoint)["update/kl_loss"] == pytest.approx(statistics.mean(terms), rel=1e-3, abs=1e-6)


def test_each_weight_of_the_loss_changes_the_policy(world, other):
    bench, base, data, _ = world

    def trained(**changes):
        ppo = replace(ONE_STEP, **changes)
        return weights(an_update(bench, base, data, reference=other, ppo=ppo, algorithm="grpo"))

    variants = [
        {},
        {"kl_loss_coef": 1.0},
        {"kl_loss_coef": 1.0, "kl_loss_direction": "forward"},
        {"kl_loss_coef": 1.0, "kl_loss_estimator": "exact"},
        {"entropy_coef": 1.0},
    ]
    assert len({trained(**changes) for changes in variants}) == len(variants)


# gates


def a_gated_update(world, health, **changes):
    """The checkpoint of an update under these limits, and what it warned of."""
    bench, base, data, _ = world
    bench.events.clear()
    before, bench.health = bench.health, HealthConfig(**health)
    try:
        checkpoint = an_update(bench, base, data, treatment={"length_cut": {"score": "keep"}}, **changes)
    finally:
        bench.health = before
    return checkpoint, [event["warning"] for event in bench.events if "warning" in event]


def test_sampling_at_another_temperature_stops_the_update(world):
    with pytest.raises(
        UnhealthyError, match=r"\|ratio - 1\| before the first step is .*, above health\.max_ratio_deviati"
    ):
        a_gated_update(world, {}, temperature=0.5)


@pytest.mark.parametrize(
    ("health", "changes", "message"),
    [
        ({"max_approx_kl": 1e-3}, {"learning_rate": 0.1}, r"KL from the policy that sampled.*epoch \d, minibatch \d"),
        ({"min_entropy": 50.0}, {}, r"entropy.*below health\.min_entropy=50; raise advantages\.kl_coef"),
        (
            {"max_ratio_deviation": 0.05},
            {"temperature": 0.5},
            r"above health\.max_ratio_deviation=0\.05; sampling and",
        ),
    ],
)
def test_each_gate_stops_the_update_before_it_commits_and_warns_only_when_told_to(world, health, changes, message):
    bench, *_ = world
    count = sum(manifest.stage == "update_policy" for _, manifest in bench.store.manifests())
    with pytest.raises(UnhealthyError, match=message):
        a_gated_update(world, health, **changes)
    assert sum(manifest.stage == "update_policy" for _, manifest in bench.store.manifests()) == count
    checkpoint, warnings = a_gated_update(world, {**health, "action": "warn"}, **changes)
    assert len(warnings) == 1
    assert bench.metrics(checkpoint)["health/warnings"] == 1.0


def test_a_policy_far_from_its_reference_stops_before_advantages_are_committed(world, scored):
    bench, base, _, _ = world
    before, bench.health = bench.health, HealthConfig(max_kl=1e-6)
    try:
        with pytest.raises(
            UnhealthyError, match=r"KL from the reference.*above health\.max_kl=1e-06; raise advantages"
        ):
            advantages(bench, scored, base, algorithm="rloo", kl_coef=0.123, kl_estimator="k3")
    finally:
        bench.health = before
    ref = advantages(bench, scored, base, algorithm="rloo", kl_coef=0.123, kl_estimator="k3")
    assert bench.metrics(ref)["health/warnings"] == 0.0


def test_a_number_that_is_none_is_beyond_every_limit(world):
    with pytest.raises((UnhealthyError, NonFiniteError)):
        a_gated_update(world, {"action": "warn"}, learning_rate=1e30)


# reward model


def margin_rows(tmp_path, margin):
    pairs = [
        {"prompt": f"question {i}:", "chosen": f" thank you {i}", "rejected": f" go away {i}", "margin": margin}
        for i in range(40)
    ]
    return (Source(path=write_rows(tmp_path / f"margin-{margin}.jsonl", pairs)),)


def test_a_margin_makes_the_reward_model_tell_its_pairs_further_apart(world, tmp_path):
    bench, base, _, _ = world
    config = prepare_config(tmp_path, preferences=margin_rows(tmp_path, 4.0))
    data = bench.run("prepare_data", config, place=Place(1), base=base)
    gaps = {
        use: bench.metrics(train_reward_model(bench, base, data, use_margins=use, epochs=4))["reward_model/mean_margin"]
        for use in (False, True)
    }
    assert gaps[True] > gaps[False] + 0.5


def test_margins_that_no_preference_has_are_refused(world):
    bench, base, data, _ = world
    with pytest.raises(DataError, match=r"reward_model\.use_margins: no preference has a margin; add the column"):
        train_reward_model(bench, base, data, use_margins=True)


def test_centering_keeps_the_raw_scores_near_0(world):
    bench, base, data, _ = world
    prompt, responses = "question 1:", [" on the table. thank you 1", " go away now 1"]
    sums = {}
    for weight in (0.0, 1.0):
        directory = train_reward_model(bench, base, data, centering=weight).directory / "reward_model"
        model, tokenizer = load_scalar_model(directory, seed=0), load_tokenizer(str(directory))
        with torch.no_grad():
            scores = [
                float(model(torch.tensor([encode_dialogue(tokenizer, prompt, response)[0]]))[0, -1])
                for response in responses
            ]
        sums[weight] = abs(sum(model.mean + model.std * score for score in scores))
    assert sums[1.0] < sums[0.0]


def test_a_reward_model_whose_score_is_not_finite_is_named(world, tmp_path):
    bench, base, data, _ = world
    broken = load_scalar_model(train_reward_model(bench, base, data).directory / "reward_model")
    with torch.no_grad():
        broken.model.score.weight.fill_(3e38)  # finite, as weights must be; a sum of them is not
    broken.save(tmp_path / "broken")
    for file in base.directory.glob("tokenizer*"):
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    (rollouts,) = generate(bench, base, data)
    rewards = {"broken": ModelReward(model="somewhere")}
    with pytest.raises(RewardError, match=r"rewards\.broken: .* returned (nan|-?inf) for rollout r1\.i1\.s0\."):
        score(bench, base, rollouts, rewards, external={"broken": external(tmp_path / "broken")})


# audits


def an_audit(bench, base, scored, *, baseline=None, rewards=None, iteration=1):
    return bench.run(
        "audit_rollouts",
        AuditRolloutsConfig(held_out_rewards=rewards or {}),
        place=Place(1, iteration),
        scored=scored,
        policy=base,
        external={},
        baseline=baseline,
    )


def test_a_score_of_length_correlates_with_length_and_repetition_is_counted(world):
    bench, base, data, _ = world
    shards = generate(bench, base, data, prompts_per_iteration=16, samples_per_prompt=4, shards=2)
    scored = [score(bench, base, shard, LENGTH, critic=None) for shard in shards]
    ref = an_audit(bench, base, scored)
    table = [row for shard in scored for row in rows(shard)]
    metrics = bench.metrics(ref)
    expected = statistics.correlation(
        [row["score"] for row in table], [float(len(row["response_token_ids"])) for row in table]
    )
    assert metrics["audit/length_correlation"] == pytest.approx(expected)
    audited = rows(ref, "audit")
    assert [row["rollout_id"] for row in audited] == [row["rollout_id"] for row in table]
    for own, row in zip(audited, table, strict=True):
        ids = row["response_token_ids"]
        pairs = list(itertools.pairwise(ids))
        assert own["distinct_2"] == (pytest.approx(len(set(pairs)) / len(pairs)) if pairs else None)


def test_the_gap_is_how_much_further_the_score_has_risen_than_the_held_out_reward(world, other):
    bench, base, data, _ = world
    held_out = {"answer": FunctionReward(function="small_world:answer_reward")}
    batches = [
        [score(bench, base, generate(bench, base, data, prompts_per_iteration=n)[0], LENGTH, critic=None)]
        for n in (6, 9)
    ]
    first = an_audit(bench, base, batches[0], rewards=held_out)
    second = an_audit(bench, base, batches[1], rewards=held_out, baseline=first, iteration=2)
    tables = [rows(shard) for (shard,) in batches]
    answers = [[float(json.loads(row["extra"])["answer"]) for row in table] for table in tables]
    scores = [[row["score"] for row in table] for table in tables]

    def gain(before, after):
        return (statistics.mean(after) - statistics.mean(before)) / statistics.stdev(before)

    metrics = bench.metrics(second)
    assert bench.metrics(first)["audit/answer_gap"] == 0.0
    assert metrics["audit/answer_gain"] == pytest.approx(gain(*answers))
    # One sample a prompt, so of each batch the standard error of a mean: of how far the score is ahead.
    stds = statistics.stdev(scores[0]), statistics.stdev(answers[0])
    ahead = [
        [s / stds[0] - a / stds[1] for s, a in zip(*own, strict=True)] for own in zip(scores, answers, strict=True)
    ]
    expected = math.hypot(*(statistics.stdev(own) / math.sqrt(len(own)) for own in ahead))
    assert metrics["audit/answer_gap_stderr"] == pytest.approx(expected, rel=1e-5)
    assert "audit/answer_gap_stderr" not in bench.metrics(first)
    assert metrics["audit/answer_gap"] == pytest.approx(gain(*scores) - gain(*answers))
    assert abs(metrics["audit/answer_gap"]) > 0.01
    assert metrics["audit/answer"] == pytest.approx(statistics.mean(answers[1]))
    assert metrics["audit/answer_correlation"] == pytest.approx(statistics.correlation(scores[1], answers[1]))
    assert [row["held_out_answer"] for row in rows(second, "audit")] == answers[1]


@pytest.mark.parametrize(
    ("tokens", "n", "share"),
    [([5, 6, 7, 8], 2, 1.0), ([5, 5, 5, 5, 5], 2, 0.25), ([5, 6, 5, 6], 2, 2 / 3), ([5], 2, None), ([5], 1, 1.0)],
)
def test_distinct_share_worked_examples(tokens, n, share):
    assert distinct_share(tokens, n) == share


def test_what_does_not_vary_correlates_with_nothing():
    assert correlation([1.0, 1.0], [1.0, 2.0]) == 0.0
    assert correlation([1.0, 2.0], [3.0, 3.0]) == 0.0
    assert correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


def test_an_update_does_not_depend_on_micro_batches(world, tmp_path, other):
    _, base, _, config = world
    ppo = replace(ONE_STEP, aggregation="seq_mean", kl_loss_coef=0.1, entropy_coef=0.01)
    weights_by_size = []
    for tokens in (4096, 1):
        bench = Workbench(tmp_path / str(tokens), micro_batch_tokens=tokens)
        data = bench.run("prepare_data", config, place=Place(1), base=base)
        checkpoint = an_update(bench, base, data, reference=other, ppo=ppo, algorithm="grpo")
        weights_by_size.append(AutoModelForCausalLM.from_pretrained(checkpoint.directory / "policy"))
    for a, b in zip(*(model.parameters() for model in weights_by_size), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)
