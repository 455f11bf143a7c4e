"""The sampler and the update on an accelerator, against what its memory and its matrix units allow.

    python tests/benchmarks/gpu.py [--device cuda] [--sizes 0.5B …] [--batch B …] [--repeat N]
        [--head-dtype float32] [--out FILE.json] [--readme]

Needs torch and transformers alone: Qwen-style models with random weights, no files, no network. Each measurement has a
process of its own. The sampler's floor is the time in which the memory gives out the weights once a step, and the keys and
values read so far; the update's limit is the throughput of large bfloat16 products, measured in the same process. Model
operations are 6 a weight and token, attention over pairs included, and none for what is computed twice.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402

SIZES = {
    # vocabulary, width, layers, width of the MLP, heads, heads of keys and values
    "tiny": (1_000, 64, 2, 128, 4, 2),
    "0.5B": (151_936, 896, 24, 4_864, 14, 2),
    "1.5B": (151_936, 1_536, 28, 8_960, 12, 2),
}
PROMPT, LENGTH = 128, 128


def a_config(size):
    from transformers import Qwen2Config

    vocabulary, width, layers, inner, heads, kv_heads = SIZES[size]
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )


def finish(device):
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def timed(run, device, repeat):
    """Median seconds after one run that does not count."""
    took = []
    for _ in range(repeat + 1):
        finish(device)
        began = time.perf_counter()
        run()
        finish(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def bandwidth(device):
    """Bytes a second that the memory gives out."""
    import torch

    x = torch.ones(2**30 if device == "cuda" else 2**26, device=device)
    return x.numel() * 4 / timed(lambda: x.sum(), device, 5)


def throughput(device):
    """Operations a second of large bfloat16 products."""
    import torch

    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / timed(lambda: a @ b, device, 5)


def peak_memory(device):
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else harness.peak_memory()


def sampler(size, device, batch, repeat, head_dtype):
    import torch
    from transformers import AutoModelForCausalLM

    from ppo_core import InPrecision, Ragged, SamplingConfig, sample

    config = a_config(size)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config).eval()
    prompts = Ragged.from_rows(torch.randint(config.vocab_size, (batch, PROMPT)), torch.int64)
    settings = SamplingConfig(max_new_tokens=LENGTH)
    policy = InPrecision(model, torch.bfloat16, getattr(torch, head_dtype))
    seconds = timed(lambda: sample(policy, prompts, sampling=settings, seeds=list(range(batch))), device, repeat)
    weights = 2 * sum(p.numel() for p in model.parameters())
    head_size = config.hidden_size // config.num_attention_heads
    cache_of_token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    cache = batch * cache_of_token * sum(PROMPT + t for t in range(LENGTH))
    floor = (LENGTH * weights + cache) / bandwidth(device)
    return {"seconds": seconds, "tokens": batch * LENGTH, "floor": floor, "peak": peak_memory(device)}


def update(size, device, batch, repeat, head_dtype):
    import torch
    from torch import nn
    from transformers import AutoModel, AutoModelForCausalLM

    from ppo_core import HeadCritic, InPrecision, Optimizers, PPOConfig, Ragged, RolloutBatch, ppo_update

    config = a_config(size)
    with torch.device(device):
        policy = AutoModelForCausalLM.from_config(config).eval()
        body, head = AutoModel.from_config(config).eval(), nn.Linear(config.hidden_size, 1, bias=False)
    critic = HeadCritic(body, head)
    tokens = batch * LENGTH
    rollouts = RolloutBatch(
        prompts=Ragged.from_rows(torch.randint(config.vocab_size, (batch, PROMPT)), torch.int64),
        responses=Ragged.from_rows(torch.randint(config.vocab_size, (batch, LENGTH)), torch.int64),
        stopped=torch.ones(batch, dtype=torch.bool),
        token_columns={
            "logprobs": torch.full((tokens,), -12.0),
            "values": torch.zeros(tokens),
            "advantages": torch.randn(tokens),
            "returns": torch.randn(tokens),
        },
    )
    optimizers = Optimizers(
        policy=torch.optim.AdamW(policy.parameters(), 1e-6, fused=True),
        critic=torch.optim.AdamW([*body.parameters(), *head.parameters()], 1e-6, fused=True),
    )
    models = InPrecision(policy, torch.bfloat16, getattr(torch, head_dtype)), InPrecision(critic, torch.bfloat16)
    settings = PPOConfig(epochs=1, num_minibatches=4)
    seconds = timed(lambda: ppo_update(*models, optimizers, rollouts, settings, seed=0), device, repeat)
    layers = sum(p.numel() for name, p in body.named_parameters() if name.startswith("layers"))
    pairs = batch * (PROMPT + LENGTH) ** 2 / 2
    of_bodies = 2 * (
        6 * layers * batch * (PROMPT + LENGTH) + 12 * config.num_hidden_layers * config.hidden_size * pairs
    )
    operations = of_bodies + 6 * config.vocab_size * config.hidden_size * tokens
    return {
        "seconds": seconds,
        "tokens": batch * (PROMPT + LENGTH),
        "utilisation": operations / seconds / throughput(device),
        "peak": peak_memory(device),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="*", default=["0.5B", "1.5B"], choices=SIZES)
    parser.add_argument("--batch", nargs="*", type=int, default=[32, 256])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--head-dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--part", choices=["sampler", "update"])
    given = parser.parse_args()
    if given.part:
        measure = {"sampler": sampler, "update": update}[given.part]
        print(json.dumps(measure(given.sizes[0], given.device, given.batch[0], given.repeat, given.head_dtype)))
        return
    rows, results = [], []
    for size in given.sizes:
        for batch in given.batch:
            place = ("--device", given.device, "--sizes", size, "--batch", batch, "--repeat", given.repeat)
            place += ("--head-dtype", given.head_dtype)
            found = {part: harness.child(Path(__file__), "--part", part, *place) for part in ("sampler", "update")}
            drawn, trained = found["sampler"], found["update"]
            rows.append(
                [
                    size,
                    batch,
                    f"{drawn['tokens'] / drawn['seconds']:,.0f}",
                    f"{drawn['floor'] / drawn['seconds']:.0%}",
                    f"{drawn['peak'] / 2**30:.1f}",
                    f"{trained['tokens'] / trained['seconds']:,.0f}",
                    f"{trained['utilisation']:.0%}",
                    f"{trained['peak'] / 2**30:.1f}",
                ]
            )
            results.append({"size": size, "batch": batch, **found})
            print(" | ".join(map(str, rows[-1])), flush=True)
    titles = [
        "parameters",
        "responses",
        "sampled tokens/s",
        "of the floor",
        "GiB",
        "trained tokens/s",
        "utilisation",
        "GiB",
    ]
    text = (
        f"{harness.in_words(harness.machine())}; prompts and responses of {PROMPT} tokens, the head in "
        f"{given.head_dtype}, medians of {given.repeat}.\n\n"
        f"{harness.table(titles, rows)}"
    )
    print(text)
    if given.out:
        given.out.write_text(json.dumps({"machine": harness.machine(), "results": results}, indent=1))
    if given.readme:
        harness.write_readme("gpu", text)


if __name__ == "__main__":
    main()
