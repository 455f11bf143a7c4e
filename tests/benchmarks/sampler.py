"""Our sampler against the library's ``generate``, and against the time that reading the weights once a step takes.

    python tests/benchmarks/sampler.py [--cases 15M …] [--batch B …] [--repeat N] [--out FILE.json] [--readme]

Same weights, prompts of 8 to 32 tokens, responses of one length drawn at temperature 1, so that no row ends early; ours
stores each token's log-probability too. "4 samples" has a quarter as many prompts, each answered four times.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402
from ppo_iteration import CASES, make_case  # noqa: E402

LENGTH = 64


def bandwidth():
    """Bytes a second that this machine reads from memory."""
    import torch

    x = torch.ones(2**27)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        x.sum()
        took.append(time.perf_counter() - began)
    return x.numel() * 4 / min(took)


def measure(system, directory, rows, samples):
    import torch
    from transformers import AutoModelForCausalLM

    from ppo_core import Ragged, SamplingConfig, sample

    model = AutoModelForCausalLM.from_pretrained(directory / "policy", dtype=torch.float32).eval()
    pairs = json.loads((directory / "forced.json").read_text())
    texts = [pairs[i % len(pairs)]["prompt"] for i in range(rows // samples)]
    prompts = Ragged.from_rows(texts, torch.int64)

    def ours():
        settings = SamplingConfig(max_new_tokens=LENGTH)
        sample(model, prompts, sampling=settings, seeds=list(range(rows)), samples_per_prompt=samples)

    def library():
        model.generate(
            input_ids=prompts.padded(fill=0, side="left"),
            attention_mask=prompts.mask(side="left").long(),
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH,
            do_sample=True,
            top_k=0,
            num_return_sequences=samples,
        )

    run = ours if system == "ours" else library
    with torch.inference_mode():
        run()
        began = time.perf_counter()
        run()
    wall = time.perf_counter() - began
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"wall": wall, "tokens": rows * LENGTH, "floor": LENGTH * size / bandwidth(), "peak": harness.peak_memory()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=["1M", "15M", "60M", "50k"])
    parser.add_argument("--batch", nargs="*", type=int, default=[8, 64])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--system")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--samples", type=int)
    given = parser.parse_args()
    if given.system:
        print(json.dumps(measure(given.system, given.directory, given.rows, given.samples)))
        return
    assert set(given.cases) <= set(CASES)
    rows, results = [], []
    for case in given.cases:
        with tempfile.TemporaryDirectory() as directory:
            make_case(Path(directory), case, ragged=True)
            for batch, samples in [(batch, samples) for batch in given.batch for samples in (1, 4)]:
                place = ("--directory", directory, "--rows", batch, "--samples", samples)

                def run(system, place=place):
                    return lambda: harness.child(Path(__file__), "--system", system, *place)

                found = harness.interleaved({"ours": run("ours"), "generate": run("generate")}, given.repeat)
                tokens = found["ours"][0]["tokens"]
                rows.append(
                    [
                        case,
                        f"{batch}, {samples} sample{'s' * (samples > 1)}",
                        f"{tokens / harness.median(found['ours'], 'wall'):,.0f}",
                        f"{tokens / harness.median(found['generate'], 'wall'):,.0f}",
                        f"{harness.spread(harness.ratios(found['ours'], found['generate'], 'wall'))}×",
                        f"{harness.median(found['ours'], 'floor') / harness.median(found['ours'], 'wall'):.0%}",
                    ]
                )
                results.append({"case": case, "batch": batch, "samples": samples, **found})
                print(" | ".join(rows[-1]), flush=True)
    titles = ["case", "responses", "ours, tokens/s", "generate, tokens/s", "faster", "weights' reading time of ours"]
    text = f"{harness.in_words(harness.machine())}; {given.repeat} turns.\n\n{harness.table(titles, rows)}"
    print(text)
    if given.out:
        given.out.write_text(json.dumps({"machine": harness.machine(), "results": results}, indent=1))
    if given.readme:
        harness.write_readme("sampler", text)


if __name__ == "__main__":
    main()
