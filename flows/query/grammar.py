"""The one search grammar, of the command line, of pages and of Python.

    lamp                    the word, or part of a word, in prompt or response, in any case
    "red lamp"              these words one after the other
    /lamps?\\b/              a regular expression, of those that take linear time (RE2)
    score<0                 a column below a number; also <= > >= = !=
    finish_reason:stop      a column that is this; prompt: and response: ones that hold it; "…" and /…/ may follow too
    -lamp  -score<0         not
    sort:score sort:-score  smallest first, largest first; several sort by the first, then the next

Terms that stand beside each other must all hold.
"""

import re
from dataclasses import dataclass
from typing import Literal

from tasks.errors import ConfigError

Operator = Literal["<", "<=", ">", ">=", "=", "!="]
LONGEST = 2000
"""Characters of a search: nobody writes more, and each term is a pass over the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Text that a column holds, or prompt or response where none is named."""

    text: str
    column: str | None = None
    is_pattern: bool = False
    is_negated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A column against a number."""

    column: str
    operator: Operator
    number: float
    is_negated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A column to sort by."""

    column: str
    largest_first: bool


Condition = Words | Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a search asks for. Without an order, rows stay in that of their data sets."""

    conditions: tuple[Condition, ...] = ()
    order: tuple[Order, ...] = ()


NAME = r"[^\W\d][\w./]*"
_TEXT = r'"(?:[^"\\]|\\.)*"'
_PATTERN = r"/(?:[^/\\]|\\.)*/"
_TERM = re.compile(
    rf"""(?P<minus>-?)(?:
        sort:(?P<descending>-?)(?P<sort>{NAME})
      | (?P<compared>{NAME})(?P<operator><=|>=|!=|<|>|=)(?P<number>[^\s"/]+)
      | (?:(?P<column>{NAME}):)?(?:(?P<phrase>{_TEXT})|(?P<pattern>{_PATTERN}))
      | (?P<named>{NAME}):(?P<value>[^\s"/]\S*)
      | (?!{NAME}(?:[<>=]|!=|:(?:\s|$)))(?P<word>[^\s"/-]\S*)
    )(?=\s|$)""",
    re.VERBOSE,
)


def parse(text: str) -> Query:
    """Read a search.

    Raises:
        ConfigError: the text that cannot be read, and how it may be written.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"the search has {len(text):,} characters, more than {LONGEST:,}; ask for less")
    conditions: list[Condition] = []
    order: list[Order] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        term = _TERM.match(text, position)
        if term is None:
            raise ConfigError(
                f"the search cannot be read from {text[position : position + 30]!r} on; write words, "
                '"a phrase", /a pattern/, column<number, column:value, each with - before it for not, or sort:-column'
            )
        position = term.end()
        if term["sort"] is not None:
            if term["minus"]:
                raise ConfigError(f"{term[0]}: write sort:-{term['sort']} for the largest first")
            order.append(Order(column=term["sort"], largest_first=bool(term["descending"])))
        else:
            conditions.append(_condition(term))
    return Query(conditions=tuple(conditions), order=tuple(order))


def written_terms(text: str) -> list[str]:
    """The terms of a search that can be read, as they are written."""
    return [term[0] for term in _TERM.finditer(text)]


def written(query: Query) -> str:
    """A search as ``parse`` reads it."""
    return " ".join(
        [*map(_written, query.conditions), *(f"sort:{'-' * o.largest_first}{o.column}" for o in query.order)]
    )


def _written(condition: Condition) -> str:
    minus = "-" * condition.is_negated
    if isinstance(condition, Comparison):
        return f"{minus}{condition.column}{condition.operator}{condition.number!r}"
    text = f"/{condition.text.replace('/', chr(92) + '/')}/" if condition.is_pattern else quoted(condition.text)
    if not condition.is_pattern and re.fullmatch(r"\w+", condition.text):
        text = condition.text
    return minus + (f"{condition.column}:" if condition.column is not None else "") + text


def quoted(value: str) -> str:
    """A value so that a search takes it as one, whatever it holds."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _condition(term: re.Match[str]) -> Condition:
    is_negated = bool(term["minus"])
    if term["operator"] is not None:
        operator: Operator = term["operator"]  # type: ignore[assignment]
        number = _number(term)
        return Comparison(column=term["compared"], operator=operator, number=number, is_negated=is_negated)
    column = term["column"] or term["named"]
    if term["pattern"] is not None:
        pattern = term["pattern"][1:-1].replace("\\/", "/")
        return Words(text=pattern, column=column, is_pattern=True, is_negated=is_negated)
    words = term["value"] or term["word"]
    if term["phrase"] is not None:
        words = re.sub(r"\\(.)", r"\1", term["phrase"][1:-1])
    return Words(text=words, column=column, is_negated=is_negated)


def _number(term: re.Match[str]) -> float:
    try:
        return float(term["number"].replace(",", ""))
    except ValueError:
        column, operator = term["compared"], term["operator"]
        raise ConfigError(
            f"{term[0]}: {term['number']} is no number; for a text write {column}:{term['number']}"
            if operator in ("=", "!=")
            else f"{term[0]}: {term['number']} is no number; write {column}{operator}0.5"
        ) from None
