"""Arrow schemas of every data set that a stage writes, and the step from ragged columns to tensors and back.

A data set's columns only grow on their way: rollouts ⊂ scored ⊂ advantages. Lists have one entry per response token,
``prompt_token_ids`` one per prompt token. ``SCHEMA_VERSION`` is part of every manifest; a reader refuses another one.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tasks.errors import DataError

if TYPE_CHECKING:
    import torch

    from ppo_core.batch import Ragged

SCHEMA_VERSION = "1"
Table = pa.Table
# Before the name of a reward that training never sees, in a column's name.
HELD_OUT = "held_out_"
TOKEN_IDS = pa.list_(pa.int32())
PER_TOKEN = pa.list_(pa.float32())
# Log-probabilities of the engine that sampled, where that is not the trainer; ``logprobs`` are the trainer's.
SAMPLING_LOGPROBS = "sampling_logprobs"
# Conversations are kept as JSON beside their rendered text, for a reward model that has a chat template of its own.
PROMPT_TEXT = [("prompt", pa.string()), ("messages", pa.string())]
TEXTS = pa.schema([("token_ids", TOKEN_IDS), ("prompt_length", pa.int32())])
PREFERENCES = pa.schema(
    [
        ("preference_id", pa.string()),
        *PROMPT_TEXT,
        ("responses", pa.list_(pa.string())),
        ("ranks", pa.list_(pa.int32())),
        ("margin", pa.float32()),
        # The position of the first source of preferences that holds it, among those that counted in the round.
        ("source", pa.int32()),
    ]
)
# Scores are those of training, not yet of mean 0 and standard deviation 1; ``margin`` is what people said, where they did.
HELD_OUT_PAIRS = pa.schema(
    [
        ("preference_id", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("chosen_score", pa.float32()),
        ("rejected_score", pa.float32()),
        ("score_margin", pa.float32()),
        ("longer_by", pa.int32()),
        ("margin", pa.float32()),
        ("source", pa.int32()),
    ]
)
PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        *PROMPT_TEXT,
        ("prompt_token_ids", TOKEN_IDS),
        # The data set's other columns as one JSON object: their types differ between sources, ours must not.
        ("extra", pa.string()),
    ]
)
ROLLOUTS = pa.schema(
    [
        ("rollout_id", pa.string()),
        *PROMPTS,
        ("sample_index", pa.int32()),
        ("policy_version", pa.string()),
        ("response", pa.string()),
        ("response_token_ids", TOKEN_IDS),
        ("finish_reason", pa.string()),
        ("logprobs", PER_TOKEN),
    ]
)


def rollouts_schema(*, has_sampling_logprobs: bool) -> pa.Schema:
    """Rollouts as the engine leaves them."""
    return pa.schema([*ROLLOUTS, *([(SAMPLING_LOGPROBS, PER_TOKEN)] if has_sampling_logprobs else [])])


def scored_schema(
    components: list[str], *, has_exact_kl: bool, has_values: bool, has_sampling_logprobs: bool = False
) -> pa.Schema:
    """Rollouts with their scores: ``score`` is the weighted sum of the ``score_<component>`` columns.

    ``final_value`` is the critic after the last token.
    """
    return pa.schema(
        [
            *rollouts_schema(has_sampling_logprobs=has_sampling_logprobs),
            ("score", pa.float32()),
            *((f"score_{name}", pa.float32()) for name in components),
            ("ref_logprobs", PER_TOKEN),
            *([("exact_kl", PER_TOKEN)] if has_exact_kl else []),
            *([("values", PER_TOKEN), ("final_value", pa.float32())] if has_values else []),
        ]
    )


def advantages_schema(scored_rollouts: pa.Schema, *, has_returns: bool) -> pa.Schema:
    """Scored rollouts with what the update learns from."""
    names = ("kl", "rewards", "advantages", *(["returns"] if has_returns else []))
    return pa.schema([*scored_rollouts, ("treated_score", pa.float32()), *((name, PER_TOKEN) for name in names)])


def audit_schema(components: list[str]) -> pa.Schema:
    """What is known of a rollout beside its training, in the order of the rollouts."""
    return pa.schema(
        [
            ("rollout_id", pa.string()),
            ("distinct_2", pa.float32()),
            *((f"{HELD_OUT}{name}", pa.float32()) for name in components),
        ]
    )


def components_of(table: pa.Table) -> list[str]:
    """The names of a scored table's reward components."""
    return [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]


def evaluation_schema(components: list[str]) -> pa.Schema:
    """Responses of the policy and of the reference to held-out prompts; ``sampled_by`` says whose a row is."""
    return pa.schema(
        [
            ("sampled_by", pa.string()),
            *ROLLOUTS,
            ("score", pa.float32()),
            *((f"score_{name}", pa.float32()) for name in components),
            ("ref_logprobs", PER_TOKEN),
        ]
    )


def ragged_column(table: pa.Table, name: str, dtype: "torch.dtype") -> "Ragged":
    """A list column as (values, offsets), without a Python list in between."""
    import torch

    from ppo_core.batch import Ragged

    column = table.column(name).combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = torch.from_numpy(column.offsets.to_numpy().astype("int64"))
    values = torch.from_numpy(column.values.to_numpy(zero_copy_only=False).copy()).to(dtype)
    return Ragged(values[offsets[0] : offsets[-1]], offsets - offsets[0])


def with_columns(table: pa.Table, columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """The table with columns (Python sequences, or ``Ragged``) added, in the order and the types of ``schema``."""
    arrays = {name: table.column(name) for name in table.column_names}
    arrays |= {name: to_array(values, schema.field(name).type) for name, values in columns.items()}
    return pa.table([arrays[field.name] for field in schema], schema=schema)


def to_array(values: Any, kind: pa.DataType) -> pa.Array:
    """Python values, or (values, offsets) without a Python list in between, as a column."""
    if not hasattr(values, "offsets"):
        return pa.array(values, type=kind)
    flat = pa.array(values.values.cpu().numpy(), type=kind.value_type)
    return pa.ListArray.from_arrays(pa.array(values.offsets.cpu().numpy(), type=pa.int32()), flat)


def concatenate(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of one schema, one below the other."""
    return pa.concat_tables(tables)


def require_columns(table: pa.Table, schema: pa.Schema, *, where: str) -> None:
    """Refuse a table that another version of the software wrote."""
    for field in schema:
        if field.name not in table.column_names:
            raise DataError(f"{where} has no column {field.name!r}; run the stage that writes it again")


def table_of(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """A table from rows of Python values in the order of the schema: typed, so that no width is guessed."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [to_array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)
