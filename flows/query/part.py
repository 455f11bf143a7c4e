"""One committed data set, column by column: stored ones from the memory map, others worked out when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from flows.query.columns import DERIVED, Column, column_names, column_of, own_names, rows_at, scalar
from tasks.store import Place, Ref, Table, read_dataset, require_undamaged

PLACES = ("run", "round", "iteration")
"""Columns that say where a row comes from."""
BEHIND = ("rollout_id", "extra")
"""Stored columns that audited ones and the user's own follow from."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set of one committed output."""

    run: str
    place: Place
    stage: str
    name: str
    ref: Ref
    audits: tuple[Ref, ...] = ()
    """What is known of the same rollouts beside their training."""

    @cached_property
    def table(self) -> Table:
        """Memory-mapped, if it is what was committed."""
        return _checked(self.ref, self.name)

    @cached_property
    def _audit(self) -> Table | None:
        return pa.concat_tables([_checked(ref, "audit") for ref in self.audits]) if self.audits else None

    @cached_property
    def columns(self) -> list[str]:
        """What a search may name here, the data's own columns last."""
        audited = [] if self._audit is None else [n for n in self._audit.column_names if n != "rollout_id"]
        return [*column_names(self.table), *audited, *PLACES, *own_names(self.table)]

    def column(self, name: str) -> Column | None:
        if name in self.table.column_names:
            return self._column_of(self.table, name)
        # A search filters, sorts, counts and shows by it: it is worked out once.
        if name not in self._derived:
            self._derived[name] = self._column_of(self.table, name)
        return self._derived[name]

    def _column_of(self, table: Table, name: str) -> Column | None:
        """A column of some of the rows; ``table`` holds what it follows from."""
        if name in PLACES:
            value = self.run if name == "run" else getattr(self.place, name)
            return pa.repeat(scalar(value), table.num_rows)
        if self._audit is not None and name in self._audit.column_names and name != "rollout_id":
            rows = pc.index_in(table.column("rollout_id"), self._audit.column("rollout_id"))
            return self._audit.column(name).take(rows)
        return column_of(table, name)

    def text(self, name: str) -> Column | None:
        """A stored column, and none of the user's own: those would have to be read out of every row's JSON."""
        return self.column(name) if name in self.table.column_names else None

    @cached_property
    def _derived(self) -> dict[str, Column | None]:
        return {}

    @cached_property
    def all_columns(self) -> list[str]:
        """Stored columns, lists too, then derived and audited ones. The data's own are together in ``extra``."""
        own = set(own_names(self.table))
        stored = self.table.column_names
        return [*stored, *(name for name in self.columns if name not in stored and name not in own)]

    def rows(self, indices: pa.Array, columns: Sequence[str] | None) -> Table:
        """The rows chosen: all columns, or those named. What follows from stored columns is worked out for these alone."""
        names = self.all_columns if columns is None else columns
        stored = set(self.table.column_names)
        sources = [own for name in names for own in ((name,) if name in stored else DERIVED.get(name, BEHIND))]
        # One at least, so that places are repeated as often as there are rows.
        sources.append(self.table.column_names[0])
        chosen = rows_at(self.table.select([own for own in dict.fromkeys(sources) if own in stored]), indices)
        found = {name: chosen.column(name) if name in stored else self._column_of(chosen, name) for name in names}
        return pa.table({name: column for name, column in found.items() if column is not None})


def _checked(ref: Ref, name: str) -> Table:
    require_undamaged(ref, name)
    return read_dataset(ref.directory / name)
