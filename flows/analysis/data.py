"""What a round was prepared from: each source with its rows, what was left out, and the first rows as a model sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flows.query import Part, select, span
from flows.query.one_rollout import token_texts, tokenizer_of
from flows.runs import Run
from tasks.errors import RunError
from tasks.stages import STAGES
from tasks.store import Manifest, read_json, require_undamaged

KINDS = ("prompts", "held_out_prompts", "preferences", "texts")
FIRST_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """One source of the configuration."""

    kind: str
    name: str
    rows: int | None
    """None where the output is older than this count."""
    from_round: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The data of a round."""

    round: int
    rounds: list[int]
    """Those that prepared data of their own."""
    fingerprint: str
    sources: list[SourceRows]
    findings: dict[str, Any]
    counts: dict[str, int]
    """Rows of each data set."""
    examples: dict[str, list[list[str]]]
    """Of each data set with tokens, the texts of the tokens of its first rows, special ones too."""
    lengths: dict[str, list[int]]
    """Tokens of each row."""


def prepared_data(run: Run, round: int | None) -> Prepared:
    """What is known of a round's data; of the last round that has any where none is named.

    Raises:
        RunError: there is none.
    """
    selection = select(run, "prompts", rounds=span("all", option="round"), iterations=span("all", option="iteration"))
    parts = {part.place.round: part for part in selection.parts}
    number = max(parts) if round is None else round
    if number not in parts:
        raise RunError(f"round={number}: no data was prepared for that round; name one of {sorted(parts)}")
    part = parts[number]
    manifest = Manifest.read(part.ref.directory)
    require_undamaged(part.ref, "findings.json")
    findings = read_json(part.ref.directory / "findings.json", default={})
    settings = STAGES.settings_of(manifest.recipe)["data"]
    counts = {name.removeprefix("data/"): int(n) for name, n in manifest.metrics.items() if name != "data/dropped"}
    columns = {"prompts": "prompt_token_ids", "held_out_prompts": "prompt_token_ids", "texts": "token_ids"}
    tokens = {name: tokens_of(part, name, column) for name, column in columns.items() if name in counts}
    directory = tokenizer_of(run, part.ref)
    return Prepared(
        round=number,
        rounds=sorted(parts),
        fingerprint=manifest.fingerprint,
        sources=[
            SourceRows(
                kind=kind,
                name=source_name(source),
                rows=rows_at(findings.get("rows_of_sources", {}).get(kind, []), i),
                from_round=source.get("from_round", 1),
            )
            for kind in KINDS
            for i, source in enumerate(settings[kind])
        ],
        findings=findings,
        counts=counts,
        examples={
            name: [
                token_texts(directory, ids, where=f"{part.ref.directory / name}, row {number}")
                for number, ids in enumerate(first, start=1)
            ]
            for name, (first, _) in tokens.items()
        },
        lengths={name: lengths for name, (_, lengths) in tokens.items()},
    )


def source_name(source: Mapping[str, Any]) -> str:
    """Where rows come from, with what tells two sources of one function or data set apart."""
    if source["path"]:
        return str(source["path"])
    if source["function"]:
        arguments = ", ".join(f"{name}={value!r}" for name, value in (source.get("arguments") or {}).items())
        return f"{source['function']}({arguments})"
    return " ".join(str(part) for part in (source["dataset"], source.get("subset"), source.get("split")) if part)


def rows_at(counts: Sequence[int], position: int) -> int | None:
    return counts[position] if position < len(counts) else None


def tokens_of(part: Part, name: str, column: str) -> tuple[list[list[int]], list[int]]:
    """The token ids of the first rows of a data set beside this one, and the number of tokens of every row."""
    beside = Part(run=part.run, place=part.place, stage=part.stage, name=name, ref=part.ref)
    lists = beside.table.column(column)
    lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in lists.chunks] or [np.zeros(0, dtype=int)])
    return lists.slice(0, FIRST_ROWS).to_pylist(), lengths.tolist()
