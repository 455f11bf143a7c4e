"""Searches as clicks change them: a term taken away, a column sorted by, a range set, a value chosen."""

import re
from collections.abc import Callable

from flows.query.grammar import NAME, Comparison, Order, Query, parse, quoted, written_terms
from tasks.errors import ConfigError


def without(search: str, term: str) -> str:
    """The search without one of its terms."""
    terms = written_terms(search)
    terms.remove(term)
    return " ".join(terms)


def with_order(search: str, column: str, order: Order | None) -> str:
    """The search sorted by a column: first the largest, then the smallest, then as the rows stand."""
    kept = [term for term in written_terms(search) if not term.startswith("sort:")]
    if order is None:
        return " ".join([*kept, f"sort:-{column}"])
    return " ".join([*kept, f"sort:{column}"] if order.largest_first else kept)


def narrowed(search: str, column: str, low: str, high: str) -> str:
    """The search with a column's range as it is written here, in the place of one that it had; without an end, from or up
    to whatever there is."""
    ends = [(">=", low.strip()), ("<", high.strip())]
    range = [f"{column}{operator}{end}" for operator, end in ends if end]
    return " ".join([*_terms_but(search, lambda condition: is_end(condition, column)), *range])


def bounds(query: Query, column: str) -> tuple[float | None, float | None] | None:
    """The range to which a search narrows a column, None where it has no such end; None where it has no range at all."""
    ends = [condition for condition in query.conditions if is_end(condition, column)]
    low = [end.number for end in ends if isinstance(end, Comparison) and end.operator.startswith(">")]
    high = [end.number for end in ends if isinstance(end, Comparison) and end.operator.startswith("<")]
    return (max(low, default=None), min(high, default=None)) if ends else None


def is_end(condition: object, column: str) -> bool:
    """Whether a condition is one end of a column's range."""
    return (
        isinstance(condition, Comparison)
        and condition.column == column
        and condition.operator not in ("=", "!=")
        and not condition.is_negated
    )


def with_value(search: str, column: str, value: str, *, is_number: bool) -> str | None:
    """The search with a term for a column's value; None where the grammar cannot name such a column."""
    if re.fullmatch(NAME, column) is None:
        return None
    if is_number:
        term = f"{column}={value}"
    else:
        # A value in quotation marks cannot be taken for anything else, even in a column that is called sort.
        is_plain = re.fullmatch(r"\w[\w.-]*", value) is not None and column != "sort"
        term = f"{column}:{value if is_plain else quoted(value)}"
    return " ".join([*written_terms(search), term])


def _terms_but(search: str, left_out: Callable[[object], bool]) -> list[str]:
    """The terms of a search as they are written, but for those with such conditions."""

    def stays(term: str) -> bool:
        try:
            return not any(left_out(condition) for condition in parse(term).conditions)
        except ConfigError:
            return True

    return [term for term in written_terms(search) if stays(term)]
