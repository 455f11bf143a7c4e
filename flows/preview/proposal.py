"""A short configuration for a model and a file of preferences, from what both are: each setting with why it is so.

A setting that would be its default is left out. What is proposed was looked at as ``rounds check`` does: it has no mistake.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.config import RunConfig, default_of
from flows.preview.memory import memory_of_stages
from tasks.config import ExecutionConfig, Json, RolloutsConfig, Source
from tasks.data import read_rows
from tasks.errors import ConfigError
from tasks.yaml_text import write_yaml

NAMES: Mapping[str, Sequence[str]] = {
    "prompt": ("question", "instruction", "query", "input", "context"),
    "chosen": ("better", "preferred", "accepted", "good", "win", "response_chosen", "chosen_response"),
    "rejected": ("worse", "dispreferred", "declined", "bad", "lose", "response_rejected", "rejected_response"),
}
"""What people call our columns, where they do not call them so."""
LEARNING_RATES = ((10e6, 1e-4, 5e-4, 1e-3), (200e6, 5e-5, 1e-4, 1e-4), (1.5e9, 1e-5, 2e-5, 2e-5))
"""Below so many parameters: of policy, reward model and warm-up; the larger a model, the smaller its steps."""
OF_LARGE_MODELS = (5e-6, 1e-5, 1e-5)
OF_ADAPTERS = 1e-4
SHORTEST, LONGEST = 16, 512
"""Tokens of a response, whatever the data says: a first run is to be over soon."""
ROOM = 0.9
"""Share of what is free that a run may take."""
PROMPTS_PER_ITERATION = {"cpu": 64, "mps": 64, "cuda": 128}
MICRO_BATCH_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 16384}
RARELY_LONGER = 0.95
FEW_FOR_WARM_UP = 50


@dataclass(kw_only=True)
class Proposal:
    """A document, and why its settings are as they are, by their dotted names."""

    document: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    has_pairs: bool
    """Whether the preferences have a prompt and a chosen answer in columns of their own, as texts."""

    def set(self, path: str, value: Json, why: str) -> None:
        *parents, last = path.split(".")
        node = self.document
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
        self.reasons[path] = why

    @property
    def config(self) -> RunConfig:
        return RunConfig.model_validate(self.document)


def first_draft(model: str, preferences: str, prompts: str | None) -> Proposal:
    """What is known before anything is looked at but the names of columns."""
    source, has_pairs = source_of(preferences)
    draft = Proposal(document={"rounds": 1, "iterations": 10}, has_pairs=has_pairs)
    draft.reasons["rounds"] = "more with new preferences: a source with from_round: 2 begins a second round"
    draft.reasons["iterations"] = "for a first look; more where the score still rises at the end"
    draft.set("model.policy", model, "it is trained, and a copy of it stays as the reference")
    draft.set("data.preferences", [source], "")
    if prompts is None:
        draft.set("data.prompts", [source], "the prompts of the preferences; --prompts names others")
    else:
        draft.set("data.prompts", [prompts], "what responses are sampled to")
    draft.set("reward_model", {}, "")
    draft.set("rewards", {"preference": {"model": "trained"}}, "")
    draft.reasons["rewards"] = "the score; add rules of your own as {function: 'module:name'}, with a weight"
    draft.set("rollouts", {"sampling": {"max_new_tokens": SHORTEST}}, "")
    # What cannot be used is counted, and told, while nothing is decided.
    draft.document["data"]["on_bad_row"] = "drop"
    draft.document["data"]["num_held_out_prompts"] = 1
    return draft


def source_of(path: str) -> tuple[dict[str, Any], bool]:
    """A file of preferences, with the names of its columns where they are not ours, and whether they are of pairs of texts.

    Raises:
        DataError: it cannot be read.
    """
    values = read_rows(Source(path=path, limit=1), seed=0)[0].values
    lower = {str(name).lower(): name for name in values}
    found = {ours: next((lower[own] for own in theirs if own in lower), None) for ours, theirs in NAMES.items()}
    renamed = {ours: own for ours, own in found.items() if own is not None and ours not in values}
    if values.keys() & {"responses", "label", "completions"} or not all(n in values or n in renamed for n in NAMES):
        # Of another shape, or of none that is known.
        return {"path": path}, False
    is_text = all(isinstance(values[renamed.get(name, name)], str) for name in NAMES)
    return ({"path": path, "columns": renamed} if renamed else {"path": path}), is_text


def decided(draft: Proposal, found: Mapping[str, Any], *, free: int | None) -> Proposal:
    """The draft with what was found in its data and its model."""
    lengths, sizes, kind = found["lengths"], found["sizes"], found["device"]["kind"]
    decide_data(draft, found)
    decide_responses(draft, found)
    per_iteration = min(PROMPTS_PER_ITERATION[kind], max(4, len(lengths["prompts"]) // 2))
    if per_iteration != default_of(RolloutsConfig, "prompts_per_iteration"):
        draft.set("rollouts.prompts_per_iteration", per_iteration, "responses from one update to the next")
    rates = next((rates for most, *rates in LEARNING_RATES if sizes["parameters"] < most), OF_LARGE_MODELS)
    size = f"usual for {sizes['parameters'] / 1e6:,.1f} million parameters"
    draft.set("reward_model.learning_rate", rates[1], size)
    draft.set("optimizers.learning_rate", rates[0], f"{size}; lower where the run warns of the KL")
    draft.set("optimizers.critic_learning_rate", rates[0], "the critic's")
    decide_warm_up(draft, found, rates[2])
    decide_memory(draft, found, free=free)
    return draft


def decide_data(draft: Proposal, found: Mapping[str, Any]) -> None:
    data = draft.document["data"]
    dropped = sum(source["rows"] - source["kept"] for source in found["sources"])
    bad = sum(len(source["first_dropped"]) for source in found["sources"])
    del data["on_bad_row"], data["num_held_out_prompts"]
    if bad:
        draft.set("data.on_bad_row", "drop", f"{dropped:,} rows cannot be used: rounds check says which and why")
    num_prompts = len(found["lengths"]["prompts"])
    usual = 64
    if num_prompts < 8 * usual:
        held_out = max(1, num_prompts // 8)
        draft.set("data.num_held_out_prompts", held_out, f"of {num_prompts:,}, for evaluation; 64 is usual")
    num_preferences = sum(source["kept"] for source in found["sources"] if source["kind"] == "preferences")
    draft.reasons["data.preferences"] = f"{num_preferences:,} that can be used"
    if not found["has_conversations"] and found["has_chat_template"]:
        draft.reasons["data.prompts"] += (
            "; plain text, so the model's chat template is not used: give messages for that"
        )


def decide_responses(draft: Proposal, found: Mapping[str, Any]) -> None:
    """As long as the data's own, as far as the context of the model allows."""
    responses = sorted(found["lengths"].get("responses", [])) or [SHORTEST]
    usual = responses[min(len(responses) - 1, int(RARELY_LONGER * len(responses)))]
    longest_prompt = max(found["lengths"]["prompts"])
    room = LONGEST if found["context"] is None else found["context"] - longest_prompt
    tokens = max(1, min(max(SHORTEST, usual), LONGEST, room))
    why = f"19 of 20 responses in the data have at most {usual} tokens"
    if tokens == room:
        why += f"; what the context of {found['context']} leaves for the longest prompt"
    elif tokens == LONGEST < usual:
        why += "; shorter, for a first run"
    draft.document["rollouts"]["sampling"]["max_new_tokens"] = tokens
    draft.reasons["rollouts.sampling.max_new_tokens"] = why


