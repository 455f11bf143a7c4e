"""Stage: the run's data in one form, split into training and held-out parts, and a new model where one is asked for."""

from collections.abc import Mapping

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
    with_held_out,
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
from tasks.store import Ref, Table, write_dataset, write_json
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
        {name: table for name, table in tables.items() if table is not None},
        data,
        seed=context.run_seed,
        previous=previous,
    )
    write_datasets(context, written)
    found = {**findings.as_dict(), "rows_of_sources": counts_of, "context_length": encoder.limit}
    write_json(context.output / "findings.json", found)
    counts = {f"data/{name}": float(table.num_rows) for name, table in written.items()}
    dropped = tell_of_dropped(context, findings)
    return StageOutput(
        rows=sum(table.num_rows for table in written.values()),
        metrics={**counts, "data/dropped": float(dropped)},
    )


def write_datasets(context: StageContext, tables: Mapping[str, Table]) -> None:
    """Write each, and refuse one without rows."""
    for name, table in tables.items():
        if table.num_rows == 0:
            raise DataError(f"data.{name}: no row is left; give more data, or a longer context")
        write_dataset(context.output / name, table)


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
