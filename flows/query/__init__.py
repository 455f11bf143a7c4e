"""Rows of any data set that a stage wrote, over iterations and rounds, found by one search grammar."""

from flows.query.data_set import DataSet, Part, Rows
from flows.query.find import LATEST, Selection, Span, select, span
from flows.query.grammar import Order, Query, parse
from flows.query.one_rollout import OneRollout, one_rollout

__all__ = [
    "LATEST",
    "DataSet",
    "OneRollout",
    "Order",
    "Part",
    "Query",
    "Rows",
    "Selection",
    "Span",
    "one_rollout",
    "parse",
    "select",
    "span",
]
