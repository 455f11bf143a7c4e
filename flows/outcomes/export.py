"""A model of a run as a Hugging Face directory of its own, with a card that says where it came from."""

import contextlib
import os
import shutil
from pathlib import Path, PurePath

from flows.config import RunConfig
from flows.outcomes.card import Exported, model_card
from flows.outcomes.outputs import Found, find_outputs
from flows.runs import Run
from tasks.config import ModelAccess
from tasks.contract import StageContext, recover, remade
from tasks.errors import ConfigError, RunError
from tasks.stages import STAGES
from tasks.store import Manifest, Ref, read_json, require_undamaged, write_json


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
    from tasks.contract import ResidentModels
    from tasks.models import prefer_determinism

    prefer_determinism()
    models = ResidentModels()
    config = run.config
    context = StageContext(
        output=scratch,
        place=manifest.place,
        run_seed=config.seed,
        execution=config.execution,
        health=config.health,
        resident=models,
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
    access = ModelAccess(**manifest.recipe["settings"].get("access", {}))
    if base is None and not (access.shared_trunk and part == "critic"):
        for name in manifest.files:
            if PurePath(name).is_relative_to(part):
                target = directory / PurePath(name).relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
        return
    if isinstance(base, Ref):
        require_undamaged(base)
    from tasks.models import POLICY, part_directory, write_whole
    from tasks.text import copy_tokenizer

    write_whole(
        part,
        source,
        directory,
        lora_base=part_directory(base, POLICY) if isinstance(base, Ref) else None,
        access=access,
    )
    copy_tokenizer(source / POLICY, directory)


def end_as_trained(config: RunConfig, directory: Path) -> None:
    """Have the policy's generation configuration name every token that ended its responses, so that they end there again.

    Stop strings are not among them: they are the caller's to give, with a tokenizer.
    """
    from tasks.text import GENERATION_CONFIG, load_tokenizer, terminators

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
    stage = STAGES.that_makes(part)
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