def decide_warm_up(draft: Proposal, found: Mapping[str, Any], rate: float) -> None:
    """A model that was never taught to answer learns it from the answers that people preferred."""
    (source,) = draft.document["data"]["preferences"]
    num_pairs = len(found["lengths"]["preferences"])
    if found["has_chat_template"] or not draft.has_pairs or num_pairs < FEW_FOR_WARM_UP:
        return
    columns = source.get("columns", {})
    prompt = {"prompt": columns["prompt"]} if "prompt" in columns else {}
    texts = {**prompt, "response": columns.get("chosen", "chosen")}
    draft.set("data.texts", [{"path": source["path"], "columns": texts}], "the preferred responses, for the warm-up")
    draft.set("warm_up.learning_rate", rate, "the model has no chat template, so it has not learned to answer yet")


def decide_memory(draft: Proposal, found: Mapping[str, Any], *, free: int | None) -> None:
    """The first of these that fits: as it is, layers computed again, smaller passes, adapters."""
    kind = found["device"]["kind"]
    tokens = MICRO_BATCH_TOKENS[kind]
    if tokens != default_of(ExecutionConfig, "micro_batch_tokens"):
        draft.set("execution.micro_batch_tokens", tokens, "large passes gain nothing on this device")
    if free is None:
        return
    steps = (
        ("execution.gradient_checkpointing", True, "less memory, more time"),
        ("execution.micro_batch_tokens", 2048, "less memory, the same results"),
        ("model.lora", {"rank": 16}, "adapters: whole models do not fit into the memory that is free here"),
        ("model.shared_trunk", True, "the critic is a head on the policy's body"),
    )
    for path, value, why in steps:
        if most_memory(draft.config, found) <= ROOM * free:
            return
        draft.set(path, value, why)
        if path == "model.lora":
            draft.set("optimizers.learning_rate", OF_ADAPTERS, "usual for adapters")
            draft.set("optimizers.critic_learning_rate", OF_ADAPTERS, "the critic's")
    if (most := most_memory(draft.config, found)) > free:
        raise ConfigError(
            f"{draft.document['model']['policy']}: does not fit: even adapters take {most / 2**30:,.1f} GiB, and "
            f"{free / 2**30:,.1f} GiB are free on {found['device']['name']}; name a smaller model"
        )


