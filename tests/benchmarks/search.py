"""What a search over rollouts costs: on many of them in many places, and in one command.

    python tests/benchmarks/search.py [--rows N] [--parts N] [--repeat N] [--readme]

Makes data sets of rollouts as ``compute_advantages`` leaves them, on disk, and searches them in a process of its own for
each turn, whose files are in the system's cache: what an answer costs, and the memory that is the process's own at its end.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import harness  # noqa: E402

from flows.query import DataSet, Part  # noqa: E402
from tasks.store import Place, Ref  # noqa: E402
from tasks.store.data_sets import read_dataset, write_dataset  # noqa: E402
from tasks.store.schemas import advantages_schema, scored_schema  # noqa: E402

SEARCHES = {
    "the 50 best": "sort:-score",
    "a filter, sorted": "score<-1 length>20 sort:-kl_sum",
    "one prompt everywhere": "prompt_id:p0000042",
    "a word in all texts": "lamp7",
    "a pattern in all texts": r"/lamp7\b.*table/",
}
TOP = 50
SCHEMA = advantages_schema(scored_schema(["quality"], has_exact_kl=False, has_values=True), has_returns=True)
WORDS = ("the", "red", "lamp7", "is", "on", "a", "table", "beside", "blue", "door", "thank", "you")


def rollouts(number, num_rows):
    draw = np.random.default_rng(number)
    lengths = draw.integers(8, 40, num_rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    prompts = [f"p{i:07d}" for i in draw.integers(0, 5000, num_rows)]
    columns = {}
    for field in SCHEMA:
        kind = field.type
        if pa.types.is_list(kind):
            values = draw.normal(size=lengths.sum()).astype(np.float32)
            flat = values.astype(np.int32) if pa.types.is_integer(kind.value_type) else values
            columns[field.name] = pa.ListArray.from_arrays(offsets, pa.array(flat, type=kind.value_type))
        elif pa.types.is_floating(kind) or pa.types.is_integer(kind):
            columns[field.name] = pa.array(draw.normal(size=num_rows).astype(np.float32)).cast(kind, safe=False)
        else:
            columns[field.name] = pa.array([""] * num_rows)
    columns["rollout_id"] = pa.array([f"r1.i{number}.s0.{p}.{i}" for i, p in enumerate(prompts)])
    columns["prompt_id"] = pa.array(prompts)
    texts = draw.choice(WORDS, (num_rows, 12))
    columns["response"] = pa.array([" ".join(row) for row in texts])
    columns["prompt"] = pa.array([f"where is lamp {p}?" for p in prompts])
    columns["finish_reason"] = pa.array(draw.choice(["stop", "length"], num_rows))
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def data_set(root):
    parts = []
    for directory in sorted(root.iterdir()):
        ref = Ref(str(directory), "")
        part = Part(run="r", place=Place(1, int(directory.name)), stage="compute_advantages", name="rollouts", ref=ref)
        # Digests are compared once per file and change, not here.
        part.__dict__["table"] = read_dataset(directory / "rollouts")
        parts.append(part)
    return DataSet(parts=tuple(parts))


def one_turn(root, text):
    began = time.perf_counter()
    found = data_set(Path(root)).search(text, top=TOP)
    rows = found.dicts(["rollout_id", "prompt", "response", "score"])
    seconds = time.perf_counter() - began
    with open("/proc/self/smaps_rollup") as file:
        private = sum(int(line.split()[1]) for line in file if line.startswith(("Private_Dirty", "Anonymous:")))
    print(json.dumps({"seconds": seconds, "rows": len(rows), "found": found.found, "mib": private / 2048,
                      "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        one_turn(*options.turn)
        return
    with tempfile.TemporaryDirectory() as directory:
        for number in range(1, options.parts + 1):
            write_dataset(Path(directory) / str(number) / "rollouts", rollouts(number, options.rows // options.parts))
        size = sum(path.stat().st_size for path in Path(directory).rglob("*.arrow")) / 2**30
        taken = {name: [] for name in SEARCHES}
        for _ in range(options.repeat):
            for name, text in SEARCHES.items():
                taken[name].append(harness.child(__file__, "--turn", directory, text))
    lines = [
        harness.in_words(harness.machine())
        + f"; {options.rows:,} rollouts in {options.parts} data sets, {size:.2f} GiB; "
        f"{options.repeat} turns.",
        "",
        "| search | | seconds | rows that fulfil it | memory of its own |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, turns in taken.items():
        seconds = [turn["seconds"] for turn in turns]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
        memory = statistics.median(turn["mib"] for turn in turns)
        text = SEARCHES[name].replace("|", "\\|")
        lines.append(f"| {name} | `{text}` | {spread} | {turns[0]['found']:,} | {memory:.0f} MiB |")
    print("\n".join(lines))
    if options.readme:
        harness.write_readme("search", "\n".join(lines))


if __name__ == "__main__":
    main()
