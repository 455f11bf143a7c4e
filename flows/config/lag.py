"""What a run with ``rollouts.lag`` must be: rollouts can be so far behind, and what they are sampled from is still there."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.config.run_config import RunConfig


def require_lag_fits(config: "RunConfig") -> None:
    """Refuse a lag that no iteration could have, and checkpoints that are gone before they are sampled from.

    Raises ``ValueError``: field, reason, next move.
    """
    lag = config.rollouts.lag
    if lag == 0:
        return
    if lag >= config.iterations:
        raise ValueError(
            f"rollouts.lag={lag}: with iterations={config.iterations} no iteration follows more than "
            f"{config.iterations - 1} of its round's updates, and none can be further behind; lower it"
        )
    if config.checkpoint_every > 1:
        raise ValueError(
            f"checkpoint_every={config.checkpoint_every}: with rollouts.lag={lag} each policy samples once more after the "
            f"update that follows it, so that its weights are kept; leave it out, or set keep_checkpoints={lag + 1} to save "
            "room"
        )
    if config.keep_checkpoints is not None and config.keep_checkpoints <= lag:
        raise ValueError(
            f"keep_checkpoints={config.keep_checkpoints}: with rollouts.lag={lag} rollouts are sampled from the last "
            f"{lag + 1} checkpoints; raise it to {lag + 1}"
        )
