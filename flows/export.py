"""A model of a run as a Hugging Face directory of its own, with a card that says where it came from."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from flows.config import RunConfig
from flows.results import Found, find_outputs, result_columns, result_rows, summary_of, warnings_of
from flows.round_page import warning_markdown
from flows.workspace import Run
from tasks.errors import ConfigError, RunError
from tasks.stage import StageContext, recover, remade
from tasks.store import Manifest, Ref, read_json, require_undamaged, write_json

STAGE_OF = {"policy": "update_policy", "critic": "update_policy", "reward_model": "train_reward_model"}
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


def export_model(run: Run, directory: Path, *, part: str, round: int | None) -> Exported:
    """Copy a model of a run into ``directory``, which must be new or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"--to {directory} exists and is not an empty directory; name another one")
    found = model_output(run, part, round)
    exported = Exported(run=run, part=part, directory=directory, found=found)
    # Beside its final place first, so that a copy that breaks off is not taken for a model.
    partial = directory.with_name(f".{directory.name}.{os.getpid()}")
    again = partial.with_name(f"{partial.name}.made-again")
    try:
        write_model(run, found, whole_output(run, found, again), part, partial)
        if part == "policy":
            end_as_trained(run.config, partial)
        (partial / "README.md").write_text(model_card(exported, partial))
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(directory)
    except OSError as error:
        raise ConfigError(f"--to {directory} cannot be written ({error.strerror}); name another directory") from error
    finally:
        for path in (partial, again):
            shutil.rmtree(path, ignore_errors=True)
    return exported


def whole_output(run: Run, found: Found, scratch: Path) -> Path:
    """Where the output has all its files as they were committed: itself, or ``scratch`` where some were not kept."""
    require_undamaged(found.ref)
    manifest = Manifest.read(found.ref.directory)
    if all((found.ref.directory / name).exists() for name in manifest.files):
        return found.ref.directory
    from tasks.models import ResidentModels, prefer_determinism

    prefer_determinism()
    models = ResidentModels()
    config = run.config
    context = StageContext(
        output=scratch,
        place=manifest.place,
        run_seed=config.seed,
        execution=config.execution,
        health=config.health,
        models=models,
        report=lambda _: None,
    )
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with models.recovering(lambda other: recover(other, run.store, context)):
        remade(found.ref, run.store, context, scratch)
    return scratch


def write_model(run: Run, found: Found, source: Path, part: str, directory: Path) -> None:
    """The model in ``source`` as a directory that ``from_pretrained`` reads by itself, also where the checkpoint has only
    its own part. What somebody laid beside its files stays behind.
    """
    manifest = Manifest.read(found.ref.directory)
    base = run.store.inputs_of(manifest).get("lora_base")
    shared_trunk = manifest.recipe["settings"].get("shared_trunk", False)
    if base is None and not (shared_trunk and part == "critic"):
        for name in manifest.files:
            if PurePath(name).is_relative_to(part):
                target = directory / PurePath(name).relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
        return
    if isinstance(base, Ref):
        require_undamaged(base)
    from tasks.learners import write_whole
    from tasks.models import POLICY, part_directory
    from tasks.text import copy_tokenizer

    write_whole(
        part,
        source,
        directory,
        lora_base=part_directory(base, POLICY) if isinstance(base, Ref) else None,
        shared_trunk=shared_trunk,
        trust_remote_code=run.config.model.trust_remote_code,
    )
    copy_tokenizer(source / POLICY, directory)


def end_as_trained(config: RunConfig, directory: Path) -> None:
    """Have the policy's generation configuration name every token that ended its responses, so that they end there again.

    Stop strings are not among them: they are the caller's to give, with a tokenizer.
    """
    from tasks.endings import GENERATION_CONFIG, terminators
    from tasks.text import load_tokenizer

    tokenizer = load_tokenizer(
        str(directory),
        trust_remote_code=config.model.trust_remote_code,
        chat_template_kwargs=config.model.chat_template_kwargs,
    )
    ids = sorted({*terminators(tokenizer), *config.rollouts.sampling.stop_token_ids})
    if ids:
        path = directory / GENERATION_CONFIG
        settings = read_json(path, default={})
        # One that is derived from config.json would be made anew from it.
        settings.pop("_from_model_config", None)
        write_json(path, {**settings, "eos_token_id": ids})


def model_output(run: Run, part: str, round: int | None) -> Found:
    """The run's last output that holds such a model, up to the end of ``round`` where one is given."""
    stage = STAGE_OF[part]
    outputs = find_outputs(run)
    if part == "reward_model" and run.config.reward_model is None:
        others = "a policy and a critic" if run.config.has_critic else "a policy"
        raise ConfigError(f"--what reward_model: run {run.name} trains none; it has {others}")
    if part == "critic" and not run.config.has_critic:
        others = "a policy" if run.config.reward_model is None else "a policy and a reward model"
        raise ConfigError(
            f"--what critic: run {run.name} has none, as algorithm: {run.config.algorithm} learns none; it has {others}"
        )
    if round is not None and not any(found.place.round == round for found in outputs):
        rounds = sorted({str(found.place.round) for found in outputs})
        raise ConfigError(f"--round {round}: run {run.name} has no such round; it has {', '.join(rounds) or 'none'}")
    candidates = [found for found in outputs if found.stage == stage and (round is None or found.place.round <= round)]
    if part != "reward_model" and round is not None:
        candidates = [found for found in candidates if found.place.round == round]
    # What an earlier configuration made further on is not this one's last.
    candidates = [found for found in candidates if found.is_current] or candidates
    if not candidates:
        raise RunError(
            f"run {run.name} has no {part.replace('_', ' ')} yet; rounds status {run.name} shows how far it is"
        )
    return max(candidates, key=lambda found: found.place)


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
        + (
            "the reward model trained in the run"
            if reward.is_trained_in_run
            else f"`{reward.model or reward.function}`"
        )
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
