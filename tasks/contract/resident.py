"""Models that stay in memory between stages, by the digest of what they hold."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tasks.store import Ref

# Policy, critic, their moments where no file keeps them, reference, reward model, and one more: what an iteration needs.
MAX_RESIDENT = 7
M = TypeVar("M")


class ResidentModels:
    """Models that stay in memory between stages, by the digest of the output that holds their weights and the part of it.

    Handing one out is the same as loading it anew: ``take`` removes a model that its user will change.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._shared: dict[str, Any] = {}
        self._recover: Callable[[Ref], None] = lambda _: None

    def get(self, ref: Ref, part: str, load: Callable[[], M]) -> M:
        """A model that nobody changes: from memory, or loaded and kept."""
        model = self.take(ref, part, load)
        self.keep(ref, part, model)
        return model

    def take(self, ref: Ref, part: str, load: Callable[[], M]) -> M:
        """A model that the caller may change; it is no longer kept under this digest."""
        if (ref.digest, part) not in self._kept:
            self._recover(ref)
        model: M = self._kept.pop((ref.digest, part)) if (ref.digest, part) in self._kept else load()
        return model

    @contextmanager
    def recovering(self, recover: Callable[[Ref], None]) -> Iterator[None]:
        """Call ``recover`` before a model is read from files: they may not have been kept."""
        before, self._recover = self._recover, recover
        try:
            yield
        finally:
            self._recover = before

    def require_files(self, ref: Ref) -> None:
        """Have the files of an output made again that were not kept, for processes that have to read them."""
        self._recover(ref)

    def keep(self, ref: Ref, part: str, model: Any) -> None:
        self._kept[(ref.digest, part)] = model
        self._kept.move_to_end((ref.digest, part))
        while len(self._kept) > MAX_RESIDENT:
            self._kept.popitem(last=False)

    def shared(self, name: str, make: Callable[[], M], *, renew: Callable[[M], None]) -> M:
        """What serves one checkpoint after another, such as an engine that is given new weights: made once, then renewed."""
        if name in self._shared:
            found: M = self._shared[name]
            renew(found)
            return found
        self._shared[name] = made = make()
        return made

    def clear(self) -> None:
        """Forget all: after an error, a model may be half changed."""
        self._kept.clear()
        self._shared.clear()
