"""Rows of any data set that a stage wrote, over iterations and rounds, found by one search grammar."""

from flows.query.beside import Beside, beside
from flows.query.data_set import SEED_OF_SAMPLES, DataSet, Part, Rows
from flows.query.distribution import Distribution, distribution, is_numeric, value_counts
from flows.query.find import LATEST, Selection, Span, select, span
from flows.query.grammar import Order, Query, Words, parse, quoted, written, written_terms
from flows.query.one_rollout import OneRollout, one_rollout
from flows.query.terms import bounds, narrowed, with_order, with_value, without

__all__ = [
    "LATEST",
    "SEED_OF_SAMPLES",
    "Beside",
    "DataSet",
    "Distribution",
    "OneRollout",
    "Order",
    "Part",
    "Query",
    "Rows",
    "Selection",
    "Span",
    "Words",
    "beside",
    "bounds",
    "distribution",
    "is_numeric",
    "narrowed",
    "one_rollout",
    "parse",
    "quoted",
    "select",
    "span",
    "value_counts",
    "with_order",
    "with_value",
    "without",
    "written",
    "written_terms",
]
