"""What a stage is given where no worker executes it."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.runs import Run
from tasks.config import ExecutionConfig
from tasks.contract import NO_LIMITS, ResidentModels, StageContext, recover
from tasks.models import pick_device, prefer_determinism
from tasks.store import Manifest, Place, Ref, is_committed
from tasks.worker.turns import alone_on, device_key

Report = Callable[[Mapping[str, Any]], None]


@contextmanager
def in_process(
    run: Run | None,
    *,
    place: Place,
    seed: int,
    execution: ExecutionConfig,
    lora_base: Ref | None = None,
    report: Report,
) -> Iterator[StageContext]:
    """A context whose output is thrown away. It has the device for itself, as a stage in a worker has; checkpoints of a run
    that were not kept are made again in memory."""
    prefer_determinism()
    models = ResidentModels()
    with tempfile.TemporaryDirectory(prefix="rounds-") as scratch:
        context = StageContext(
            output=Path(scratch),
            place=place,
            run_seed=seed,
            execution=execution,
            health=NO_LIMITS,
            resident=models,
            report=report,
            lora_base=lora_base,
        )

        def make_again(ref: Ref) -> None:
            if run is None or not is_committed(ref.directory):
                return
            if any(not (ref.directory / name).exists() for name in Manifest.read(ref.directory).recoverable):
                # In the run's scratch directory, which a run that is in progress has for itself.
                with run.locked():
                    recover(ref, run.store, context)

        key = device_key(pick_device(execution))
        with alone_on(key, report, user="a command that looks at models"), models.recovering(make_again):
            yield context
