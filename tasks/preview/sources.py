"""One source of a configuration as the stages will have it: its rows, what is wrong with them, and the first as text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from tasks.config import DataConfig, Source
from tasks.data import Findings, Preference, Prompt, Text, read_rows, to_preferences, to_prompts, to_texts
from tasks.errors import UserError
from tasks.store import Table
from tasks.text import Encoder, encode_dialogues, encode_prompt

KINDS = ("texts", "preferences", "prompts", "held_out_prompts")
"""As ``prepare_data`` reads them."""
Record = Prompt | Preference | Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How rows become tokens."""

    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    why_limited: str
    response_tokens: int


@dataclass(kw_only=True)
class SourceLook:
    """What a source holds."""

    kind: str
    position: int
    name: str
    from_round: int
    rows: int = 0
    is_whole: bool = True
    """Whether there are no more rows than were read."""
    findings: Findings = field(default_factory=Findings)
    records: list[Record] = field(default_factory=list)
    table: Table | None = None
    """Encoded, where there is a tokenizer."""
    mistake: str | None = None

    @property
    def field(self) -> str:
        return f"data.{self.kind}.{self.position}"

    def as_dict(self) -> dict[str, Any]:
        dropped = self.findings.reasons + self.findings.left_out
        return {
            "kind": self.kind,
            "position": self.position,
            "name": self.name,
            "from_round": self.from_round,
            "rows": self.rows,
            "is_whole": self.is_whole,
            "kept": self.rows - dropped.total(),
            "dropped": dict(dropped.most_common()),
            "first_dropped": [str(bad) for bad in self.findings.bad],
            "split": dict(self.findings.splits.most_common()),
        }


def look_at(
    kind: str, position: int, data: DataConfig, *, reader: Reader | None, seed: int, first_rows: int | None
) -> SourceLook:
    """Read a source, or its first rows, and encode them."""
    source: Source = getattr(data, kind)[position]
    seen = SourceLook(kind=kind, position=position, name=source.name, from_round=source.from_round)
    if first_rows is not None and source.path is None:
        seen.is_whole = False
        return seen
    try:
        _read(seen, source, reader, seed=seed, first_rows=first_rows)
        if data.on_bad_row == "error":
            seen.findings.require_no_bad_rows()
        elif seen.rows and not seen.records and seen.is_whole:
            first = seen.findings.bad[0] if seen.findings.bad else next(iter(seen.findings.left_out), "")
            seen.mistake = f"{seen.field}: no row of {source.name} is left ({first}); correct them, or name other data"
    except UserError as error:
        seen.mistake = f"{seen.field}: {error}"
    return seen


def _read(seen: SourceLook, source: Source, reader: Reader | None, *, seed: int, first_rows: int | None) -> None:
    if first_rows is not None:
        # One more tells whether there are more.
        limit = min(source.limit or first_rows + 1, first_rows + 1)
        source = source.model_copy(update={"limit": limit})
    rows = read_rows(source, seed=seed)
    if first_rows is not None and len(rows) > first_rows:
        rows, seen.is_whole = rows[:first_rows], False
    seen.rows = len(rows)
    encoder = None
    if reader is not None:
        encoder = Encoder(reader.tokenizer, limit=reader.limit, why_limited=reader.why_limited, findings=seen.findings)
    if seen.kind == "texts":
        texts = to_texts(rows, seen.findings)
        seen.records, seen.table = [*texts], encoder and encoder.texts(texts)
    elif seen.kind == "preferences":
        preferences, _ = to_preferences(rows, seen.findings)
        seen.records, seen.table = [*preferences], encoder and encoder.preferences(preferences)
    else:
        prompts = to_prompts(rows, seen.findings)
        response_tokens = 0 if reader is None else reader.response_tokens
        seen.records, seen.table = [*prompts], encoder and encoder.prompts(prompts, response_tokens)


def example_of(seen: SourceLook, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any] | None:
    """The first row as a model reads it, special tokens and all; None where there is none."""
    if seen.table is None or seen.table.num_rows == 0:
        return None
    row = seen.table.slice(0, 1).to_pylist()[0]
    if seen.kind == "texts":
        return {"kind": seen.kind, "texts": [_shown(tokenizer, row["token_ids"])]}
    if seen.kind == "preferences":
        whole = [_shown(tokenizer, ids) for ids in encode_dialogues(tokenizer, row, row["responses"])]
        return {"kind": seen.kind, "texts": whole, "ranks": row["ranks"]}
    return {"kind": seen.kind, "texts": [_shown(tokenizer, row["prompt_token_ids"])]}


def _shown(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def lengths_of(seen: SourceLook, tokenizer: PreTrainedTokenizerBase, *, most: int = 256) -> dict[str, list[int]]:
    """Tokens of each row as it is read; of preferences those of all dialogues of a row, and of each response, of the first
    rows alone."""
    if seen.table is None:
        return {}
    if seen.kind == "preferences":
        rows = seen.table.slice(0, most).to_pylist()
        whole = [list(map(len, encode_dialogues(tokenizer, row, row["responses"]))) for row in rows]
        prompts = [
            len(encode_prompt(tokenizer, json.loads(row["messages"]) if row["messages"] else row["prompt"]))
            for row in rows
        ]
        responses = [length - own for lengths, own in zip(whole, prompts, strict=True) for length in lengths]
        return {seen.kind: list(map(sum, whole)), "responses": responses}
    name = "token_ids" if seen.kind == "texts" else "prompt_token_ids"
    return {seen.kind: [len(ids) for ids in seen.table.column(name).to_pylist()]}
