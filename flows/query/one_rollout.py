"""One rollout, token by token."""

import html
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.query.data_set import Part, Rows
from flows.query.find import Selection, Span, select
from flows.query.grammar import Query, Words
from flows.query.tints import background, tints_of
from flows.runs import Run
from flows.text import printable
from tasks.errors import DamagedError, RunError
from tasks.store import Manifest, Ref

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROLLOUT_ID = re.compile(r"r(\d{1,9})(?:\.i(\d{1,9})(?:\.s\d+)?)?\..+")
TOKEN_COLUMNS = {
    "logprobs": "logprob",
    "sampling_logprobs": "sampling_logprob",
    "ref_logprobs": "ref_logprob",
    "kl": "kl",
    "rewards": "reward",
    "values": "value",
    "advantages": "advantage",
    "returns": "return",
}
"""Per-token columns of the data sets, and what one entry of each is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneRollout:
    """One rollout and its tokens."""

    part: Part
    """Which committed data set it is of."""
    index: int
    """Which row of that."""
    row: dict[str, Any]
    """Its columns that are not per token."""
    tokens: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """What is known of each token."""
        return [name for name in TOKEN_COLUMNS.values() if self.tokens and name in self.tokens[0]]

    def _repr_html_(self) -> str:
        """For notebooks: the text, each token on blue where its advantage is positive and on orange where it is negative."""
        tokens, _ = tints_of(self.tokens, "advantage" if "advantage" in self.names else "logprob")
        spans = []
        for token in tokens:
            told = ", ".join(f"{name} {token[name]:.3g}" for name in self.names if token[name] is not None)
            text = html.escape(printable(token["token"]))
            spans.append(f'<span style="background:{background(token["tint"])}" title="{told}">{text}</span>')
        prompt, rollout_id = (html.escape(printable(self.row[name])) for name in ("prompt", "rollout_id"))
        score = "" if self.row.get("score") is None else f", score {self.row['score']:.3g}"
        return f"<p style='opacity:0.6'>{prompt}</p><p>{''.join(spans)}</p><p>{rollout_id}{score}</p>"


def one_rollout(
    run: Run,
    rollout_id: str,
    attempt: str | None = None,
    *,
    data: str = "rollouts",
    sampled_by: str = "",
    everywhere: Selection | None = None,
) -> OneRollout:
    """The rollout of that id, whose first parts say where it is; as it is now, or in one attempt.

    The ids of an evaluation's responses, of which ``data`` names the data set, have no iteration, and ``sampled_by`` says
    whether the policy's or the reference's is meant. Who has all data sets of that name need not have them found again.
    """
    match = ROLLOUT_ID.fullmatch(rollout_id)
    if match is None:
        raise RunError(
            f"{rollout_id}: not a rollout id like r1.i3.s0.PROMPT.SAMPLE; rounds rollouts {run.name} lists them"
        )
    round, iteration = int(match[1]), int(match[2] or 0)
    rounds, iterations = Span(round, round), Span(iteration, iteration)
    selection = None if everywhere is None or attempt is not None else everywhere.at(rounds, iterations)
    if selection is None or not selection.parts:
        selection = select(run, data, rounds=rounds, iterations=iterations, attempt=attempt)
    conditions = [Words(text=rollout_id, column="rollout_id")]
    conditions += [Words(text=sampled_by, column="sampled_by")] if sampled_by else []
    rows = selection.data_set.search(Query(conditions=tuple(conditions)))
    if "response_token_ids" not in rows.columns:
        raise RunError(f"{data}: has no tokens of responses; leave data={data} out")
    if not len(rows):
        raise RunError(
            f"{rollout_id}: run {run.name} has no such rollout; "
            f"rounds rollouts {run.name} --round {round} --iteration {iteration} lists those of that iteration"
        )
    found, *_ = opened(run, rows)
    return found


def opened(run: Run, rows: Rows) -> list[OneRollout]:
    """Each of some rows with its tokens, in their order."""
    found: list[OneRollout | None] = [None] * len(rows)
    before = 0
    for i, (number, indices) in enumerate(rows.chosen):
        part = rows.data_set.parts[number]
        directory = tokenizer_of(run, part.ref)
        standing = range(before, before + len(indices)) if rows.order is None else rows.order[i].tolist()
        before += len(indices)
        rows_of_part = zip(standing, indices.to_pylist(), part.rows(indices, None).to_pylist(), strict=True)
        for position, index, row in rows_of_part:
            where = f"{part.ref.directory / part.name}, row {index + 1}, {row['rollout_id']}"
            found[position] = _one(part, index, row, token_texts(directory, row["response_token_ids"], where=where))
    return [one for one in found if one is not None]


def _one(part: Part, index: int, row: dict[str, Any], texts: list[str]) -> OneRollout:
    names = {name: label for name, label in TOKEN_COLUMNS.items() if row.get(name) is not None}
    tokens = [
        {"token": text, "token_id": token_id, **{label: row[name][t] for name, label in names.items()}}
        for t, (text, token_id) in enumerate(zip(texts, row["response_token_ids"], strict=True))
    ]
    plain = {name: value for name, value in row.items() if not isinstance(value, list)}
    return OneRollout(part=part, index=index, row=plain, tokens=tokens)


def tokenizer_of(run: Run, ref: Ref) -> Path | None:
    """Where the tokenizer of the policy lies that a data set of rollouts was made with; None if it is gone."""
    made_from = Manifest.read(ref.directory).input_paths
    # Data was tokenised for a base, or for a model that was made with it.
    inputs = [run.root / made_from[name] for name in ("checkpoint", "policy", "base") if made_from.get(name)]
    for directory in (place for policy in [*inputs[:1], ref.directory] for place in (policy / "policy", policy)):
        if (directory / "tokenizer_config.json").exists() or (directory / "tokenizer.json").exists():
            return directory
    return None


def token_texts(directory: Path | None, token_ids: list[int], *, where: str) -> list[str]:
    """The text of each token; its id in angle brackets where the tokenizer is gone.

    Raises:
        DamagedError: one of the ids is that of no token at all; the row that has it is ``where``.
    """
    if (least := min(token_ids, default=0)) < 0:
        raise DamagedError(
            f"{where}: {least} is the id of no token; rounds verify says whether the file is as it was committed, and "
            "rounds rerun makes it anew"
        )
    if directory is None:
        return [f"<{token_id}>" for token_id in token_ids]
    if not (directory / "tokenizer.json").exists():
        from tasks.text import load_tokenizer

        return [str(text) for text in load_tokenizer(str(directory)).convert_ids_to_tokens(token_ids)]
    tokenizer = _tokenizer(directory / "tokenizer.json")
    return [token_text(tokenizer, token_id) for token_id in token_ids]


@lru_cache(maxsize=8)
def _tokenizer(file: Path) -> "Tokenizer":
    """Not through transformers, whose import takes longer than all the rest. What is committed does not change."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def token_text(tokenizer: "Tokenizer", token_id: int) -> str:
    """A token as it reads in the text; as the vocabulary spells it where it is only a part of a character."""
    piece = tokenizer.id_to_token(token_id)
    if piece is None:
        return f"<{token_id}>"
    if "▁" in piece:
        return str(piece).replace("▁", " ")
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return str(text) if text and "�" not in text else str(piece)
