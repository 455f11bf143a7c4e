"""A search's conditions as masks over the rows of a table."""

import pyarrow as pa
import pyarrow.compute as pc

from flows.query.columns import Column, Lookup, scalar
from flows.query.grammar import Comparison, Condition, Words
from tasks.errors import ConfigError

TEXTS = ("prompt", "response", "responses")
"""Where words are looked for that name no column, and where words need not be all of it."""
_COMPARE = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "=": pc.equal,
    "!=": pc.not_equal,
}


def mask_of(condition: Condition, column: Lookup, num_rows: int) -> Column:
    """Where a condition holds; a number or text that is missing fulfils none.

    ``column`` finds one by its name, and refuses a name that no data set has.

    Raises:
        ConfigError: a text is compared with a number, or a pattern cannot be read.
    """
    mask = _compared(condition, column) if isinstance(condition, Comparison) else _found(condition, column)
    if mask is None:
        mask = pa.repeat(scalar(False), num_rows)
    mask = _or_not(mask)
    return pc.invert(mask) if condition.is_negated else mask


def _or_not(mask: Column) -> Column:
    """A mask, false where it is null."""
    return pc.fill_null(mask, scalar(False))


def _compared(condition: Comparison, column: Lookup) -> Column | None:
    values = column(condition.column)
    if values is None:
        return None
    written = f"{condition.column}{condition.operator}{condition.number:g}"
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise ConfigError(
            f"{written}: {condition.column} holds no numbers; write {condition.column}:{condition.number:g}"
        )
    # In the column's own precision, so that 0.1 equals what was stored of it.
    number = scalar(condition.number, values.type if pa.types.is_floating(values.type) else pa.float64())
    return _COMPARE[condition.operator](values, number)


def _found(condition: Words, column: Lookup) -> Column | None:
    names = TEXTS if condition.column is None else (condition.column,)
    masks = [_holds(condition, values, name) for name in names if (values := column(name)) is not None]
    found: Column | None = None
    for mask in masks:
        found = mask if found is None else pc.or_(_or_not(found), _or_not(mask))
    return found


def _holds(condition: Words, values: Column, name: str) -> Column:
    texts = values if pa.types.is_string(values.type) else pc.cast(values, pa.string())
    if condition.is_pattern:
        try:
            return pc.match_substring_regex(texts, condition.text, ignore_case=True)
        except pa.ArrowInvalid as error:
            reason = str(error).partition(": ")[2].strip()
            raise ConfigError(
                f"/{condition.text}/ is no pattern that can be searched for ({reason}); correct it"
            ) from error
    if name in TEXTS:
        return pc.match_substring(texts, condition.text, ignore_case=True)
    return pc.equal(pc.utf8_lower(texts), scalar(condition.text.lower()))
