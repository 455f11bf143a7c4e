"""Log-probabilities and entropies from hidden states in chunks against the plain way over all logits, with gradients.

    python tests/benchmarks/logprobs.py [--repeat N] [--out FILE.json] [--readme]

Both run by turns, each in a process of its own: 2,048 tokens of width 384, forward and backward. Memory is the peak above
the process with its inputs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402

TOKENS, WIDTH = 2048, 384
VOCABULARIES = (512, 2048, 8192, 50_257, 151_936)


def measure(system, vocabulary):
    import torch

    from ppo_core import entropy, gather_logprobs, linear_logprobs

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_()
    weight = (torch.randn(vocabulary, WIDTH, generator=generator) / WIDTH**0.5).requires_grad_()
    ids = torch.randint(vocabulary, (TOKENS,), generator=generator)

    def once():
        hidden.grad = weight.grad = None
        if system == "chunked":
            logprobs, entropies = linear_logprobs(hidden, weight, ids, with_entropy=True, temperature=0.9)
        else:
            logits = hidden @ weight.T / 0.9
            logprobs, entropies = gather_logprobs(logits, ids), entropy(logits)
        (logprobs.sum() + 0.01 * entropies.sum()).backward()
        return float(logprobs.detach().mean()), float(hidden.grad.norm()), float(weight.grad.norm())

    base = harness.memory()
    once()
    took = []
    for _ in range(3):
        began = time.perf_counter()
        numbers = once()
        took.append(time.perf_counter() - began)
    return {"wall": min(took), "peak": harness.peak_memory() - base, "numbers": numbers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--system")
    parser.add_argument("--vocabulary", type=int)
    given = parser.parse_args()
    if given.system:
        print(json.dumps(measure(given.system, given.vocabulary)))
        return
    rows, results = [], []
    for vocabulary in VOCABULARIES:

        def run(system, vocabulary=vocabulary):
            return lambda: harness.child(Path(__file__), "--system", system, "--vocabulary", vocabulary)

        found = harness.interleaved({"chunked": run("chunked"), "plain": run("plain")}, given.repeat)
        worst = max(
            abs(a - b) / max(1.0, abs(b))
            for a, b in zip(found["chunked"][0]["numbers"], found["plain"][0]["numbers"], strict=True)
        )
        of_memory = [a["peak"] / b["peak"] for a, b in zip(found["chunked"], found["plain"], strict=True)]
        peaks = [harness.median(found[name], "peak") / 2**20 for name in ("chunked", "plain")]
        rows.append(
            [
                f"{vocabulary:,}",
                f"{harness.median(found['chunked'], 'wall'):.3f} s",
                f"{harness.median(found['plain'], 'wall'):.3f} s",
                f"{harness.spread(harness.ratios(found['chunked'], found['plain'], 'wall'))}×",
                f"{peaks[0]:,.0f} / {peaks[1]:,.0f} MiB",
                f"{harness.spread(of_memory)}×",
                f"{worst:.0e}",
            ]
        )
        results.append({"vocabulary": vocabulary, **found})
        print(" | ".join(rows[-1]), flush=True)
    titles = [
        "vocabulary",
        "chunked",
        "plain",
        "faster",
        "peak memory",
        "of the plain way's",
        "largest relative difference",
    ]
    text = f"{harness.in_words(harness.machine())}; {given.repeat} turns.\n\n{harness.table(titles, rows)}"
    print(text)
    if given.out:
        given.out.write_text(json.dumps({"machine": harness.machine(), "results": results}, indent=1))
    if given.readme:
        harness.write_readme("logprobs", text)


if __name__ == "__main__":
    main()
