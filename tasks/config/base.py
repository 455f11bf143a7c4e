"""What every part of the configuration is."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""A value as JSON has it."""


class StageConfig(BaseModel):
    """Base of every part of the configuration: read-only, keyword-only, unknown keys refused."""

    # Infinity survives the way through JSON as text; no limit is a legal setting of some fields. The text below a field
    # is what Prefect's form says of it. What a command does not read is not built.
    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True, defer_build=True
    )
