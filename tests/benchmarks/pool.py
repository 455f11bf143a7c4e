"""What a second worker gains on a processor: rollouts and scores of an iteration by one worker and by two, and a whole
iteration where the second samples while the first updates.

    python tests/benchmarks/pool.py [--case 15M] [--shards N] [--iterations N] [--repeat N] [--readme]

Each turn is ``rounds run`` with its server, and is measured by its manifests. Shards: from the begin of an iteration's first
one to the commit of its last score; the first iteration, in which models are read, is left out. Lag: from update to update,
from the second one to the last but one, since a lag's first iterations have nothing to overlap with, and its last nothing to
sample. Once with as many threads as there are cores for each worker, as it has by itself, and once with one thread each, so
that two workers do not contend for the cores. The digests of all outputs must be the same for both numbers of workers.
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
THREADS = {None: "one a core", 1: "1"}
COMMAND = "import sys; from flows.cli.main import main; sys.argv[0] = 'rounds'; main()"


def manifests_of(config, *, workers, threads):
    """The manifests of a run's outputs by their place."""
    import yaml

    from tasks.store.store import Store

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
        return {str(path.relative_to(store.root)): manifest for path, manifest in store.manifests()}


def digests_of(manifests):
    return {name: manifest.digest for name, manifest in manifests.items()}


def shards(directory, case, num_shards, iterations, **machine):
    """Seconds of rollouts and scores of an iteration."""
    config = configuration(directory, case, iterations)
    # One pass: the update is not what is measured.
    config["ppo"] = {"epochs": 1, "num_minibatches": 1}
    config["rollouts"]["shards"] = num_shards
    manifests = manifests_of(config, **machine)
    begun, ended = {}, {}
    for manifest in manifests.values():
        at = manifest.place.iteration
        if manifest.stage == "generate_rollouts":
            begun.setdefault(at, []).append(manifest.committed_at - manifest.seconds)
        if manifest.stage == "score_rollouts":
            ended.setdefault(at, []).append(manifest.committed_at)
    seconds = [max(ended[at]) - min(begun[at]) for at in range(2, iterations + 1)]
    return {"wall": sum(seconds) / len(seconds), "digests": digests_of(manifests)}


def lagging(directory, case, lag, iterations, **machine):
    """Seconds from an update to the next one."""
    config = configuration(directory, case, iterations)
    config["rollouts"]["lag"] = lag
    manifests = manifests_of(config, **machine)
    updates = sorted(own.committed_at for own in manifests.values() if own.stage == "update_policy")
    return {"wall": (updates[-2] - updates[1]) / (iterations - 3), "digests": digests_of(manifests)}


def row(found, one, two, first):
    """How much faster two workers are than one, or a lag than none."""
    walls = [f"{harness.spread([own['wall'] for own in found[name]])} s" for name in (one, two)]
    gain = f"{harness.spread(harness.ratios(found[two], found[one], 'wall'))}×"
    return [*first, *walls, gain]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="15M")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    own, iterations = given.case, given.iterations
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_case(directory, own, ragged=True)
        machines = {
            (workers, threads): {"workers": workers, "threads": threads} for threads in THREADS for workers in WORKERS
        }
        systems = {
            ("shards", *machine): lambda how=how: shards(directory, own, given.shards, 3, **how)
            for machine, how in machines.items()
        } | {
            (f"lag {lag}", *machine): lambda lag=lag, how=machines[machine]: lagging(
                directory, own, lag, iterations, **how
            )
            for lag, machine in ((0, (1, None)), (1, (1, None)), (1, (2, 1)))
        }
        found = harness.interleaved(systems, given.repeat)
    for one, two in ((("shards", 1, None), ("shards", 2, None)), (("shards", 1, 1), ("shards", 2, 1))):
        if any(turn["digests"] != found[one][0]["digests"] for turn in (*found[one], *found[two])):
            raise SystemExit("the digests of one worker and of two are not the same")
    of_shards = [
        row(found, ("shards", 1, threads), ("shards", 2, threads), [own, in_words])
        for threads, in_words in THREADS.items()
    ]
    of_lag = [
        row(found, ("lag 0", 1, None), ("lag 1", workers, threads), [own, workers, THREADS[threads]])
        for workers, threads in ((1, None), (2, 1))
    ]
    text = "\n\n".join(
        [
            f"{harness.in_words(harness.machine())}; {given.repeat} turns.",
            harness.table(["case", "threads of a worker", "1 worker", "2 workers", "faster"], of_shards),
            harness.table(
                ["case", "workers at lag 1", "threads of each", "lag 0, 1 worker", "lag 1", "faster"], of_lag
            ),
        ]
    )
    print(text)
    if given.readme:
        harness.write_readme("pool", text)


if __name__ == "__main__":
    main()
