"""Where the time of an update goes, and how near its matrix products come to what this machine does in large ones.

    python tests/benchmarks/shares.py [--cases 15M …] [--numerics float32 …] [--readme]

One epoch of four minibatches over rows like those of ``ppo_iteration``'s ragged work, under PyTorch's profiler: shares of
the time inside operators. Positions are what a model computes for each token that there is: the rest is padding.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402
from ppo_iteration import CASES  # noqa: E402

PROMPT = (8, 32)
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "mkldnn", "linear"),
    "attention": ("scaled_dot_product",),
    "optimizer, norms": ("fused_adamw", "vector_norm"),
    "zeros": ("fill_", "zero_"),
}


def peak(dtype):
    """Operations a second of large products."""
    import torch

    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    took = []
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(took)


def measure(case, numerics):
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    from ppo_core import InPrecision, Optimizers, PPOConfig, Ragged, RolloutBatch, ppo_update
    from tasks.models.scalar import ScalarModel
    from tasks.models.training import adamw

    hidden, inner, layers, heads, vocabulary, rows, longest = CASES[case]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=256, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    policy = AutoModelForCausalLM.from_config(config).eval()
    critic = ScalarModel(AutoModelForSequenceClassification.from_config(config).eval())
    prompt_lengths = torch.randint(PROMPT[0], PROMPT[1] + 1, (rows,)).tolist()
    lengths = torch.randint(1, longest + 1, (rows,)).tolist()
    tokens = sum(lengths)
    batch = RolloutBatch(
        prompts=Ragged.from_rows([torch.randint(vocabulary, (n,)) for n in prompt_lengths], torch.int64),
        responses=Ragged.from_rows([torch.randint(vocabulary, (n,)) for n in lengths], torch.int64),
        stopped=torch.ones(rows, dtype=torch.bool),
        token_columns={
            "logprobs": torch.full((tokens,), -7.0),
            "values": torch.zeros(tokens),
            "advantages": torch.randn(tokens),
            "returns": torch.randn(tokens),
        },
    )
    dtype = getattr(torch, numerics)
    first, second = (adamw([{"params": x.parameters(), "lr": 1e-6}]) for x in (policy, critic))
    models = InPrecision(policy, dtype), InPrecision(critic, dtype)

    def run():
        settings = PPOConfig(epochs=1, num_minibatches=4)
        ppo_update(*models, Optimizers(policy=first, critic=second), batch, settings, seed=0)

    run()
    computed = []
    policy.get_input_embeddings().register_forward_hook(lambda _, given, __: computed.append(given[0].numel()))
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as recorded:
        run()
    events = recorded.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = {}
    for kind, names in KINDS.items():
        own = [e for e in events if any(name in e.key for name in names)]
        shares[kind] = sum(e.self_cpu_time_total for e in own)
    products = [e for e in events if any(name in e.key for name in KINDS["matrix products"])]
    operations = sum(e.flops for e in products if e.key in ("aten::mm", "aten::addmm", "aten::bmm"))
    rate = operations / (shares["matrix products"] / 1e6)
    rest = total - sum(shares.values())
    shares = [*(x / total for x in shares.values()), rest / total]
    real = tokens + sum(prompt_lengths)
    padded = rows * (max(prompt_lengths) + longest)
    return shares, rate / peak(dtype), sum(computed) / real, padded / real


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=["15M", "50k", "150k"])
    parser.add_argument("--numerics", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    rows = []
    for case in given.cases:
        for numerics in given.numerics:
            shares, rate, own, padded = measure(case, numerics)
            rows.append([case, numerics, *(f"{x:.0%}" for x in shares), f"{rate:.0%}", f"{own:.2f} / {padded:.2f}"])
            print(" | ".join(rows[-1]), flush=True)
    titles = ["case", "numerics", *KINDS, "the rest", "products, of large ones' throughput"]
    titles.append("positions a token, here / in a padded grid")
    text = f"{harness.in_words(harness.machine())}.\n\n{harness.table(titles, rows)}"
    print(text)
    if given.readme:
        harness.write_readme("shares", text)


if __name__ == "__main__":
    main()
