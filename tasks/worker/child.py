"""The worker itself: ``python -m tasks.worker.child FD`` answers calls until its input ends."""

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from tasks.config import ExecutionConfig, ModelChecks
from tasks.contract import PreviewConfig, ResidentModels, StageCall, classify, describe, execute, is_of_users_code
from tasks.models import empty_cache, pick_device, prefer_determinism, require_sound_models
from tasks.preview import look
from tasks.stages import STAGES
from tasks.worker.protocol import decode_call, served
from tasks.worker.ranks import train_together
from tasks.worker.supervisor import REPORT_S
from tasks.worker.turns import alone_on, device_key


def devices_of(call: StageCall) -> list[str | None]:
    """The accelerators that a stage needs for itself."""
    stage, execution = STAGES[call.stage], ExecutionConfig(**call.execution)
    if not stage.uses_models:
        return []
    device = pick_device(execution)
    if device.type == "cuda" and stage.trains and execution.train_processes > 1:
        return [device_key(torch.device("cuda", number)) for number in range(execution.train_processes)]
    return [device_key(device)]


def main() -> None:
    """The child: answer one call after another until the input ends."""
    calls, answer = served(int(sys.argv[1]))
    prefer_determinism()
    models = ResidentModels()
    told = 0.0

    def report(event: Mapping[str, Any]) -> None:
        nonlocal told
        # Nobody reads faster, and a sampler has something to say at every token.
        if "done" not in event or event["done"] == event["total"] or time.monotonic() - told > REPORT_S:
            told = time.monotonic()
            answer({"progress": dict(event)})

    def done(request: Mapping[str, Any]) -> Any:
        if "checks" in request:
            return require_sound_models(ModelChecks(**request["checks"]))
        if "preview" in request:
            preview = PreviewConfig(**request["preview"])
            device = None if preview.trial is None else device_key(pick_device(preview.execution))
            with alone_on(device, report, user="rounds check"):
                return look(preview, report)
        call = decode_call(request["call"])
        with ExitStack() as held:
            for device in devices_of(call):
                held.enter_context(alone_on(device, report, user=f"{call.label} of {call.run_root}"))
            return dataclasses.asdict(execute(call, models, report, together=train_together))

    while True:
        request = json.loads(calls.get())
        try:
            answer({"done": done(request)})
        except Exception as error:
            models.clear()
            empty_cache()
            traceback.print_exc()
            failure = {"kind": classify(error), "message": describe(error), "is_of_users_code": is_of_users_code(error)}
            answer({"error": failure})


if __name__ == "__main__":
    main()
