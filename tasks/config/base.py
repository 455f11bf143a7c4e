"""What every part of the configuration is."""

from pydantic import BaseModel, ConfigDict


class StageConfig(BaseModel):
    """Base of every part of the configuration: read-only, keyword-only, unknown keys refused."""

    # Infinity survives the way through JSON as text; no limit is a legal setting of some fields. The text below a field
    # is what Prefect's form says of it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", use_attribute_docstrings=True)
