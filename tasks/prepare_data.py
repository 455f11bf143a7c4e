"""Stage: the run's data in one form, split into training and held-out parts, and a new model where one is asked for."""

import json
from collections.abc import Collection, Mapping

from ppo_core.randomness import derive_seed
from tasks.config import DataConfig, PrepareDataConfig
from tasks.contract import StageContext, StageOutput
from tasks.data import (
    Findings,
    Row,
    in_words,
    read_rows,
    to_preferences,
    to_prompts,
    to_texts,
)
from tasks.errors import DataError
from tasks.models import (
    POLICY,
    Models,
    context_length,
    make_model,
    part_directory,
    read_text_config,
    require_layers,
    why_limited,
)
from tasks.store import (
    Ref,
    Table,
    read_dataset,
    write_dataset,
    write_json,
)
from tasks.text import (
    Encoder,
    check_tokenizer,
    doubts_about_data,
    doubts_about_endings,
)


def prepare_data(
    context: StageContext, config: PrepareDataConfig, *, base: Ref | None, previous: Ref | None = None
) -> StageOutput:
    """Read, check, split and tokenise all sources. ``base`` is the model to prepare for; None makes a new one.

    What the round before held out, whose data is ``previous``, stays held out.
    """
    data = config.data
    findings = Findings()
    counts_of: dict[str, list[int]] = {}
    texts = to_texts(rows_of("texts", data, context, counts_of), findings)
    preferences, _ = to_preferences(rows_of("preferences", data, context, counts_of), findings)
    prompts = to_prompts(rows_of("prompts", data, context, counts_of), findings)
    held_out = to_prompts(rows_of("held_out_prompts", data, context, counts_of), findings)
    kinds = ((data.texts, texts), (data.preferences, preferences), (data.prompts, prompts))
    if base is None or any(sources and not found for sources, found in kinds):
        # Else rows that are too long are told with the others.
        require_usable(data, findings)

    if base is None:
        assert config.from_scratch is not None
        make_model(context.output / POLICY, config.from_scratch, texts, seed=context.seed("from_scratch"))
    directory = context.output / POLICY if base is None else part_directory(base, POLICY)
    model_config = read_text_config(directory, trust_remote_code=config.access.trust_remote_code)
    models = Models(context, config.access)
    tokenizer = models.tokenizer(directory, options=config.access.chat_template_kwargs)
    check_tokenizer(tokenizer, model_config.vocab_size, name=str(directory))
    if config.adapted_layers:
        require_layers(directory, config.adapted_layers, trust_remote_code=config.access.trust_remote_code)

    for doubt in doubts_about_endings(tokenizer) + doubts_about_data(
        tokenizer, prompts=[*prompts, *held_out], answers=[*preferences, *texts]
    ):
        context.warn(doubt)

    encoder = Encoder(
        tokenizer, limit=context_length(model_config), why_limited=why_limited(model_config), findings=findings
    )
    tables = {
        "prompts": encoder.prompts(prompts, config.response_tokens),
        "held_out_prompts": encoder.prompts(held_out, config.response_tokens) if held_out else None,
        "preferences": encoder.preferences(preferences) if preferences else None,
        "texts": encoder.texts(texts) if texts else None,
    }
    require_usable(data, findings)
    written = with_held_out(
        {name: table for name, table in tables.items() if table is not None}, data, context, previous
    )
    for name, table in written.items():
        if table.num_rows == 0:
            raise DataError(f"data.{name}: no row is left; give more data, or a longer context")
        write_dataset(context.output / name, table)
    found = {**findings.as_dict(), "rows_of_sources": counts_of, "context_length": encoder.limit}
    write_json(context.output / "findings.json", found)
    counts = {f"data/{name}": float(table.num_rows) for name, table in written.items()}
    dropped = tell_of_dropped(context, findings)
    return StageOutput(
        rows=sum(table.num_rows for table in written.values()),
        metrics={**counts, "data/dropped": float(dropped)},
    )


