"""One rollout, token by token."""

import html
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.query.find import Span, select
from flows.query.grammar import Query, Words
from flows.runs import Run
from flows.text import printable
from tasks.errors import RunError
from tasks.store import Manifest, Ref

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROLLOUT_ID = re.compile(r"r(\d{1,9})\.i(\d{1,9})(?:\.s\d+)?\..+")
# Okabe and Ito's blue and orange, distinct for colour-blind readers too; full at so many standard deviations.
BLUE, ORANGE, FULL_TINT = "0, 114, 178", "230, 159, 0", 2.5
TOKEN_COLUMNS = {
    "logprobs": "logprob",
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

    row: dict[str, Any]
    """Its columns that are not per token."""
    tokens: list[dict[str, Any]]

    def _repr_html_(self) -> str:
        """For notebooks: the text, each token on blue where its advantage is positive and on orange where it is negative."""
        numbers = [name for name in TOKEN_COLUMNS.values() if self.tokens and name in self.tokens[0]]
        tint = "advantage" if "advantage" in numbers else "logprob"
        values = [token[tint] for token in self.tokens]
        scale = FULL_TINT * (statistics.pstdev(values) if len(values) > 1 else 0.0) or 1.0
        spans = []
        for token, value in zip(self.tokens, values, strict=True):
            color = f"rgba({BLUE if value >= 0 else ORANGE}, {0.6 * min(1.0, abs(value) / scale):.2f})"
            told = ", ".join(f"{name} {token[name]:.3g}" for name in numbers)
            text = html.escape(printable(token["token"]))
            spans.append(f'<span style="background:{color}" title="{told}">{text}</span>')
        prompt, rollout_id = (html.escape(printable(self.row[name])) for name in ("prompt", "rollout_id"))
        score = "" if self.row.get("score") is None else f", score {self.row['score']:.3g}"
        return f"<p style='opacity:0.6'>{prompt}</p><p>{''.join(spans)}</p><p>{rollout_id}{score}</p>"


def one_rollout(run: Run, rollout_id: str, attempt: str | None = None) -> OneRollout:
    """The rollout of that id, whose first parts say where it is; as it is now, or in one attempt."""
    match = ROLLOUT_ID.fullmatch(rollout_id)
    if match is None:
        raise RunError(
            f"{rollout_id}: not a rollout id like r1.i3.s0.PROMPT.SAMPLE; rounds rollouts {run.name} lists them"
        )
    round, iteration = int(match[1]), int(match[2])
    selection = select(run, rounds=Span(round, round), iterations=Span(iteration, iteration), attempt=attempt)
    rows = selection.data_set.search(Query(conditions=(Words(text=rollout_id, column="rollout_id"),)))
    if not len(rows):
        raise RunError(
            f"{rollout_id}: run {run.name} has no such rollout; "
            f"rounds rollouts {run.name} --round {round} --iteration {iteration} lists those of that iteration"
        )
    (row,) = rows.dicts()
    (number, _), *_ = rows.chosen
    texts = token_texts(tokenizer_of(run, selection.parts[number].ref), row["response_token_ids"])
    names = {name: label for name, label in TOKEN_COLUMNS.items() if row.get(name) is not None}
    tokens = [
        {"token": text, "token_id": token_id, **{label: row[name][t] for name, label in names.items()}}
        for t, (text, token_id) in enumerate(zip(texts, row["response_token_ids"], strict=True))
    ]
    plain = {name: value for name, value in row.items() if not isinstance(value, list)}
    return OneRollout(row=plain, tokens=tokens)


def tokenizer_of(run: Run, ref: Ref) -> Path | None:
    """Where the tokenizer of the policy lies that a data set of rollouts was made with; None if it is gone."""
    made_from = Manifest.read(ref.directory).input_paths
    policy = run.root / (made_from["checkpoint"] if "checkpoint" in made_from else made_from["policy"])
    for directory in (policy / "policy", policy):
        if (directory / "tokenizer_config.json").exists() or (directory / "tokenizer.json").exists():
            return directory
    return None


def token_texts(directory: Path | None, token_ids: list[int]) -> list[str]:
    """The text of each token; its id in angle brackets where the tokenizer is gone."""
    if directory is None:
        return [f"<{token_id}>" for token_id in token_ids]
    if not (directory / "tokenizer.json").exists():
        from tasks.text import load_tokenizer

        return [str(text) for text in load_tokenizer(str(directory)).convert_ids_to_tokens(token_ids)]
    # Not through transformers, whose import takes longer than all the rest.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [token_text(tokenizer, token_id) for token_id in token_ids]


def token_text(tokenizer: "Tokenizer", token_id: int) -> str:
    """A token as it reads in the text; as the vocabulary spells it where it is only a part of a character."""
    piece = tokenizer.id_to_token(token_id)
    if piece is None:
        return f"<{token_id}>"
    if "▁" in piece:
        return str(piece).replace("▁", " ")
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    return str(text) if text and "�" not in text else str(piece)
