"""Whole runs off the default path: one without a critic, which a gate stops, and one whose KL coefficient adapts."""

import json
import math
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise

import pytest
from conftest import TINY, overrides
from typer.testing import CliRunner

from flows.cli import main as cli
from flows.presets.quickstart import quality
from tasks.store.data_sets import read_dataset

# No model but the policy, which begins with random weights; rules instead of a reward model.
ALONE = {
    "warm_up": "null",
    "reward_model": "null",
    "data.preferences": "[]",
    "rewards": "{variety: {function: 'flows.presets.stories:variety'}}",
    "rollouts.sampling.max_new_tokens": 64,
    "optimizers.learning_rate": 0.01,
}
GROUPED = {
    **ALONE,
    "rounds": 1,
    "algorithm": "grpo",
    "rollouts.prompts_per_iteration": 4,
    "rollouts.samples_per_prompt": 4,
    "advantages.kl_coef": 0,
    "ppo.aggregation": "seq_mean",
    "ppo.kl_loss_coef": 0.1,
}
KL_COEF, TARGET, HORIZON = 0.05, 1.0, 40
ADAPTIVE = {
    **ALONE,
    "advantages.kl_coef": KL_COEF,
    "advantages.kl_target": TARGET,
    "advantages.kl_horizon": HORIZON,
    "advantages.normalize_scores": "true",
    "optimizers.critic_learning_rate": 0.01,
}
NUM_RESPONSES = 8
PLACES = [(1, 1), (1, 2), (2, 1), (2, 2)]


def committed(home, run, stage):
    """Directory and manifest of each output of a stage, by round and iteration."""
    found = {}
    for name, manifest in home.stages(run).items():
        if manifest["recipe"]["stage"] == stage:
            place = manifest["recipe"]["round"], manifest["recipe"]["iteration"]
            assert place not in found
            found[place] = home.path / "runs" / run / "stages" / name, manifest
    return found


@dataclass(frozen=True)
class Stopped:
    """A run that did not get far."""

    name: str
    err: str
    stages: dict


@pytest.fixture(scope="session")
def stopped(home):
    """Stopped by a gate in its first update: over 300 tokens, no distribution has an entropy of 50 nats."""
    set_ = overrides({**GROUPED, "health.min_entropy": 50})
    done = home.rounds("run", TINY, "--name", "alone", *set_, code=1)
    return Stopped("alone", done.stderr, home.stages("alone"))


@pytest.fixture(scope="session")
def resumed(home, stopped):
    """What the command says that goes on with it, with the same limit and no more than a warning."""
    return home.rounds("rerun", stopped.name, "--set", "health.action=warn").stderr


@pytest.fixture(scope="session")
def alone(home, stopped, resumed):
    """The finished run without a critic, not to be changed."""
    return stopped.name


@pytest.fixture
def here(home):
    """Calls a command that only reads, in this process."""

    def call(*args, code=0):
        result = CliRunner().invoke(cli.app, ["--home", str(home.path), *map(str, args)])
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    return call


def test_a_gate_stops_the_run_before_it_commits_with_limit_value_and_next_move(stopped):
    (error,) = [line for line in stopped.err.splitlines() if line.startswith("error")]
    told = re.match(
        r"error in update_policy-r1\.i1: the policy's entropy, .* is (\S+), below health\.min_entropy=50; ", error
    )
    assert told, error
    # Random weights are close to the uniform distribution, which has the most.
    assert 5 < float(told[1]) <= math.log(300)
    assert "; raise advantages.kl_coef or ppo.entropy_coef, or lower optimizers.learning_rate, " in error
    assert ", or set health.action: warn to go on; details are in " in error
    assert error.endswith("worker.log; when it is mended, the same command continues")
    assert "Traceback" not in stopped.err
    stages = {manifest["recipe"]["stage"] for manifest in stopped.stages.values()}
    assert {"generate_rollouts", "score_rollouts", "compute_advantages"} <= stages
    assert not stages & {"update_policy", "evaluate_policy", "report_round"}


def test_told_to_warn_it_goes_on_with_what_was_committed_and_warns_once_a_stage(home, stopped, resumed):
    assert stopped.stages.items() <= home.stages(stopped.name).items()
    warnings = [line[10:] for line in resumed.splitlines() if "below health.min_entropy=50" in line]
    assert [line.partition(": ")[0] for line in warnings] == [
        f"round 1 · iteration {iteration} · update policy" for iteration in (1, 2)
    ]
    updates = committed(home, stopped.name, "update_policy")
    assert [manifest["metrics"]["health/warnings"] for _, manifest in updates.values()] == [1.0, 1.0]


def test_without_a_critic_nothing_of_one_is_computed_or_kept(home, alone):
    root = home.path / "runs" / alone
    assert list(root.rglob("*critic*")) == []
    updates = committed(home, alone, "update_policy")
    assert sorted(updates) == [(1, 1), (1, 2)]
    for directory, manifest in updates.values():
        assert {path.name for path in directory.iterdir()} == {
            "loop_state.json",
            "manifest.json",
            "policy",
            "policy_optimizer.safetensors",
        }
        assert not any("value" in name or "critic" in name for name in manifest["metrics"])
        assert manifest["metrics"]["update/kl_loss"] >= 0
        assert manifest["metrics"]["update/grad_norm"] > 0
    for directory, manifest in committed(home, alone, "compute_advantages").values():
        columns = set(read_dataset(directory / "rollouts").column_names)
        assert columns.isdisjoint({"values", "final_value", "returns"})
        assert not any(name.startswith(("values/", "returns/")) for name in manifest["metrics"])


