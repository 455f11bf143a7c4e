"""Rows of two places joined by prompt: numbers as arrays, texts read only for the prompts that are shown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.analysis.words import Which, word_differences
from flows.query import Rows
from tasks.errors import ConfigError

Kind = Literal["score", "component", "held-out", "length", "KL"]
NUMBER_OF_COPY = r"-\d+$"
"""Behind the id of a prompt that the data has several times."""
TEXTS = ("rollout_id", "sampled_by", "prompt", "response")
NO_NUMBERS = pa.nulls(0, pa.float64())
DOUBTFUL = "doubt"
"""The order that puts prompts first whose score rose while a held-out reward fell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response of one side that is shown: of several samples the one whose score is nearest to their mean."""

    rollout_id: str
    response: str
    sampled_by: str | None
    """Of an evaluation, whether the policy or the reference."""
    samples: int
    numbers: dict[str, float | None]
    """The side's mean of each number for this prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One prompt on both sides."""

    prompt_id: str
    prompt: str
    a: Answer
    b: Answer
    changes: dict[str, float | None]
    """B − A of each number."""
    is_doubtful: bool
    """The score rose, and a held-out reward fell."""
    words: list[tuple[Which, str]]


@dataclass(kw_only=True)
class Means:
    """One side, a row for each prompt."""

    rows: Rows
    prompt_ids: pa.Array
    of_row: pa.Array
    """Prompt of each row of ``rows``."""
    scores: np.ndarray
    counts: np.ndarray
    numbers: dict[str, np.ndarray]

    def taken(self, positions: pa.Array) -> "Means":
        at = positions.to_numpy(zero_copy_only=False)
        return Means(
            rows=self.rows,
            prompt_ids=self.prompt_ids.take(positions),
            of_row=self.of_row,
            scores=self.scores,
            counts=self.counts[at],
            numbers={name: values[at] for name, values in self.numbers.items()},
        )


def means_of(rows: Rows, columns: Mapping[str, str]) -> Means:
    """The means over each prompt's rows of the columns that each number is in."""
    table = rows.table(["prompt_id", *columns.values()])
    if not len(rows):
        table = pa.table({"prompt_id": pa.array([], pa.string()), **dict.fromkeys(columns.values(), NO_NUMBERS)})
    same = pc.replace_substring_regex(table.column("prompt_id"), NUMBER_OF_COPY, "")
    table = table.set_column(table.column_names.index("prompt_id"), "prompt_id", same)
    grouped = table.group_by("prompt_id", use_threads=False).aggregate(
        [([], "count_all"), *((column, "mean") for column in columns.values())]
    )
    return Means(
        rows=rows,
        prompt_ids=_whole(grouped.column("prompt_id")),
        of_row=_whole(table.column("prompt_id")),
        scores=_floats(table.column("score")) if "score" in columns else np.zeros(table.num_rows),
        counts=_floats(grouped.column("count_all")).astype(int),
        numbers={name: _floats(grouped.column(f"{column}_mean")) for name, column in columns.items()},
    )


@dataclass(kw_only=True)
class Joined:
    """Both sides, one position for each prompt that both have."""

    a: Means
    b: Means
    kinds: Mapping[str, Kind]
    deltas: dict[str, np.ndarray]
    doubtful: np.ndarray
    ranked: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))

    @property
    def prompt_ids(self) -> pa.Array:
        return self.a.prompt_ids

    def in_order(self, order: str) -> np.ndarray:
        """Positions of the prompts as they are to be shown."""
        if order != DOUBTFUL:
            column = order.removeprefix("-")
            if column not in self.deltas:
                raise ConfigError(f"--sort {order}: no such number; there are {', '.join((DOUBTFUL, *self.deltas))}")
            sign = -1 if order.startswith("-") else 1
            return np.argsort(sign * self.deltas[column], kind="stable")
        return np.lexsort((-np.nan_to_num(self.gaps, nan=-math.inf), ~self.doubtful))

    @property
    def gaps(self) -> np.ndarray:
        """(prompts,) by how many standard deviations the score rose more than the held-out rewards did."""
        held_out = [_scaled(values) for name, values in self.deltas.items() if self.kinds[name] == "held-out"]
        score = _scaled(self.deltas["score"]) if "score" in self.deltas else np.zeros(len(self.prompt_ids))
        # Without held-out rewards the largest changes come first, whatever their sign.
        return score - np.nan_to_num(held_out).mean(axis=0) if held_out else np.abs(score)

    def pairs(self, start: int, stop: int) -> list[Pair]:
        shown = self.ranked[start:stop]
        ids = self.prompt_ids.take(pa.array(shown)).to_pylist()
        answers_a, answers_b = (_answers(side, ids, shown) for side in (self.a, self.b))
        return [
            Pair(
                prompt_id=prompt_id,
                prompt=answers_a[prompt_id][0],
                a=answers_a[prompt_id][1],
                b=answers_b[prompt_id][1],
                changes={name: _or_none(values[at]) for name, values in self.deltas.items()},
                is_doubtful=bool(self.doubtful[at]),
                words=word_differences(answers_a[prompt_id][1].response, answers_b[prompt_id][1].response),
            )
            for prompt_id, at in zip(ids, shown, strict=True)
        ]


def join(one: Means, other: Means, kinds: Mapping[str, Kind]) -> Joined:
    found = pc.index_in(one.prompt_ids, value_set=other.prompt_ids)
    shared = pc.indices_nonzero(pc.is_valid(found))
    a, b = one.taken(shared), other.taken(found.take(shared))
    deltas = {name: b.numbers[name] - values for name, values in a.numbers.items()}
    fell = [values < 0 for name, values in deltas.items() if kinds[name] == "held-out"]
    rose = deltas["score"] > 0 if "score" in deltas else np.zeros(len(shared), dtype=bool)
    doubtful = rose & np.any(fell, axis=0) if fell else np.zeros(len(shared), dtype=bool)
    return Joined(a=a, b=b, kinds=kinds, deltas=deltas, doubtful=doubtful)


def _answers(side: Means, ids: Sequence[str], at: np.ndarray) -> dict[str, tuple[str, Answer]]:
    """Prompt and response of each of these prompts; texts of no other row are read."""
    rows_of_ids = pc.indices_nonzero(pc.is_in(side.of_row, value_set=pa.array(ids))).to_pylist()
    position = dict(zip(ids, at.tolist(), strict=True))
    nearest: dict[str, tuple[float, int]] = {}
    for row, prompt_id in zip(
        rows_of_ids, side.of_row.take(pa.array(rows_of_ids, pa.int64())).to_pylist(), strict=True
    ):
        mean = side.numbers["score"][position[prompt_id]] if "score" in side.numbers else 0.0
        distance = abs(side.scores[row] - mean)
        nearest[prompt_id] = min(nearest.get(prompt_id, (math.inf, row)), (distance, row))
    texts = side.rows.taken([nearest[prompt_id][1] for prompt_id in ids]).dicts(TEXTS)
    return {
        prompt_id: (
            text["prompt"],
            Answer(
                rollout_id=text["rollout_id"],
                response=text["response"],
                sampled_by=text.get("sampled_by"),
                samples=int(side.counts[position[prompt_id]]),
                numbers={name: _or_none(values[position[prompt_id]]) for name, values in side.numbers.items()},
            ),
        )
        for prompt_id, text in zip(ids, texts, strict=True)
    }


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
    return values / spread if spread else np.zeros_like(values)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy()


def _whole(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
