"""What training remembers from iteration to iteration besides weights: the KL coefficient and the scores' moments."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.store import read_json, write_json

if TYPE_CHECKING:
    from ppo_core.rewards import RunningMoments

STATE_FILE = "loop_state.json"


def no_scores() -> "RunningMoments":
    from ppo_core import RunningMoments

    return RunningMoments()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopState:
    """Written by ``compute_advantages`` for the next iteration; part of the checkpoint. JSON keeps floats exactly."""

    kl_coef: float | None = None
    """None before the first iteration: the configuration's."""
    scores: "RunningMoments" = field(default_factory=no_scores)
    """Of all scores so far that count."""
    told_length_cut: bool = False
    """Whether it was said that most responses are cut off: once is enough."""

    def write(self, directory: Path) -> None:
        write_json(directory / STATE_FILE, asdict(self))


def read_loop_state(directory: Path) -> LoopState:
    """The state in a checkpoint; that of the beginning in the model that training starts from."""
    from ppo_core import RunningMoments

    saved = read_json(directory / STATE_FILE)
    if saved is None:
        return LoopState()
    return LoopState(
        kl_coef=saved["kl_coef"], scores=RunningMoments(**saved["scores"]), told_length_cut=saved["told_length_cut"]
    )