def most_memory(config: RunConfig, found: Mapping[str, Any]) -> int:
    stages = memory_of_stages(
        config,
        {**found["sizes"], "adapter_parameters": adapters_of(config, found["sizes"])},
        prompt_tokens=max(found["lengths"]["prompts"]),
        device=found["device"]["kind"],
    )
    return max(stage.total for stage in stages)


def adapters_of(config: RunConfig, sizes: Mapping[str, Any]) -> int:
    """About so many parameters: seven layers in each of the model's, of rank 16."""
    return 0 if config.model.lora is None else 7 * 2 * config.model.lora.rank * sizes["hidden_size"] * sizes["layers"]


def written(draft: Proposal) -> str:
    """The document as YAML, with the reason of each setting behind it, or above where it takes several lines."""
    lines = [
        "# Written by rounds new. What is not here has its default, which rounds init writes down with its meaning."
    ]
    lines += _lines(draft.document, draft.reasons, "", 0)
    return "\n".join(lines) + "\n"


def _lines(section: Mapping[str, Any], reasons: Mapping[str, str], path: str, depth: int) -> list[str]:
    lines = []
    indent = "  " * depth
    for name, value in section.items():
        own = f"{path}{name}"
        why = reasons.get(own, "")
        has_reasons_within = any(other.startswith(f"{own}.") for other in reasons)
        if isinstance(value, Mapping) and has_reasons_within:
            lines += [f"{indent}{name}:{f'  # {why}' if why else ''}", *_lines(value, reasons, f"{own}.", depth + 1)]
        elif isinstance(value, (Mapping, list)) and value:
            body = write_yaml(value).rstrip("\n").splitlines()
            lines += [f"{indent}{name}:{f'  # {why}' if why else ''}", *(f"{indent}  {line}" for line in body)]
        else:
            text = write_yaml({name: value}).rstrip("\n")
            lines.append(f"{indent}{text}{f'  # {why}' if why else ''}")
    return lines
