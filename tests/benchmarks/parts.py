"""What of a model that several processes train together each of them has in memory: all of it, or a part.

    python tests/benchmarks/parts.py [--case 60M] [--repeat N] [--readme]

Each turn is ``rounds run`` with its server and one iteration. Memory is the peak of each process that trains, from its
begin to its end, reading and writing models included, less the peak of such a process in a run of a model of a million
parameters, which is what Python, torch and transformers take. Seconds are those of the stage, and weights those of policy
and critic. The digests of all outputs must be those of one process, whatever the layout: there are as many shares in each.
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402
from overhead import configuration  # noqa: E402
from pool import digests_of, manifests_of  # noqa: E402
from ppo_iteration import CASES, make_case  # noqa: E402

SHARES = 4
LAYOUTS = {"1": (1, False), "2": (2, False), "2, in parts": (2, True), "4, in parts": (4, True)}
WHOLE = "2"
SMALL = "1M"
POLL_S = 0.02
MIB = 2**20


class Watch(threading.Thread):
    """Sees the peak of every process that trains together with others, by its number."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peaks = {}
        self._ended = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join()

    def run(self):
        while not self._ended.wait(POLL_S):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    if b"tasks.worker.rank" not in words:
                        continue
                    rank = int(words[words.index(b"tasks.worker.rank") + 2])
                    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                    # It never falls, so that the last one seen is that of the whole life. A zombie has none.
                    self.peaks[rank] = int(lines["VmHWM"].split()[0]) * 1024
                except (OSError, KeyError):
                    continue


def update(directory, case, processes, sharded):
    """Seconds of an update, and the peak of the first process and the highest one of the others."""
    config = configuration(directory, case, 1)
    config["ppo"] |= {"epochs": 1}
    config["execution"] |= {"train_processes": processes, "sharded": sharded, "shares": SHARES}
    # About a row, so that each process has some of each minibatch.
    config["execution"]["micro_batch_tokens"] = 128
    with Watch() as watch:
        manifests = manifests_of(config, workers=1, threads=None)
    (own,) = (manifest for manifest in manifests.values() if manifest.stage == "update_policy")
    others = [peak for rank, peak in watch.peaks.items() if rank > 0]
    return {
        "wall": own.seconds,
        "first": watch.peaks.get(0, 0),
        "others": max(others, default=0),
        "digests": digests_of(manifests),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="60M")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for case in (SMALL, given.case):
            make_case(directory / case, case, ragged=True)
        small = update(directory / SMALL, SMALL, 2, False)
        own = directory / given.case
        systems = {layout: lambda layout=layout: update(own, given.case, *LAYOUTS[layout]) for layout in LAYOUTS}
        found = harness.interleaved(systems, given.repeat)
        weights = sum((own / part / "model.safetensors").stat().st_size for part in ("policy", "critic"))
    rows = []
    for layout, (processes, sharded) in LAYOUTS.items():
        turns = found[layout]
        seconds = f"{harness.spread([turn['wall'] for turn in turns], 1)} s"
        if processes == 1:
            rows.append([layout, seconds, "", "", ""])
            continue
        for turn in turns:
            turn["first"] -= small["first"]
            turn["others"] -= small["others"]
        peaks = [f"{harness.median(turns, key) / MIB:,.0f} MiB" for key in ("first", "others")]
        share = [a["others"] / b["others"] for a, b in zip(turns, found[WHOLE], strict=True)]
        rows.append([layout, seconds, *peaks, harness.spread(share) if sharded else ""])
    text = "\n\n".join(
        [
            f"{harness.in_words(harness.machine())}; {given.repeat} turns. Weights of policy and critic: "
            f"{weights / MIB:,.0f} MiB. What a process has beside models: {small['others'] / MIB:,.0f} MiB.",
            harness.table(["processes", "update", "first process", "others", "of a whole one's"], rows),
        ]
    )
    print(text)
    for layout, turns in found.items():
        if any(turn["digests"] != found["1"][0]["digests"] for turn in turns):
            raise SystemExit(f"the digests of one process and of {layout} are not the same")
    if given.readme:
        harness.write_readme("parts", text)


if __name__ == "__main__":
    main()
