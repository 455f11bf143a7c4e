"""Whether and how adapters are trained instead of whole models."""

from pydantic import Field

from tasks.config.base import StageConfig


class AdapterConfig(StageConfig):
    """Low-rank adapters for policy and critic over one frozen base, instead of whole models (arXiv:2106.09685)."""

    rank: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    """An adapter's product has the weight alpha / rank."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the names of the linear layers that get adapters; empty: all but the head."""