def tell_of_dropped(context: StageContext, findings: Findings) -> int:
    """Say what was left out and what was split, and how many rows were left out."""
    dropped = findings.reasons + findings.left_out
    if dropped:
        context.warn(f"left out {dropped.total():,} of {findings.num_rows:,} rows ({in_words(dropped)})")
    if findings.splits:
        context.warn(
            f"{findings.splits.total():,} pairs of transcripts were split after the opening of the assistant's turn "
            f"({in_words(findings.splits)})"
        )
    return dropped.total()


def require_usable(data: DataConfig, findings: Findings) -> None:
    """Refuse bad rows, unless they are to be left out."""
    if data.on_bad_row == "error":
        findings.require_no_bad_rows()


def rows_of(kind: str, data: DataConfig, context: StageContext, counts: dict[str, list[int]]) -> list[Row]:
    """The rows of all sources of one kind; how many each of them has is noted in ``counts``."""
    rows: list[Row] = []
    counts[kind] = []
    for position, source in enumerate(getattr(data, kind)):
        own = read_rows(source, seed=context.run_seed, position=position)
        rows += own
        counts[kind].append(len(own))
        context.progress(len(rows), len(rows), unit="rows")
    return rows


def with_held_out(
    tables: Mapping[str, Table], data: DataConfig, context: StageContext, previous: Ref | None
) -> dict[str, Table]:
    """The tables in training and held-out parts; held-out prompts may be sources of their own."""
    parts = dict(tables)
    if "held_out_prompts" not in parts:
        before = held_out_before(previous, "prompts")
        parts["prompts"], parts["held_out_prompts"] = set_aside(
            tables["prompts"], num=data.num_held_out_prompts, context=context, before=before
        )
    if "preferences" in parts:
        num = max(1, round(data.held_out_preferences * tables["preferences"].num_rows))
        before = held_out_before(previous, "preferences")
        parts["preferences"], parts["held_out_preferences"] = set_aside(
            tables["preferences"], num=num, context=context, before=before
        )
    return parts


def held_out_before(previous: Ref | None, name: str) -> set[str]:
    """What an earlier round held out: the contents of rows, and the prompts of which it trained on none."""
    if previous is None or not (previous.directory / f"held_out_{name}").is_dir():
        return set()
    held_out, trained = (read_dataset(previous.directory / part) for part in (f"held_out_{name}", name))
    prompts = {*held_out.column("prompt").to_pylist()} - {*trained.column("prompt").to_pylist()}
    return prompts | set(contents(held_out))


def contents(table: Table) -> list[str]:
    """Each row as one text, but for its source: that has another position when one is added before it."""
    own = table.select([name for name in table.column_names if name != "source"])
    return [json.dumps(row, sort_keys=True) for row in own.to_pylist()]


def set_aside(table: Table, *, num: int, context: StageContext, before: Collection[str] = ()) -> tuple[Table, Table]:
    """The table without, and with, about ``num`` held-out rows: those held out ``before``, and of the others those of the
    prompts that hash lowest.

    All rows of a prompt fall on one side; where few prompts make that impossible, rows are told apart by their whole
    content.
    """
    if num >= table.num_rows:
        raise DataError(f"{table.num_rows} rows are too few to hold {num} of them out; give more, or hold out fewer")
    by_prompt, by_content = table.column("prompt").to_pylist(), contents(table)
    for keys in (by_prompt, by_content):
        is_known = [key in before or content in before for key, content in zip(keys, by_content, strict=True)]
        ranks = [
            (not known, derive_seed(context.run_seed, "held_out", key))
            for known, key in zip(is_known, keys, strict=True)
        ]
        threshold = sorted(ranks)[num - 1]
        held_out = [known or rank <= threshold for known, rank in zip(is_known, ranks, strict=True)]
        if sum(held_out) <= 2 * num and sum(held_out) < table.num_rows:
            break
    return table.filter([not inside for inside in held_out]), table.filter(held_out)
