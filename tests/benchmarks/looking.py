"""What the commands that look cost on a long run and on a large iteration: seconds and peak memory of the whole command.

    python tests/benchmarks/looking.py [--iterations N] [--rows N] [--repeat N] [--readme]

Makes a home with a run of many small iterations and one with a run of one large iteration. Each turn is a process of its
own, whose files are in the system's cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]

import fake_runs  # noqa: E402
import harness  # noqa: E402
import search  # noqa: E402

from tasks.store.data_sets import write_dataset  # noqa: E402

ROUNDS = str(Path(sys.executable).with_name("rounds"))
LONG, LARGE = "long", "large"
EVERYWHERE = ("--round", "all", "--iteration", "all")
COMMANDS = {
    LONG: {
        "the latest rollouts": ("rollouts",),
        "those of one iteration, sorted": ("rollouts", "--iteration", "500", "--sort", "-score"),
        "all rollouts, the best first": ("rollouts", *EVERYWHERE, "--sort", "-score"),
        "one rollout": ("show", "r1.i500.s0.aa.0"),
        "the runs": ("list",),
        "the stages": ("status",),
    },
    LARGE: {
        "the latest rollouts": ("rollouts",),
        "the best": ("rollouts", "--sort", "-score"),
        "a filter": ("rollouts", "--where", "lamp7 score<-1"),
        "one rollout": ("show", "{rollout}"),
    },
}


def make_long(home, iterations):
    document = fake_runs.document(home, rounds=1, iterations=iterations)
    fake_runs.finished_run(home, LONG, document)


def make_large(home, num_rows):
    """Returns the id of one of the rollouts."""
    rollouts = search.rollouts(1, num_rows)
    # A token of the run's tokenizer, as many as there were.
    lists = rollouts.column("response_token_ids").combine_chunks()
    tokens = pa.ListArray.from_arrays(lists.offsets, pa.array(np.full(len(lists.values), 2, np.int32)))
    at = rollouts.column_names.index("response_token_ids")
    rollouts = rollouts.set_column(at, rollouts.schema.field(at), tokens)

    def write(directory, place):
        write_dataset(directory / "rollouts", rollouts)
        return {"kl/mean": 0.5}

    before = dict(fake_runs.WRITERS)
    fake_runs.WRITERS["compute_advantages"] = write
    fake_runs.finished_run(home, LARGE, fake_runs.document(home, rounds=1, iterations=1))
    fake_runs.WRITERS.update(before)
    return rollouts.column("rollout_id")[num_rows // 2].as_py()


# In a small process, because a process begins with the peak of the one that it was made from.
TURN = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(json.dumps({"seconds": time.perf_counter() - began, "code": os.waitstatus_to_exitcode(status),
                  "cpu": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss / 1024}))
"""


def one_turn(home, arguments):
    """Wall and processor seconds of a command, and the most memory that it had, in MiB."""
    command = [sys.executable, "-S", "-c", TURN, ROUNDS, "--home", str(home), *arguments]
    turn = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    if turn["code"]:
        raise SystemExit(f"rounds {' '.join(arguments)} ended with {turn['code']}")
    return turn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        homes = {name: Path(directory) / name for name in COMMANDS}
        for home in homes.values():
            home.mkdir()
        make_long(homes[LONG], options.iterations)
        rollout = make_large(homes[LARGE], options.rows)
        turns = {
            (name, what): lambda home=homes[name], given=arguments: one_turn(
                home, [argument.format(rollout=rollout) for argument in given]
            )
            for name, commands in COMMANDS.items()
            for what, arguments in commands.items()
        }
        taken = harness.interleaved(turns, options.repeat)
    words = {LONG: f"{options.iterations:,} iterations", LARGE: f"{options.rows:,} rollouts"}
    rows = [
        (
            words[name],
            what,
            f"`rounds {' '.join(COMMANDS[name][what]).format(rollout='ROLLOUT_ID')}`",
            harness.spread([turn["seconds"] for turn in results]),
            f"{statistics.median(turn['cpu'] for turn in results):.2f}",
            f"{max(turn['mib'] for turn in results):.0f} MiB",
        )
        for (name, what), results in taken.items()
    ]
    text = f"{harness.in_words(harness.machine())}; {options.repeat} turns.\n\n" + harness.table(
        ["run", "what is asked for", "command", "seconds", "processor seconds", "peak memory"], rows
    )
    print(text)
    if options.readme:
        harness.write_readme("looking", text)


if __name__ == "__main__":
    main()
