"""Generalised advantage estimation over a million tokens, and the whole way from an Arrow table to one.

python tests/benchmarks/gae.py [--readme]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402

SHAPES = ((1024, 1024), (4096, 256), (16_384, 64))


def timed(function, repeat=5):
    took = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    import pyarrow as pa
    import torch

    from ppo_core import gae, masked_whiten
    from tasks.store.schemas import ragged_column

    rows = []
    for num_rows, length in SHAPES:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, length + 1, (num_rows,), generator=generator)
        mask = torch.arange(length) < lengths[:, None]
        rewards, values = (torch.where(mask, torch.randn(mask.shape, generator=generator), 0.0) for _ in "ab")
        lists = pa.array(
            [row[:n] for row, n in zip(rewards.tolist(), lengths.tolist(), strict=True)], pa.list_(pa.float32())
        )
        column = pa.table({"rewards": lists})

        def estimate(rewards=rewards, values=values, mask=mask):
            advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=0.95)
            return masked_whiten(advantages, mask)

        def read(column=column):
            return ragged_column(column, "rewards", torch.float32).padded(fill=0.0)

        rows.append(
            [f"{num_rows:,} × {length:,}", f"{int(mask.sum()):,}", f"{timed(estimate):.3f} s", f"{timed(read):.3f} s"]
        )
    titles = [
        "responses × longest",
        "tokens",
        "advantages, returns and whitening",
        "a column from Arrow to a padded tensor",
    ]
    text = f"{harness.in_words(harness.machine())}; medians of 5.\n\n{harness.table(titles, rows)}"
    print(text)
    if given.readme:
        harness.write_readme("gae", text)


if __name__ == "__main__":
    main()
