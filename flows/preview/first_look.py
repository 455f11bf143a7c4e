"""What is looked at in the first seconds of each run: models without their weights, and the first rows of each file."""

from collections.abc import Mapping, Sequence

from flows.config import STAND_IN, RunConfig
from flows.plan import externals_of, model_checks
from flows.preview.named import sources
from tasks.contract import PreviewConfig, TrialConfig
from tasks.errors import ConfigError, Mistakes
from tasks.store import Ref
from tasks.worker import Workers

FIRST_ROWS = 1000
"""Of each file, which is read in a fraction of a second; ``rounds check`` reads all."""
PATIENCE_S = 1800.0


def look_first(worker: Workers, config: RunConfig, models: Mapping[str, Ref]) -> None:
    """Refuse what no run could use, before anything is made.

    Raises:
        ConfigError: naming the mistake; as ``Mistakes`` where there are several.
    """
    found = worker.preview(
        preview_config(config, models, first_rows=FIRST_ROWS), report=lambda _: None, timeout_s=PATIENCE_S
    )
    is_whole = all(source["is_whole"] for source in found["sources"])
    where = "the configuration" if is_whole else f"the configuration and the first {FIRST_ROWS:,} rows of each source"
    require_none(found["mistakes"], where=where)


def require_none(mistakes: Sequence[str], *, where: str) -> None:
    if len(mistakes) == 1:
        raise ConfigError(mistakes[0])
    if mistakes:
        raise Mistakes(where, mistakes)


def preview_config(
    config: RunConfig, models: Mapping[str, Ref], *, first_rows: int | None = None, has_trial: bool = False
) -> PreviewConfig:
    """What is looked at of a run whose models are found."""
    functions = {name: reward for name, reward in config.rewards.items() if reward.user_function is not None}
    trial = TrialConfig(sampling=config.rollouts.sampling, rewards=functions) if has_trial else None
    return PreviewConfig(
        data=config.data,
        seed=config.seed,
        checks=model_checks(config, externals_of(config, models), None),
        access=config.model.access("chat_template_kwargs", "lora", "shared_trunk"),
        from_scratch=config.model.from_scratch,
        execution=config.execution,
        first_rows=first_rows,
        trial=trial,
    )


def without_stand_ins(mistakes: Sequence[str], config: RunConfig) -> list[str]:
    """What was found of what is there: a source that stands in for a mistaken one has a mistake that nobody made."""
    made_up = tuple(f"{field}: " for field, source in sources(config) if source.name == STAND_IN)
    return [mistake for mistake in mistakes if not made_up or not mistake.startswith(made_up)]
