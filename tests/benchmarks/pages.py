"""What the pages cost: their start, the first page, and searches over many rollouts, as a browser asks for them.

    python tests/benchmarks/pages.py [--rows N] [--parts N] [--repeat N] [--readme]

Makes a home with a run whose iterations have many rollouts, and asks ``rounds ui`` over HTTP, a new process each turn: the
files are in the system's cache, the server's memory is empty.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]

import fake_runs  # noqa: E402
import harness  # noqa: E402
import search  # noqa: E402

from tasks.store.data_sets import write_dataset  # noqa: E402

EVERYWHERE = "/runs/big/rollouts?round=all&iteration=all"
PAGES = {
    "the list of runs, the first page of a new server": "/",
    "a run of 100 iterations": "/runs/big",
    "rollouts of the latest iteration": "/runs/big/rollouts",
    "all rollouts": EVERYWHERE,
    "all, the best first": f"{EVERYWHERE}&q={quote('sort:-score')}",
    "a filter, sorted": f"{EVERYWHERE}&q={quote('score<-1 length>20 sort:-kl_sum')}",
    "a word in all texts": f"{EVERYWHERE}&q={quote('lamp7')}",
    "the same filter again": f"{EVERYWHERE}&q={quote('score<-1 length>20 sort:-kl_sum')}",
}


def make_home(home, num_rows, num_parts):
    """A finished run of one round whose iterations have as many rollouts each."""

    def write(directory, place):
        write_dataset(directory / "rollouts", search.rollouts(place.iteration, num_rows // num_parts))
        return {"kl/mean": 0.5}

    fake_runs.WRITERS["compute_advantages"] = write
    document = fake_runs.document(home, rounds=1, iterations=num_parts)
    document["rewards"] = {"quality": document["rewards"]["preference"]}
    fake_runs.finished_run(home, "big", document)


def one_turn(home):
    """Seconds from the command to its first page, and of each page."""
    rounds = str(Path(sys.executable).with_name("rounds"))
    began = time.perf_counter()
    with subprocess.Popen([rounds, "--home", str(home), "ui", "--port", "0"], stdout=subprocess.PIPE, text=True) as ui:
        try:
            address = urlsplit(ui.stdout.readline().strip())
            token = address.query.partition("token=")[2]
            taken = {}
            for name, path in PAGES.items():
                request = urllib.request.Request(
                    f"http://{address.netloc}{path}", headers={"Authorization": f"Bearer {token}"}
                )
                asked = time.perf_counter()
                with urllib.request.urlopen(request, timeout=120) as answer:
                    answer.read()
                done = time.perf_counter()
                taken.setdefault("from the command to the first page", done - began)
                taken[name] = done - asked
            with open(f"/proc/{ui.pid}/smaps_rollup") as file:
                taken["MiB"] = sum(int(s.split()[1]) for s in file if s.startswith("Anonymous:")) / 1024
        finally:
            ui.terminate()
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        make_home(Path(directory), options.rows, options.parts)
        one_turn(directory)
        turns = [one_turn(directory) for _ in range(options.repeat)]
    memory = statistics.median(turn.pop("MiB") for turn in turns)
    lines = [
        harness.in_words(harness.machine())
        + f"; {options.rows:,} rollouts in {options.parts} iterations; {options.repeat} turns. "
        f"At the end the server has {memory:.0f} MiB of its own.",
        "",
        "| page | seconds |",
        "| --- | --- |",
    ]
    for name in turns[0]:
        seconds = [turn[name] for turn in turns]
        lines.append(f"| {name} | {statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f}) |")
    print("\n".join(lines))
    if options.readme:
        harness.write_readme("pages", "\n".join(lines))


if __name__ == "__main__":
    main()
