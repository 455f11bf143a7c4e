"""What a second worker gains on a processor: the rollouts and scores of an iteration by one worker and by two.

    python tests/benchmarks/pool.py [--case 15M] [--shards N] [--iterations N] [--repeat N] [--readme]

Each turn is ``rounds run`` with its server, and is measured by its manifests: from the begin of an iteration's first shard
to the commit of its last score; the first iteration, in which models are read, is left out. Once with as many threads as
there are cores for each worker, as it has by itself, and once with one thread each, so that two workers do not contend for
the cores. The digests of all outputs must be the same for both numbers of workers.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402
from overhead import configuration  # noqa: E402
from ppo_iteration import CASES, make_case  # noqa: E402

WORKERS = (1, 2)
COMMAND = "import sys; from flows.cli.main import main; sys.argv[0] = 'rounds'; main()"


def turn(directory, case, *, workers, threads, shards, iterations):
    """Seconds of rollouts and scores of an iteration, and the digest of every output."""
    import yaml

    from tasks.store.store import Store

    config = configuration(directory, case, iterations)
    # One pass: the update is not what is measured.
    config["ppo"] = {"epochs": 1, "num_minibatches": 1}
    config["rollouts"]["shards"] = shards
    config["execution"]["workers"] = workers
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
    environment |= {"PYTHONPATH": str(harness.ROOT), **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        for arguments in (["run", str(path)], ["down"]):
            command = [sys.executable, "-P", "-c", COMMAND, "--home", home, *arguments]
            subprocess.run(command, check=True, capture_output=True, env=environment)
        store = Store(Path(home) / "runs/config")
        manifests = {str(path.relative_to(store.root)): manifest for path, manifest in store.manifests()}
    begun, ended = {}, {}
    for manifest in manifests.values():
        at = manifest.place.iteration
        if manifest.stage == "generate_rollouts":
            begun.setdefault(at, []).append(manifest.committed_at - manifest.seconds)
        if manifest.stage == "score_rollouts":
            ended.setdefault(at, []).append(manifest.committed_at)
    seconds = [max(ended[at]) - min(begun[at]) for at in range(2, iterations + 1)]
    digests = {name: manifest.digest for name, manifest in manifests.items()}
    return {"wall": sum(seconds) / len(seconds), "digests": digests}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="15M")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_case(directory, given.case, ragged=True)
        sizes = {"shards": given.shards, "iterations": given.iterations}
        systems = {
            (workers, threads): lambda workers=workers, threads=threads: turn(
                directory, given.case, workers=workers, threads=threads, **sizes
            )
            for threads in (None, 1)
            for workers in WORKERS
        }
        found = harness.interleaved(systems, given.repeat)
    rows = []
    for threads in (None, 1):
        one, two = (found[(workers, threads)] for workers in WORKERS)
        if any(turns["digests"] != one[0]["digests"] for turns in (*one, *two)):
            raise SystemExit("the digests of one worker and of two are not the same")
        walls = [f"{harness.spread([own['wall'] for own in turns])} s" for turns in (one, two)]
        gain = f"{harness.spread(harness.ratios(two, one, 'wall'))}×"
        rows.append([given.case, "one a core" if threads is None else threads, *walls, gain, len(one[0]["digests"])])
    titles = ["case", "threads of a worker", "1 worker", "2 workers", "faster", "outputs with the same digests"]
    text = f"{harness.in_words(harness.machine())}; {given.repeat} turns.\n\n{harness.table(titles, rows)}"
    print(text)
    if given.readme:
        harness.write_readme("pool", text)


if __name__ == "__main__":
    main()
