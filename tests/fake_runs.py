"""A finished run without a model: the flows commit hand-made outputs in the places where stages would."""

import json
from dataclasses import replace

import pyarrow as pa
import yaml

from flows.config.reading import checked
from flows.plan.calls import external_models, stage_call, with_code_digests
from flows.round import rlhf_round
from flows.runs.workspace import create_or_open
from tasks.store.data_sets import write_dataset
from tasks.store.digests import digest_files
from tasks.store.manifest import Manifest, Place, Ref, digests_below
from tasks.store.schemas import (
    HELD_OUT_PAIRS,
    PROMPTS,
    ROLLOUTS,
    advantages_schema,
    audit_schema,
    scored_schema,
    table_of,
)

VOCABULARY = {"<s>": 0, "</s>": 1, "good": 2, "Ġdog": 3, "bad": 4}
# What a model may write: markup of the tables' library, and the sequence that clears a terminal.
HOSTILE = "[red]good[/red]\x1b[2J\n dog"
NUM_ROWS = 2
# One update that moves the policy too far, and what its round's report says of it.
ILL = Place(2, 2)
ILLNESS = "update/approx_kl is 0.3, above 0.1 (round 2, iteration 2): each update moves the policy far"


def document(directory, **changes):
    """A configuration whose data files lie in ``directory``."""
    (directory / "prompts.jsonl").write_text('{"prompt": "say"}\n')
    (directory / "texts.jsonl").write_text('{"text": "good dog"}\n')
    (directory / "preferences.jsonl").write_text('{"prompt": "say", "chosen": "good", "rejected": "bad"}\n')
    return {
        "rounds": 2,
        "iterations": 2,
        "model": {"from_scratch": {}},
        "data": {name: [str(directory / f"{name}.jsonl")] for name in ("prompts", "texts", "preferences")},
        "reward_model": {},
        "rewards": {"preference": {"model": "trained"}},
        "rollouts": {"shards": 2, "sampling": {"max_new_tokens": 4}},
        "evaluation": {"held_out_rewards": {"true_quality": {"function": "flows.presets.quickstart:true_quality"}}},
        **changes,
    }


def write_config(directory, **changes):
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(document(directory, **changes)))
    return path


def finished_run(home, name, config, *, stop_before=None):
    """Commit every stage of a run, or all before one ``(stage, round, iteration)``."""
    run = create_or_open(home, name)
    config = checked(config, where="test")
    run.set_config(config)
    config = with_code_digests(config)
    commit = Committer(run, config, stop_before)
    state = None
    for number in range(1, config.rounds + 1):
        state = rlhf_round(commit, config, number, state, external_models(config, home))
    return run


def recommit(directory):
    """Have the files of an output be what was committed."""
    manifest = Manifest.read(directory)
    digests = digests_below(directory)
    files = {name: {"size": (directory / name).stat().st_size, "sha256": own} for name, own in digests.items()}
    replace(manifest, files=files, digest=digest_files(digests)).write(directory)


class Committer:
    """Calls a stage by committing a made-up output of it."""

    def __init__(self, run, config, stop_before):
        self.run, self.config, self.stop_before = run, config, stop_before
        self.stopped = False

    def __call__(self, stage, place, settings, **inputs):
        self.stopped |= (stage, place.round, place.iteration) == self.stop_before
        call = stage_call(self.run, self.config, stage, place, settings, self.run.generations)
        call = call.with_inputs(inputs)
        if self.stopped:
            return Ref(f"nowhere/{call.label}", call.recipe().fingerprint)
        if (done := self.run.store.find(call.recipe())) is not None:
            return done
        scratch = self.run.store.scratch(call.recipe())
        # Another recipe makes another output, as with real stages.
        (scratch / "recipe.json").write_text(json.dumps(call.recipe().as_dict()))
        metrics = (WRITERS if self.config.has_critic else WITHOUT_CRITIC)[stage](scratch, place)
        return self.run.store.commit(call.recipe(), scratch, inputs=inputs, rows=NUM_ROWS, metrics=metrics, seconds=1.5)


def rollouts(place, columns):
    """Two rollouts of ``good dog`` and ``bad``; the second has the higher score."""
    label = f"r{place.round}.i{place.iteration}.s{place.shard or 0}"
    per_token = {"logprobs": -1.0, "ref_logprobs": -1.5, "values": 0.25, "kl": 0.5, "rewards": 0.75, "advantages": 2.0}
    ids = [[2, 3, 1], [4]]
    values = {
        "rollout_id": [f"{label}.aa.0", f"{label}.bb.0"],
        "prompt_id": ["aa", "bb"],
        "prompt": ["say", "say [bold]it"],
        "messages": ["", ""],
        "prompt_token_ids": [[0], [0]],
        "extra": ["{}", "{}"],
        "sample_index": [0, 0],
        "policy_version": ["p", "p"],
        "response": [HOSTILE, "bad"],
        "response_token_ids": ids,
        "finish_reason": ["stop", "length"],
        "score": [-1.0, 3.0],
        "score_preference": [-1.0, 3.0],
        **{name: [[value] * len(row) for row in ids] for name, value in per_token.items()},
        "returns": [[1.25] * len(row) for row in ids],
        "final_value": [0.5, 0.5],
        "treated_score": [-1.0, 3.0],
    }
    return pa.table({field.name: pa.array(values[field.name], field.type) for field in columns}, schema=columns)


