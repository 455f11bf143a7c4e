"""What the stage store costs: the share of a round's wall time that goes into finding, hashing, flushing and committing.

    python tests/benchmarks/store.py [CONFIG] [--set A.B=VALUE …] [--repeat N] [--out FILE.json] [--readme]

Runs a configuration (the ``stories`` preset by default) without Prefect, stage after stage in one process, with a clock
around every function of the store that a run calls, and prints seconds and shares. The medians are over repeats, each in
a home of its own.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "tests" / "flows")]

from tasks import environment  # noqa: E402

environment.quieten(hub=False)

import harness  # noqa: E402
from direct_run import run_directly  # noqa: E402

from flows.config.reading import load_config  # noqa: E402
from tasks.contract import execution as stage  # noqa: E402
from tasks.store import store  # noqa: E402

TIMED = (
    (store.Store, "find"),
    (store.Store, "scratch"),
    (store.Store, "commit"),
    (stage, "require_undamaged"),
)


class Clock:
    """Seconds inside the functions of the store, outermost calls only."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self.calls = defaultdict(int)
        self._depth = 0

    def around(self, name, function):
        def timed(*arguments, **options):
            self._depth += 1
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds[name] += time.perf_counter() - started
                    self.calls[name] += 1

        return timed


def measure(config):
    """Seconds in all, and by function of the store, of one run from nothing."""
    clock = Clock()
    before = [(owner, name, getattr(owner, name)) for owner, name in TIMED]
    for owner, name, function in before:
        setattr(owner, name, clock.around(name, function))
    try:
        with tempfile.TemporaryDirectory() as home:
            started = time.perf_counter()
            run_directly(Path(home), "run", config)
            total = time.perf_counter() - started
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)
    return {"total": total, "store": sum(clock.seconds.values()), **dict(clock.seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="stories")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args()
    runs = [measure(load_config(arguments.config, arguments.set)) for _ in range(arguments.repeat)]
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    shares = [run["store"] / run["total"] for run in runs]
    machine = harness.machine()
    rows = [[name, f"{seconds:.3f}", f"{seconds / median['total']:.2%}"] for name, seconds in median.items()]
    what = " ".join([arguments.config, *(f"--set {override}" for override in arguments.set)])
    text = f"{harness.in_words(machine)}; `{what}`.\n\n{harness.table(['', 'seconds', 'share'], rows)}"
    print(text)
    if arguments.out:
        result = {"config": arguments.config, "set": arguments.set, "machine": machine, "runs": runs, "shares": shares}
        arguments.out.write_text(json.dumps(result, indent=1))
    if arguments.readme:
        harness.write_readme("store", text)


if __name__ == "__main__":
    main()