def asked_for(prompt):
    """Colour and thing in a prompt of the quickstart's world."""
    return re.search(r"the (\w+) (\w+)\?", prompt).groups()


def test_rollouts_are_listed_with_what_the_audit_found(here, alone):
    found = json.loads(here("rollouts", alone, "--json").stdout, parse_constant=pytest.fail)
    assert (found["round"], found["iteration"], found["stage"]) == (1, 2, "compute_advantages")
    lines = here("rollouts", alone, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == found["rollouts"]
    assert len(lines) == 16
    for row in found["rollouts"]:
        assert row["held_out_true_quality"] == quality(row["response"], *asked_for(row["prompt"]))
        ids = row["response_token_ids"]
        pairs = list(pairwise(ids))
        assert row["distinct_2"] == (pytest.approx(len(set(pairs)) / len(pairs)) if pairs else None)
        assert not {"values", "returns"} & row.keys()


def test_one_rollout_is_shown_without_value_and_return(here, alone):
    row = json.loads(here("rollouts", alone, "--format", "jsonl", "--top", 1).stdout)
    text = here("show", row["rollout_id"], "--run", alone).stdout
    assert re.search(r"^ *t +token +id +logprob +ref_logprob +kl +reward +advantage *$", text, re.M)
    shown = json.loads(here("show", row["rollout_id"], "--run", alone, "--json").stdout)
    assert [token["token_id"] for token in shown["tokens"]] == row["response_token_ids"]
    assert [token["advantage"] for token in shown["tokens"]] == row["advantages"]


def test_the_policy_is_exported_and_a_critic_refused(here, alone, tmp_path):
    here("export", alone, "--to", tmp_path / "policy")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "policy").iterdir()}
    refused = here("export", alone, "--to", tmp_path / "critic", "--what", "critic", code=2)
    told = "error: --what critic: run alone has none, as algorithm: grpo learns none; it has a policy\n"
    assert refused.stderr == told
    assert not (tmp_path / "critic").exists()


@pytest.fixture(scope="session")
def adaptive(home):
    """A finished run of two rounds whose KL coefficient follows the KL."""
    home.rounds("run", TINY, "--name", "adaptive", *overrides(ADAPTIVE))
    return "adaptive"


def states(home, run):
    """The loop state in each checkpoint."""
    updates = committed(home, run, "update_policy")
    return {place: json.loads((directory / "loop_state.json").read_text()) for place, (directory, _) in updates.items()}


def test_each_kl_coefficient_follows_from_the_one_before_also_from_round_to_round(home, adaptive):
    experience, after = committed(home, adaptive, "compute_advantages"), states(home, adaptive)
    assert sorted(experience) == sorted(after) == PLACES
    kl_coef = KL_COEF
    for place in PLACES:
        directory, manifest = experience[place]
        assert manifest["metrics"]["kl/coef"] == pytest.approx(kl_coef, rel=1e-12)
        kls = []
        for row in read_dataset(directory / "rollouts").to_pylist():
            own = sum(row["logprobs"]) - sum(row["ref_logprobs"])
            assert sum(row["rewards"]) == pytest.approx(row["treated_score"] - kl_coef * own, abs=1e-5)
            kls.append(own)
        # Ziegler et al. 2019, section 2.2.
        error = min(max(sum(kls) / NUM_RESPONSES / TARGET - 1, -0.2), 0.2)
        kl_coef *= 1 + error * NUM_RESPONSES / HORIZON
        assert after[place]["kl_coef"] == pytest.approx(kl_coef, rel=1e-6)
        kl_coef = after[place]["kl_coef"]
    assert len({state["kl_coef"] for state in after.values()}) == len(PLACES)


def test_scores_are_normalized_by_all_scores_so_far(home, adaptive):
    experience, after = committed(home, adaptive, "compute_advantages"), states(home, adaptive)
    scores = []
    for place in PLACES:
        rows = read_dataset(experience[place][0] / "rollouts").to_pylist()
        scores += [row["score"] for row in rows]
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
        assert after[place]["scores"]["count"] == len(scores)
        assert after[place]["scores"]["mean"] == pytest.approx(mean)
        for row in rows:
            assert row["treated_score"] == pytest.approx((row["score"] - mean) / std, abs=1e-4)


@pytest.mark.slow
def test_a_run_whose_last_iteration_is_lost_makes_it_again_to_the_last_bit(home, adaptive):
    before = home.digests(adaptive)
    root = home.path / "runs" / adaptive / "stages" / "round-002"
    for lost in ("iteration-002", "evaluate_policy", "report_round"):
        shutil.rmtree(root / lost)
    kept = home.stages(adaptive)
    assert len(kept) < len(before)
    home.rounds("run", TINY, "--name", adaptive, *overrides(ADAPTIVE))
    assert home.digests(adaptive) == before
    assert kept.items() <= home.stages(adaptive).items()
