"""The card of an exported model: where it came from, how it was measured, how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.config import RunConfig
from flows.outcomes.outputs import Found, find_outputs
from flows.outcomes.results import result_columns, result_rows, summary_of, warning_markdown, warnings_of
from flows.runs import Run
from tasks.store import Manifest, read_json

PIPELINE_TAGS = {"policy": "text-generation", "critic": "text-classification", "reward_model": "text-classification"}
LICENSE_COMMENT = "# license: yours to choose; it must agree with those of the base model and the data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written where, and which of the run's outputs it is."""

    run: Run
    part: str
    directory: Path
    found: Found

    @property
    def where(self) -> str:
        place = self.found.place
        return f"round {place.round}" + (f", iteration {place.iteration}" if place.iteration else "")

    @property
    def sentence(self) -> str:
        return f"the {self.part.replace('_', ' ')} of run {self.run.name} ({self.where}) to {self.directory}"

    def as_dict(self) -> dict[str, Any]:
        place = self.found.place
        return {
            "run": self.run.name,
            "what": self.part,
            "directory": str(self.directory),
            "round": place.round,
            "iteration": place.iteration or None,
            "digest": self.found.ref.digest,
        }


def model_card(exported: Exported, directory: Path) -> str:
    """README.md: YAML front matter for the hub, then text for people."""
    run, part, found = exported.run, exported.part, exported.found
    config = run.config
    manifest = Manifest.read(found.ref.directory)
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS[part],
        "tags": [config.algorithm.replace("_", "-"), "rlhf", "rlhf-rounds"],
    }
    base = base_model(config, part)
    if base is not None and not Path(base).expanduser().exists():
        # The hub knows its own models alone; a directory of this machine would only be a dead link.
        front["base_model"] = base
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        LICENSE_COMMENT,
        "---",
        "",
        f"# {run.name}: {part.replace('_', ' ')} after {exported.where}",
        "",
        f"{TITLES[part]} Trained by rlhf-rounds in a run of {config.rounds} rounds of {config.iterations} "
        f"iterations, algorithm {config.algorithm}, seed {config.seed}, from {base or 'a new model with random weights'}.",
        "",
        "## Evaluation",
        "",
        *evaluation_lines(run, config, found.place.round),
        "",
        "## Rewards",
        "",
        *reward_lines(config),
        "",
        "## How to load it",
        "",
        *loading_lines(part, directory),
        "",
        "## Where it came from",
        "",
        f"- run: `{run.name}`, {exported.where}, stage `{manifest.stage}`",
        f"- digest of the output: `{found.ref.digest}`",
        f"- fingerprint of its recipe: `{manifest.fingerprint}`",
        *(f"- sha256 of `{name}`: `{entry['sha256']}`" for name, entry in weight_files(manifest, part)),
        "",
    ]
    return "\n".join(lines)


TITLES = {
    "policy": "A causal language model, trained against the rewards below.",
    "critic": "The critic of a PPO run: its estimate, at each token, of the return still to come.",
    "reward_model": "A reward model: one score per response, from a Bradley–Terry fit of preferences.",
}


def base_model(config: RunConfig, part: str) -> str | None:
    """What the model was trained from, as the configuration names it."""
    if part == "reward_model" and config.reward_model is not None and config.reward_model.base is not None:
        return config.reward_model.base
    if part == "critic" and config.model.names_critic:
        return config.model.critic
    return config.model.policy


def weight_files(manifest: Manifest, part: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (name.removeprefix(f"{part}/"), entry)
        for name, entry in sorted(manifest.files.items())
        if name.startswith(f"{part}/") and name.endswith(".safetensors")
    ]


def evaluation_lines(run: Run, config: RunConfig, round: int) -> list[str]:
    """The results of the rounds so far, as a Markdown table."""
    reports = [f for f in find_outputs(run) if f.stage == "report_round" and f.place.round <= round]
    summaries = [summary_of(found.ref) for found in sorted(reports, key=lambda found: found.place)]
    if not summaries:
        return ["The run was not evaluated yet."]
    columns = result_columns(config)
    rows = result_rows(columns, summaries)
    sentences = [sentence for summary in summaries for sentence in warnings_of(summary)]
    return [
        "Means over responses to held-out prompts; gains in standard deviations of the reference's scores.",
        "",
        *markdown_table(["", *(column.title for column in columns)], rows),
        *(line for block in warning_markdown(sentences) for line in ("", block)),
    ]


def markdown_table(titles: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [line(titles), line(["---", *("---:" for _ in titles[1:])]), *(line(row) for row in rows)]


def reward_lines(config: RunConfig) -> list[str]:
    return [
        f"- `{name}`, weight {reward.weight:g}: "
        + ("the reward model trained in the run" if reward.is_trained_in_run else f"`{getattr(reward, reward.key)}`")
        for name, reward in config.rewards.items()
    ]


def loading_lines(part: str, directory: Path) -> list[str]:
    """Python that loads the model, and for a scalar model how its output becomes a score."""
    settings = read_json(directory / "config.json", default={})
    if part != "policy" and not has_library_class(settings):
        lines = body_and_head_lines(settings["architectures"][0])
    else:
        automatic = "AutoModelForCausalLM" if part == "policy" else "AutoModelForSequenceClassification"
        lines = [
            "```python",
            f"from transformers import {automatic}, AutoTokenizer",
            "",
            'directory = "."  # where this file lies',
            f"model = {automatic}.from_pretrained(directory)",
            "tokenizer = AutoTokenizer.from_pretrained(directory)",
            "```",
        ]
    if part == "policy":
        return lines
    mean, std = settings.get("score_mean", 0.0), settings.get("score_std", 1.0)
    return [
        *lines,
        "",
        "The run's scores are `(logit - score_mean) / score_std`, with both numbers in `config.json`: "
        f"`score_mean = {mean:.6g}`, `score_std = {std:.6g}`.",
    ]


def has_library_class(settings: Mapping[str, Any]) -> bool:
    """Whether the library, or code that comes with the model, has a sequence classifier for a config.json."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    kind = settings.get("model_type")
    return kind is None or kind in NAMES or "auto_map" in settings


def body_and_head_lines(name: str) -> list[str]:
    """How to load a scalar model for whose architecture the library has no class of this name: its body, and its head."""
    return [
        f"This version of transformers has no `{name}`, under whose names the weights are saved; vLLM and later versions "
        "may. The body loads by itself, and the head is one matrix:",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from safetensors import safe_open",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'directory = "."  # where this file lies',
        "body = AutoModel.from_pretrained(directory)",
        "tokenizer = AutoTokenizer.from_pretrained(directory)",
        'for file in Path(directory).glob("*.safetensors"):',
        '    with safe_open(file, "pt") as weights:',
        '        if "score.weight" in weights.keys():',
        '            head = weights.get_tensor("score.weight")',
        'tokens = tokenizer("a prompt and its response", return_tensors="pt")',
        "logit = body(**tokens).last_hidden_state[0, -1] @ head[0]",
        "```",
    ]