def write_rollouts(columns, metrics):
    def write(directory, place):
        write_dataset(directory / "rollouts", rollouts(place, columns))
        return metrics

    return write


def write_model(directory, **settings):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **settings}))
    (directory / "model.safetensors").write_bytes(b"weights")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "bad"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_data(directory, _):
    """Two prompts, one of which was hostile, and a row that was left out."""
    write_model(directory / "policy")
    rows = [("aa", "say", "", [0, 2], "{}"), ("bb", HOSTILE, "", [0, 2, 3, 1], "{}")]
    write_dataset(directory / "prompts", table_of(rows, PROMPTS))
    findings = {
        "rows": 4,
        "bad": {HOSTILE: 1},
        "row_numbers": {HOSTILE: {"prompts.jsonl": "3"}, "equal responses": {"preferences.jsonl": "7-9, 12"}},
        "context_length": 6,
        "left_out": {"equal responses": 1},
        "split": {},
        "rows_of_sources": {"prompts": [3], "preferences": [1], "texts": [1], "held_out_prompts": []},
    }
    (directory / "findings.json").write_text(json.dumps(findings))
    return {"data/prompts": 2.0, "data/dropped": 2.0}


def write_reward_model(directory, _):
    """Three held-out pairs: right, wrong by little, wrong by much."""
    write_model(directory / "reward_model", score_mean=0.5, score_std=2.0)
    pairs = [
        ("p1", "say", "good dog", "bad", 2.0, 0.5, 1.5, 4, 1.0, 0),
        ("p2", "say", "good", HOSTILE, 0.5, 1.0, -0.5, -1, 2.0, 0),
        ("p3", "say [bold]it", "good", "bad", -1.0, 2.0, -3.0, 0, 3.0, 1),
    ]
    write_dataset(directory / "held_out_pairs", table_of(pairs, HELD_OUT_PAIRS))
    bins = [{"lower": 0.5, "pairs": 3, "mean_confidence": 0.52, "accuracy": 1 / 3}]
    quality = {"pairs": 3, "accuracy": 1 / 3, "calibration_error": 0.1, "bins": bins}
    (directory / "calibration.json").write_text(json.dumps(quality))
    return {"reward_model/accuracy": 0.8}


def write_critic(directory, _):
    write_model(directory / "critic", score_mean=0.5, score_std=2.0)
    return {"critic_pretraining/explained_variance": 0.25}


def write_policy(directory, place):
    write_model(directory / "policy")
    return {"update/entropy": 2.0 + place.iteration, "update/approx_kl": 0.3 if place == ILL else 0.01}


def write_policy_and_critic(directory, place):
    write_model(directory / "critic", score_mean=0.5, score_std=2.0)
    return write_policy(directory, place)


def write_evaluation(_, place):
    return {"evaluation/score": 1.0 * place.round, "evaluation/kl": 0.25}


def write_report(directory, place):
    summary = {
        "round": place.round,
        "evaluation/score": 1.0 * place.round,
        "evaluation/reference_score": 0.125,
        "evaluation/score_gain": 0.5 * place.round,
        "evaluation/true_quality": 4.5,
        "evaluation/reference_true_quality": 3.5,
        "evaluation/true_quality_gain": 1.5,
        "evaluation/kl": 0.25,
        "evaluation/response_length": 7.0,
        "evaluation/reference_response_length": 9.0,
        "reward_model/accuracy": 0.8,
        "update/entropy": 4.0,
        "warnings": [{"metric": "update/approx_kl", "sentence": ILLNESS}] if place.round == ILL.round else [],
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    history = [
        {"round": r, "iteration": i, "score/mean": r + 0.5 * i} for r in range(1, place.round + 1) for i in (1, 2)
    ]
    (directory / "metrics.json").write_text(json.dumps(history))
    return {}


def write_audit(directory, place):
    """Against the score: the second rollout is the worse one. It has one token, so no pair of them."""
    ids = rollouts(place, ROLLOUTS)["rollout_id"].to_pylist()
    rows = list(zip(ids, [1.0, None], [6.5, 2.5], strict=True))
    write_dataset(directory / "audit", table_of(rows, audit_schema(["true_quality"])))
    return {"audit/length_correlation": -1.0}


SCORED, SCORED_ALONE = (scored_schema(["preference"], has_exact_kl=False, has_values=has) for has in (True, False))

WRITERS = {
    "prepare_data": write_data,
    "train_reward_model": write_reward_model,
    "critic_pretraining": write_critic,
    "generate_rollouts": write_rollouts(ROLLOUTS, {"rollouts/response_length": 2.0}),
    "score_rollouts": write_rollouts(SCORED, {"score/mean": 1.0}),
    "compute_advantages": write_rollouts(advantages_schema(SCORED, has_returns=True), {"kl/mean": 0.5}),
    "update_policy": write_policy_and_critic,
    "audit_rollouts": write_audit,
    "evaluate_policy": write_evaluation,
    "report_round": write_report,
}
WITHOUT_CRITIC = {
    **WRITERS,
    "score_rollouts": write_rollouts(SCORED_ALONE, {"score/mean": 1.0}),
    "compute_advantages": write_rollouts(advantages_schema(SCORED_ALONE, has_returns=False), {"kl/mean": 0.5}),
    "update_policy": write_policy,
}
