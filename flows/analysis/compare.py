"""Two places of one run or of two, prompt by prompt: what rose, and whether what training never sees rose with it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flows.analysis.differences import Setting, differing_settings
from flows.analysis.joined import DOUBTFUL, Joined, Kind, Means, Pair, join, means_of
from flows.analysis.sides import COMPONENT, Side, conditions_of, reward_models_of
from flows.query import Selection, parse
from tasks.errors import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A number over the prompts that both sides have, each prompt with its mean over responses."""

    name: str
    kind: Kind
    a: float
    b: float
    change: float
    """The mean of B − A over the prompts."""
    stderr: float | None
    """Of ``change``, prompts taken as independent."""
    rose: int
    fell: int
    """Prompts where it rose, and where it fell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideSummary:
    """What one side is."""

    name: str
    run: str
    data: str
    first: tuple[int, int]
    last: tuple[int, int]
    """Round and iteration of its first and its last rows; an evaluation has iteration 0."""
    rows: int
    prompts: int
    is_current: bool
    """False where the run's configuration changed since, and what was made before is compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides joined by prompt."""

    sides: tuple[SideSummary, SideSummary]
    prompts: int
    """Those that both sides have."""
    doubtful: int
    """Prompts whose score rose while a held-out reward fell."""
    has_one_scale: bool
    """Whether one reward model gave the scores of both sides; else their difference says little."""
    changes: tuple[Change, ...]
    settings: list[Setting]
    """What differs in the configuration of two runs."""
    order: str
    _joined: Joined = field(repr=False, compare=False)

    def pairs(self, start: int = 0, stop: int = 20) -> list[Pair]:
        """Prompts in the order that was asked for; their texts are read now."""
        return self._joined.pairs(start, stop)

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(prompts,) a number on each side, for histograms over each other; NaN where a prompt has none."""
        return self._joined.a.numbers[name], self._joined.b.numbers[name]

    @property
    def held_out(self) -> list[str]:
        return [change.name for change in self.changes if change.kind == "held-out"]

    def as_dict(self, start: int = 0, stop: int = 20) -> dict[str, Any]:
        return {
            "sides": [asdict(side) for side in self.sides],
            **{name: getattr(self, name) for name in ("prompts", "doubtful", "has_one_scale", "order")},
            "changes": [asdict(change) for change in self.changes],
            "settings": [setting.as_dict() for setting in self.settings],
            "pairs": [asdict(pair) for pair in self.pairs(start, stop)],
        }


def compared(a: Side, b: Side, *, search: str = "", order: str = DOUBTFUL) -> Comparison:
    """What changed from A to B for the prompts that both have, as far as a search finds their rows.

    ``order`` is the name of a number, whose largest fall comes first, and with - before it the largest rise.

    Raises:
        ConfigError: the search cannot be read, or there is no such column to search or sort by.
        RunError: a side has no rows yet, or they share no prompt.
    """
    one, other = a.select(), b.select()
    columns_a, columns_b = columns_of(a, one), columns_of(b, other)
    kinds = {name: kind for name, (kind, _) in columns_a.items() if name in columns_b}
    # A single component is the score, but for its weight.
    if sum(kind == "component" for kind in kinds.values()) == 1:
        kinds = {name: kind for name, kind in kinds.items() if kind != "component"}
    query = parse(search)

    def means(side: Side, selection: Selection, columns: Mapping[str, tuple[Kind, str]]) -> Means:
        rows = selection.data_set.search(conditions_of(side, query))
        return means_of(rows, {name: columns[name][1] for name in kinds})

    means_a, means_b = means(a, one, columns_a), means(b, other, columns_b)
    joined = join(means_a, means_b, kinds)
    if not len(joined.prompt_ids):
        if search and not (len(means_a.rows) and len(means_b.rows)):
            empty = a.place if not len(means_a.rows) else b.place
            raise RunError(f"{search}: finds nothing in {empty}; correct the search, or leave it out")
        raise RunError(
            f"{a.place} and {b.place} have no prompt in common; compare evaluations (RUN:ROUND), which all have the same"
        )
    joined.ranked = joined.in_order(order)
    models = reward_models_of(a.run, one), reward_models_of(b.run, other)
    return Comparison(
        sides=(_summary(a, one, means_a), _summary(b, other, means_b)),
        prompts=len(joined.prompt_ids),
        doubtful=int(joined.doubtful.sum()),
        has_one_scale=models[0] == models[1] and len(models[0]) <= 1,
        changes=tuple(_changes(joined)),
        settings=[] if a.run.root == b.run.root else differing_settings(a.run.config, b.run.config),
        order=order,
        _joined=joined,
    )


def columns_of(side: Side, selection: Selection) -> dict[str, tuple[Kind, str]]:
    """The numbers of a side: what each is called, its kind and its column."""
    there = selection.data_set.columns
    held_out = side.held_out_columns()
    inside = [n for n in there if n.startswith(COMPONENT) and n not in held_out.values()]
    named: list[tuple[str, Kind, str]] = [
        ("score", "score", "score"),
        *((name.removeprefix(COMPONENT), "component", name) for name in inside),
        *((name, "held-out", column) for name, column in held_out.items()),
        ("length", "length", "length"),
        ("kl_sum", "KL", "kl_sum"),
    ]
    found: dict[str, tuple[Kind, str]] = {}
    for name, kind, column in named:
        if column in there:
            found.setdefault(name, (kind, column))
    return found


def _summary(side: Side, selection: Selection, means: Means) -> SideSummary:
    places = sorted((part.place.round, part.place.iteration) for part in selection.parts)
    (round, iteration), last = places[0], places[-1]
    where = f"round {round}, " + (f"iteration {iteration}" if iteration else "evaluation")
    if places[0] != last:
        where += f" to round {last[0]}" + (f", iteration {last[1]}" if last[1] else "")
    return SideSummary(
        name=f"{side.run.name}, {where}" + (f", attempt {side.attempt}" if side.attempt else ""),
        run=side.run.name,
        data=side.data,
        first=places[0],
        last=last,
        rows=len(means.rows),
        prompts=len(means.prompt_ids),
        is_current=selection.is_current,
    )


def _changes(joined: Joined) -> Iterator[Change]:
    """Each number that some prompt has on both sides."""
    for name, kind in joined.kinds.items():
        a, b = joined.a.numbers[name], joined.b.numbers[name]
        is_there = np.isfinite(a) & np.isfinite(b)
        deltas = b[is_there] - a[is_there]
        if n := len(deltas):
            yield Change(
                name=name,
                kind=kind,
                a=float(a[is_there].mean()),
                b=float(b[is_there].mean()),
                change=float(deltas.mean()),
                stderr=float(deltas.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
                rose=int((deltas > 0).sum()),
                fell=int((deltas < 0).sum()),
            )
