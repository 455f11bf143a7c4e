"""What is learned from rollouts that lag behind: presets at several lags, the same seeds for each.

    python tests/benchmarks/lag.py [--preset NAME …] [--seeds N …] [--lags N …] [--set A.B=VALUE …] [--home DIR] [--readme]

Each seed is one run directory, in which the lags are attempts: what comes before rollouts that differ is made once.
Seeds are turns, and lags take turns within each, every attempt in a process of its own with one thread. With ``--home`` the
runs stay, and the same command goes on where it was interrupted. A quickstart takes three minutes of a core, stories five.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402

# Of the last round, and how much of each is shown.
OF_EVALUATION = {
    "evaluation/score_gain": ("score gain, sd", 2),
    "evaluation/true_quality_gain": ("held-out gain, sd", 2),
    "evaluation/kl": ("KL, nats", 2),
}
# Means over iterations, of those whose rollouts lag.
OF_UPDATES = {
    "update/sampling_approx_kl": ("KL(sampler ‖ π_old), nats a token", 4),
    "update/importance_mean": ("weight", 3),
    "update/importance_capped": ("capped", 4),
}


def attempt(preset, home, seed, lag, settings):
    """One run in this process; what it came to."""
    import torch

    sys.path.append(str(harness.ROOT / "tests/flows"))
    from direct_run import run_directly

    from flows.config.reading import load_config
    from flows.plan.plan import plan_of

    torch.set_num_threads(1)
    config = load_config(preset, [*settings, f"seed={seed}", f"rollouts.lag={lag}"])
    plan = plan_of(run_directly(home, f"{Path(preset).stem}-{seed}", config))
    evaluation = plan.select("evaluate_policy")[-1].metrics
    found = {name: evaluation[name] for name in OF_EVALUATION if name in evaluation}
    updates = [planned.metrics for planned in plan.select("update_policy")]
    for name in OF_UPDATES:
        values = [metrics[name] for metrics in updates if name in metrics]
        found |= {name: statistics.fmean(values)} if values else {}
    return found


def in_words(values, digits):
    """Mean over seeds ± its standard error."""
    if not values:
        return ""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return f"{statistics.fmean(values):.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def table(results, lags):
    """A line for each lag; of what an evaluation tells also the difference from the first lag, seed by seed."""
    columns = {
        name: shown
        for name, shown in {**OF_EVALUATION, **OF_UPDATES}.items()
        if any(name in r for r in results[lags[-1]])
    }
    heads = []
    for name, (title, _) in columns.items():
        heads += [title, f"… less that at lag {lags[0]}"] if name in OF_EVALUATION else [title]
    rows = []
    for lag in lags:
        row = [str(lag)]
        for name, (_, digits) in columns.items():
            row.append(in_words([result[name] for result in results[lag] if name in result], digits))
            if name in OF_EVALUATION:
                pairs = zip(results[lag], results[lags[0]], strict=True)
                row.append(
                    "" if lag == lags[0] else in_words([these[name] - those[name] for these, those in pairs], digits)
                )
        rows.append(row)
    return harness.table(["lag", *heads], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["quickstart"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--lags", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--attempt", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attempt:
        preset, seed, lag = given.attempt
        print(json.dumps(attempt(preset, given.home, int(seed), int(lag), given.set)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        home = given.home or Path(temporary)
        settings = [part for setting in given.set for part in ("--set", setting)]
        told = []
        for preset in given.preset:
            results = {lag: [] for lag in given.lags}
            for seed in given.seeds:
                for lag in given.lags:
                    arguments = ("--home", home, *settings, "--attempt", preset, seed, lag)
                    results[lag].append(harness.child(__file__, *arguments, env={"OMP_NUM_THREADS": "1"}))
                    print(f"{preset}, seed {seed}, lag {lag}: {results[lag][-1]}", file=sys.stderr, flush=True)
            told.append(f"`{preset}`, seeds {', '.join(map(str, given.seeds))}:\n\n{table(results, given.lags)}")
    text = "\n\n".join([f"{harness.in_words(harness.machine())}.", *told])
    print(text)
    if given.readme:
        harness.write_readme("lag", text)


if __name__ == "__main__":
    main()
