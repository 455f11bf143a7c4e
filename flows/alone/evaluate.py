"""A policy, or another model in its place, against a run's reference: by the stage that evaluates each round."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flows.alone.chosen import AN_ADAPTER, Chosen, policy_of
from flows.alone.in_process import Report, in_process
from flows.config import RunConfig
from flows.iteration import adapted_base
from flows.plan import Planned, external_models, plan_of, stage_call, with_code_digests
from flows.round import evaluation_config
from flows.runs import Run
from tasks.errors import ConfigError, ModelError, RunError
from tasks.evaluate_policy import evaluate_policy
from tasks.metrics import mean_stderr
from tasks.models import Models
from tasks.store import Manifest, Place, Ref, Table, read_dataset, recalling, require_undamaged

STAGE = "evaluate_policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One line of an evaluation: a mean over responses of both, with standard errors by prompts."""

    name: str
    policy: float
    policy_stderr: float | None
    reference: float
    reference_stderr: float | None
    gain: float | None
    """In standard deviations of the reference; None where it has none, or for what is no reward."""
    gain_stderr: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the stage found, and the lines that it is shown as."""

    called: str
    num_prompts: int
    lines: Sequence[Measured]
    kl: float
    kl_stderr: float | None
    metrics: Mapping[str, float]
    """As the stage logs them."""
    is_reused: bool
    """Whether a run has committed it, so that nothing was sampled."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.called,
            "prompts": self.num_prompts,
            "is_reused": self.is_reused,
            "lines": [asdict(line) for line in self.lines],
            "kl": self.kl,
            "kl_stderr": self.kl_stderr,
            "metrics": dict(self.metrics),
        }


def evaluated(
    run: Run, report: Report, *, round: int | None, iteration: int | None, model: Chosen | None
) -> Evaluation:
    """Evaluate what is asked for on the held-out prompts of a round, with its randomness; by default of the last round that
    has a policy. What the run has committed with the same inputs is not done again.

    Raises:
        ConfigError: the run has no such round or iteration, or both a model and an iteration are named.
        RunError: nothing is there yet to evaluate on.
        ModelError: the model reads other tokens than the run's policy.
    """
    if model is not None and iteration is not None:
        raise ConfigError(
            f"--iteration {iteration}: --model takes the place of the run's policy; leave one of the two out"
        )
    with recalling(run.seen):
        config = with_code_digests(run.config)
    own = policy_of(run, round=round, iteration=iteration) if model is None or round is None else None
    number = round if own is None or own.place is None else max(1, own.place.round)
    assert number is not None, "a run's own policy has a place"
    chosen = own if model is None else model
    assert chosen is not None
    inputs = inputs_of(config, run, number, chosen)
    settings = evaluation_config(config)
    call = stage_call(run, config, STAGE, Place(number), settings, run.generations, inputs)
    if (done := run.store.find(call.recipe())) is not None:
        require_undamaged(done)
        metrics = Manifest.read(done.directory).metrics
        return evaluation_of(chosen, read_dataset(done.directory / "evaluation"), metrics, config, is_reused=True)
    lora_base = inputs.pop(AN_ADAPTER)
    context = in_process(
        run, place=call.place, seed=config.seed, execution=config.execution, lora_base=lora_base, report=report
    )
    with context as given:
        require_same_tokens(Models(given, settings.access), chosen, inputs["reference"], run)
        output = evaluate_policy(given, settings, **inputs)
        table = read_dataset(given.output / "evaluation")
        return evaluation_of(chosen, table, output.metrics, config, is_reused=False)


def inputs_of(config: RunConfig, run: Run, number: int, chosen: Chosen) -> dict[str, Any]:
    """What the stage is given in this round, with the chosen policy in the place of the round's own."""
    rounds = plan_of(run).rounds
    if not 1 <= number <= len(rounds):
        raise ConfigError(f"--round {number}: run {run.name} has no such round; it has 1 to {len(rounds)}")
    state = rounds[number - 1]
    with recalling(run.seen):
        externals = external_models(config, run.home)
    found = {"reference": state.reference, "reward_model": state.reward_model, "data": state.data}
    inputs = {name: output.ref if isinstance(output, Planned) else output for name, output in found.items()}
    for name, output in found.items():
        if output is not None and inputs[name] is None:
            raise RunError(
                f"run {run.name} has not yet in round {number} what an evaluation needs ({name.replace('_', ' ')}); "
                f"rounds status {run.name} shows how far it is"
            )
    base = adapted_base(config, inputs["reference"]) if chosen.place is not None else None
    return {
        **inputs,
        "policy": chosen.ref,
        "external": {**externals.rewards, **externals.held_out_rewards},
        AN_ADAPTER: base,
    }


def require_same_tokens(models: Models, chosen: Chosen, reference: Ref, run: Run) -> None:
    """Refuse a model to which the ids of the run's prompts mean other tokens."""
    own, theirs = (models.policy_tokenizer(ref).get_vocab() for ref in (chosen.ref, reference))
    if own != theirs:
        raise ModelError(
            f"--model {chosen.called}: has another vocabulary than the policy of run {run.name}, so that token by token "
            f"they cannot be compared; rounds sample --model … --json, and then rounds score --run {run.name}, compare texts"
        )


def evaluation_of(
    chosen: Chosen, table: Table, metrics: Mapping[str, float], config: RunConfig, *, is_reused: bool
) -> Evaluation:
    """The lines of the score, of each reward and of the length, by what the stage stored and logged."""
    sampled_by = np.array(table.column("sampled_by").to_pylist())
    policy, reference = (table.filter(sampled_by == name) for name in ("policy", "reference"))
    prompts = policy.column("prompt_id").to_pylist()
    names = ["score", *config.rewards, *config.evaluation.held_out_rewards]
    columns = {name: name if name == "score" else f"score_{name}" for name in names}
    lines = [
        measured(name, policy.column(column).to_pylist(), reference.column(column).to_pylist(), prompts, metrics)
        for name, column in columns.items()
    ]
    own, theirs = ([len(ids) for ids in part.column("response_token_ids").to_pylist()] for part in (policy, reference))
    lines.append(measured("response_length", own, theirs, prompts, metrics))
    both = zip(*(policy.column(name).to_pylist() for name in ("logprobs", "ref_logprobs")), strict=True)
    logratios = [sum(logprobs) - sum(ref_logprobs) for logprobs, ref_logprobs in both]
    return Evaluation(
        called=chosen.called,
        num_prompts=len(set(prompts)),
        lines=lines,
        kl=metrics["evaluation/kl"],
        kl_stderr=mean_stderr(logratios, prompts),
        metrics=metrics,
        is_reused=is_reused,
    )


def measured(
    name: str, policy: Sequence[float], reference: Sequence[float], prompts: Sequence[str], metrics: Mapping[str, float]
) -> Measured:
    """The stage's means, with standard errors beside them. Both answered the same prompts, so what is independent is the
    difference at a prompt."""
    gain, std = (metrics.get(f"evaluation/{key}") for key in (f"{name}_gain", f"reference_{name}_std"))
    spread = mean_stderr([now - then for now, then in zip(policy, reference, strict=True)], prompts)
    return Measured(
        name=name,
        policy=metrics[f"evaluation/{name}"],
        policy_stderr=mean_stderr(policy, prompts),
        reference=metrics[f"evaluation/reference_{name}"],
        reference_stderr=mean_stderr(reference, prompts),
        gain=gain,
        gain_stderr=None if not std or spread is None else spread / std,
    )
