"""Declarations of all metrics: unit, meaning, healthy range, and how each combines over shards and iterations."""

from tasks.metrics.declared.glossary import (
    GLOSSARY,
    LOGGED_BY,
    combination,
    declaration,
    declared,
    named,
    require_declared,
)
from tasks.metrics.declared.metric import STDERR, Combination, Limit, Metric, Range
from tasks.metrics.declared.of_doubts import LEAST_CORRELATION
from tasks.metrics.declared.of_update import HIGH_APPROX_KL
from tasks.metrics.declared.table import glossary_text

__all__ = [
    "GLOSSARY",
    "HIGH_APPROX_KL",
    "LEAST_CORRELATION",
    "LOGGED_BY",
    "STDERR",
    "Combination",
    "Limit",
    "Metric",
    "Range",
    "combination",
    "declaration",
    "declared",
    "glossary_text",
    "named",
    "require_declared",
]
