"""Gates: a stage that sees its run fall ill stops, before it commits what nobody could use."""

from tasks.contract.stage import StageContext
from tasks.errors import UnhealthyError

OFF = "or set health.action: warn to go on"


class Gates:
    """The limits of ``health``, for one execution of a stage. ``warnings`` are those exceeded while only warning."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self.warnings: set[str] = set()

    def at_most(self, limit_name: str, value: float, limit: float, *, what: str, advice: str) -> None:
        """Refuse a value above its limit; a value that is no number is above every limit."""
        if not value <= limit:
            self._exceeded(limit_name, f"{what} is {value:.4g}, above health.{limit_name}={limit:g}; {advice}, {OFF}")

    def at_least(self, limit_name: str, value: float, limit: float, *, what: str, advice: str) -> None:
        """Refuse a value below its limit; a value that is no number is below every limit."""
        if not value >= limit:
            self._exceeded(limit_name, f"{what} is {value:.4g}, below health.{limit_name}={limit:g}; {advice}, {OFF}")

    def require(self, limit_name: str, holds: bool, message: str, *, can_stop: bool = True) -> None:
        """Refuse what does not hold, in words of the caller's; say it only where too little was measured to stop by."""
        if not holds:
            self._exceeded(limit_name, f"{message}, {OFF}" if can_stop else message, can_stop=can_stop)

    def _exceeded(self, limit_name: str, message: str, *, can_stop: bool = True) -> None:
        if self._context.health.action == "stop" and can_stop:
            raise UnhealthyError(message)
        # Once a stage: every later minibatch would say the same.
        if limit_name not in self.warnings:
            self.warnings.add(limit_name)
            self._context.warn(message)
