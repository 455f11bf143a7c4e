"""How long ``rounds run`` takes where there is little to do: in a new home, beside a server that runs, when all is done.

    python tests/benchmarks/start.py [--against TREE] [--repeat N] [--readme]

The run is the smallest: one iteration of one round in the world of the tests, two seconds of work. Each command is a
process of its own on a terminal, and is timed until it says something, and until it ends; processor time is that of the
command and its worker.
Other ``TREE``s, checkouts of another version, are measured by turns with this one.
"""

import argparse
import os
import pty
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import harness  # noqa: E402

COMMAND = "import sys; from flows.cli.main import main; sys.argv[0] = 'rounds'; main()"
SMALLEST = ("--set", "rounds=1", "--set", "iterations=1")
CASES = {
    "a new home": ("run", "{config}", *SMALLEST, "--name", "first"),
    "a server that runs": ("run", "{config}", *SMALLEST, "--name", "second"),
    "nothing left to do": ("run", "{config}", *SMALLEST, "--name", "second"),
}


def timed(tree, arguments):
    """Seconds until it says something on a terminal, until it ends, and of the processor."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
    terminal, end = pty.openpty()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=end,
        env={**environment, "PYTHONPATH": str(tree)},
    )
    os.close(end)
    said = []

    def listen():
        try:
            while os.read(terminal, 65536):
                said.append(time.perf_counter() - began)
        except OSError:
            # The other end is closed.
            return

    listening = threading.Thread(target=listen)
    listening.start()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    wall = time.perf_counter() - began
    # Prefect's server has the terminal no more, so that the end comes with that of the command.
    listening.join(timeout=5)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return {"said": said[0] if said else wall, "wall": wall, "processor": processor}


def turn(tree):
    config = str(ROOT / "tests" / "flows" / "tiny.yaml")
    with tempfile.TemporaryDirectory() as home:
        found = {
            case: timed(tree, ["--home", home, *(part.format(config=config) for part in arguments)])
            for case, arguments in CASES.items()
        }
        timed(tree, ["--home", home, "down"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, action="append", default=[])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    # The databases that are migrated once on a machine.
    turn(ROOT)
    trees = {"this": ROOT, **{str(tree): tree.resolve() for tree in given.against}}
    found = harness.interleaved({name: lambda tree=tree: turn(tree) for name, tree in trees.items()}, given.repeat)
    rows = []
    for case in CASES:
        for name, turns in found.items():
            numbers = [[own[case][key] for own in turns] for key in ("said", "wall", "processor")]
            rows.append([case, *([name] if given.against else []), *(f"{harness.spread(own, 1)} s" for own in numbers)])
    titles = ["case", *(["version"] if given.against else []), "until it says something", "until it ends", "processor"]
    text = f"{harness.in_words(harness.machine())}; {given.repeat} turns.\n\n{harness.table(titles, rows)}"
    print(text)
    if given.readme:
        harness.write_readme("start", text)


if __name__ == "__main__":
    main()
