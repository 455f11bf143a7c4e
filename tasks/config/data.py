"""Where a run's data comes from, what is held out of it, and a model made anew."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.config.base import StageConfig
from tasks.config.model_access import ModelStageConfig
from tasks.errors import ConfigError


def parse_import_path(import_path: str, *, field: str) -> tuple[str, str]:
    module_name, colon, attribute = import_path.partition(":")
    names = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise ConfigError(f"{field}: {import_path!r} does not read package.module:callable; write it like my_data:rows")
    return module_name, attribute


class Source(BaseModel):
    """One data set: local files, a data set of the Hugging Face hub, or a function that yields rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | None = None
    """A .jsonl, .ndjson, .json, .parquet, .csv or .tsv file, also compressed (.gz, .zst); a pattern like
    ``data/*.jsonl``; or a saved `datasets` directory."""
    dataset: str | None = None
    """A data set's name on the hub; its downloads follow the usual Hugging Face settings."""
    function: str | None = None
    """``package.module:callable``; called as ``callable(seed=..., **arguments)``, it yields one dict per row."""
    subset: str | None = None
    """The hub data set's configuration name."""
    revision: str | None = None
    """The hub data set's commit, tag or branch; without a commit, the data may change under the same name."""
    split: str | None = None
    """Which split of a hub data set or of a saved DatasetDict; not needed where there is only one."""
    arguments: dict[str, Any] = {}
    """Keyword arguments for ``function``, beside ``seed``."""
    columns: dict[str, str] = {}
    """Our column name -> the name it has in the data."""
    limit: int | None = Field(default=None, gt=0)
    """Read only the first rows."""
    from_round: int = Field(default=1, ge=1)
    """The rows count from this round on."""

    @model_validator(mode="before")
    @classmethod
    def _a_plain_string_is_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        given = [kind for kind in ("path", "dataset", "function") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of path, dataset or function, not {' and '.join(given) or 'none'}")
        kind = given[0]
        if not getattr(self, kind).strip():
            raise ValueError(f"{kind} is empty; name the data, for example path: data/prompts.jsonl")
        belongs = {"subset": ("dataset",), "revision": ("dataset",), "split": ("path", "dataset")}
        for setting, kinds in (belongs | {"arguments": ("function",)}).items():
            if getattr(self, setting) and kind not in kinds:
                raise ValueError(f"{setting} goes with {' or '.join(kinds)}, not with {kind}; remove it")
        try:
            json.dumps(self.arguments, allow_nan=False)
        except (TypeError, ValueError):
            # A run's configuration is stored as JSON, which would hand the function something else.
            raise ValueError("arguments holds what JSON cannot, such as .inf; give it as text or as a number") from None
        if "seed" in self.arguments:
            raise ValueError("arguments must not hold 'seed'; the function gets the run's seed")
        if self.function is not None:
            parse_import_path(self.function, field="function")
        return self

    @property
    def name(self) -> str:
        """How messages name this source."""
        return str(self.path or self.dataset or self.function)


class DataConfig(StageConfig):
    """Where data comes from. Each entry is a path, or a mapping with ``path``, ``dataset`` or ``function``."""

    prompts: tuple[Source, ...] = Field(min_length=1)
    """What responses are sampled to."""
    held_out_prompts: tuple[Source, ...] = ()
    """Prompts for evaluation; by default ``num_held_out_prompts`` are set aside from ``prompts``."""
    num_held_out_prompts: int = Field(64, gt=0)
    """How many are set aside where ``held_out_prompts`` is empty."""
    preferences: tuple[Source, ...] = ()
    """What the reward model learns: prompt, chosen and rejected; or prompt, responses and ranks."""
    held_out_preferences: float = Field(0.1, gt=0, lt=1)
    """Share of the preferences that the reward model never trains on; all of one prompt fall on one side."""
    texts: tuple[Source, ...] = ()
    """Texts, or prompts with responses, for the supervised warm-up."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do with rows that cannot be used: unreadable, without a text that is needed, to be read in two ways, or too
    long for the model's context. ``error`` tells all of them at once; ``drop`` leaves them out and counts them."""


class FromScratchConfig(StageConfig):
    """A new Llama-style model with random weights, and a byte-level BPE tokenizer trained on ``data.texts``."""

    vocab_size: int = Field(512, ge=260)
    hidden_size: int = Field(128, gt=0)
    intermediate_size: int = Field(384, gt=0)
    num_layers: int = Field(4, gt=0)
    num_heads: int = Field(4, gt=0)
    context_length: int = Field(128, gt=1)


class PrepareDataConfig(ModelStageConfig):
    """What the stage reads: the sources that count in this round, and digests of what lies behind them."""

    data: DataConfig
    from_scratch: FromScratchConfig | None = None
    response_tokens: int
    """Longest response that will be sampled: a prompt must leave room for it."""
    source_digests: tuple[str, ...] = ()
    adapted_layers: tuple[str, ...] = ()
    """What the policy's layers that get adapters are called, which the model must have; empty: no names to check."""
