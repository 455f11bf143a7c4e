"""All that can be said of a run's sources and models before it is started, in the order in which a run would meet it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tasks.contract import PreviewConfig
from tasks.data import with_held_out
from tasks.errors import UserError
from tasks.models import (
    POLICY,
    context_length,
    device_mistakes,
    make_model,
    model_mistakes,
    read_text_config,
    why_limited,
)
from tasks.preview.sizes import device_facts, sizes_of
from tasks.preview.sources import KINDS, Reader, SourceLook, example_of, lengths_of, look_at
from tasks.preview.trial import try_policy
from tasks.store import Table, concatenate, write_dataset
from tasks.text import doubts_about_data, doubts_about_endings, load_tokenizer

Tell = Callable[[Mapping[str, Any]], None]
FIRST = 1
"""The round whose data is put together as the run would."""


def look(config: PreviewConfig, tell: Tell) -> dict[str, Any]:
    """What was found, each part told as soon as it is known: ``mistakes`` and ``doubts``, ``sources``, ``examples``,
    ``sizes`` of the models, the ``device``, and the ``trial``."""
    found: dict[str, Any] = {"mistakes": [], "doubts": [], "sources": [], "examples": [], "lengths": {}}
    with TemporaryDirectory(prefix="rounds-check-") as scratch:
        _look(config, Path(scratch), found, tell)
    if config.execution.engine_servers:
        # It brings HTTP, which no other run needs.
        from tasks.sampling.engines.vllm_push import server_mistakes

        found["mistakes"] += server_mistakes(config.execution.engine_servers)
    return found


def _look(config: PreviewConfig, scratch: Path, found: dict[str, Any], tell: Tell) -> None:
    is_complete = config.first_rows is None
    mistakes: list[str] = found["mistakes"]
    mistakes += model_mistakes(config.checks)
    tell({"found": "models"})
    directory = policy_directory(config, scratch, mistakes)
    # With a policy that is mistaken, rows are read and not encoded: what came of that would only follow.
    is_sound = not any(mistake.startswith("model.policy: ") for mistake in mistakes)
    reader = reader_of(directory, config, mistakes) if directory is not None and is_sound else None
    seen = [
        look_at(kind, position, config.data, reader=reader, seed=config.seed, first_rows=config.first_rows)
        for kind in KINDS
        for position in range(len(getattr(config.data, kind)))
    ]
    mistakes += [source.mistake for source in seen if source.mistake is not None]
    found["sources"] = [source.as_dict() for source in seen]
    tell({"found": "sources"})
    if reader is None or directory is None:
        return
    found["doubts"] = doubts(reader, seen, mistakes) if is_complete else []
    tables = tables_of_round(seen)
    if not mistakes and all(source.is_whole for source in seen):
        mistakes += mistakes_together(tables, config, scratch)
    if not is_complete:
        return
    first = {source.kind: source for source in reversed(seen) if source.table is not None and source.table.num_rows}
    found["examples"] = [example_of(first[kind], reader.tokenizer) for kind in KINDS if kind in first]
    for source in seen:
        for kind, lengths in lengths_of(source, reader.tokenizer).items():
            found["lengths"].setdefault(kind, []).extend(lengths)
    found["context"], found["has_chat_template"] = reader.limit, bool(reader.tokenizer.chat_template)
    found["has_conversations"] = any(isinstance(record.prompt, list) for source in seen for record in source.records)
    if not device_mistakes(config.execution):
        found["device"] = device_facts(config.execution)
    if not mistakes:
        found["sizes"] = sizes_of(config, directory)
        tell({"found": "sizes"})
    if not mistakes and config.trial is not None and "prompts" in tables:
        found["trial"] = try_policy(config, directory, tables["prompts"], scratch, mistakes)


def policy_directory(config: PreviewConfig, scratch: Path, mistakes: list[str]) -> Path | None:
    """Where the policy lies; a new one is made, unless only a few rows are looked at."""
    if config.checks.policy is not None:
        return Path(config.checks.policy)
    if config.from_scratch is None or config.first_rows is not None:
        return None
    sources = [
        look_at("texts", position, config.data, reader=None, seed=config.seed, first_rows=None)
        for position in range(len(config.data.texts))
    ]
    texts: list[Any] = [record for source in sources for record in source.records]
    try:
        make_model(scratch / POLICY, config.from_scratch, texts, seed=config.seed)
    except UserError as error:
        mistakes.append(f"model.from_scratch: {error}")
        return None
    return scratch / POLICY


def reader_of(directory: Path, config: PreviewConfig, mistakes: list[str]) -> Reader | None:
    """How the policy reads rows; None where its tokenizer or configuration does not load."""
    trusts = config.access.trust_remote_code
    try:
        model_config = read_text_config(directory, trust_remote_code=trusts)
        tokenizer = load_tokenizer(
            str(directory), trust_remote_code=trusts, chat_template_kwargs=config.access.chat_template_kwargs
        )
    except UserError as error:
        if not any(str(error) in mistake for mistake in mistakes):
            mistakes.append(str(error))
        return None
    return Reader(
        tokenizer=tokenizer,
        limit=context_length(model_config),
        why_limited=why_limited(model_config),
        response_tokens=config.checks.max_new_tokens,
    )


def doubts(reader: Reader, seen: Sequence[SourceLook], mistakes: list[str]) -> list[str]:
    """What ``prepare_data`` would warn of."""
    prompts: list[Any] = [r for source in seen if "prompts" in source.kind for r in source.records]
    answers: list[Any] = [r for source in seen if "prompts" not in source.kind for r in source.records]
    try:
        return doubts_about_endings(reader.tokenizer) + doubts_about_data(
            reader.tokenizer, prompts=prompts, answers=answers
        )
    except UserError as error:
        mistakes.append(f"model.policy: {error}")
        return []


def tables_of_round(seen: Sequence[SourceLook]) -> dict[str, Table]:
    """What the first round would know of each kind."""
    tables: dict[str, list[Table]] = {}
    for source in seen:
        if source.from_round == FIRST and source.table is not None:
            tables.setdefault(source.kind, []).append(source.table)
    return {kind: concatenate(parts) for kind, parts in tables.items()}


def mistakes_together(tables: Mapping[str, Table], config: PreviewConfig, scratch: Path) -> list[str]:
    """What only all rows together show: too few to hold some out, or too long for a model of somebody else's."""
    try:
        written = with_held_out(tables, config.data, seed=config.seed)
    except UserError as error:
        return [str(error)]
    directory = scratch / "data"
    for name, table in written.items():
        if table.num_rows == 0:
            return [f"data.{name}: no row is left; give more data, or a longer context"]
        write_dataset(directory / name, table)
    if config.checks.policy is None:
        (directory / POLICY).symlink_to(scratch / POLICY)
    return model_mistakes(config.checks.model_copy(update={"data": str(directory)}))
