"""How the cost of an update grows with rows, with response length and with the vocabulary.

    python tests/benchmarks/scaling.py [--repeat N] [--readme]

One epoch of one minibatch of policy and critic of about ten million parameters, unpadded; a cost that grows linearly keeps
its microseconds a token. The last column is the share of the machine's own matrix throughput that the update reaches,
counting six operations for each weight and token.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402

BASE = {"rows": 32, "length": 64, "vocabulary": 2048}
CASES = [
    {},
    *({"rows": rows} for rows in (8, 128, 512)),
    *({"length": length} for length in (16, 256, 512)),
    *({"vocabulary": vocabulary} for vocabulary in (8192, 50_257, 151_936)),
]
PROMPT = 16


def throughput():
    """Floating-point operations a second of a large matrix product."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    took = []
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(took)


def measure(rows, length, vocabulary, repeat):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    from ppo_core import Optimizers, PPOConfig, Ragged, RolloutBatch, ppo_update
    from tasks.models.scalar import ScalarModel
    from tasks.models.training import adamw

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(config).eval()
    critic = ScalarModel(AutoModelForSequenceClassification.from_config(config).eval())
    tokens = rows * length
    batch = RolloutBatch(
        prompts=Ragged.from_rows(torch.randint(vocabulary, (rows, PROMPT)), torch.int64),
        responses=Ragged.from_rows(torch.randint(vocabulary, (rows, length)), torch.int64),
        stopped=torch.ones(rows, dtype=torch.bool),
        token_columns={
            "logprobs": torch.full((tokens,), -7.0),
            "values": torch.zeros(tokens),
            "advantages": torch.randn(tokens),
            "returns": torch.randn(tokens),
        },
    )
    policy_optimizer, critic_optimizer = (adamw([{"params": x.parameters(), "lr": 1e-6}]) for x in (policy, critic))
    optimizers = Optimizers(policy=policy_optimizer, critic=critic_optimizer)
    took = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        ppo_update(policy, critic, optimizers, batch, PPOConfig(epochs=1, num_minibatches=1), seed=0)
        took.append(time.perf_counter() - began)
    body = sum(p.numel() for p in critic.model.model.layers.parameters())
    head = vocabulary * 384
    operations = 6 * (rows * (PROMPT + length) * 2 * body + tokens * head)
    return statistics.median(took[1:]), operations


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    rows = []
    for changed in CASES:
        case = {**BASE, **changed}
        peak = throughput()
        seconds, operations = measure(**case, repeat=given.repeat)
        tokens = case["rows"] * (PROMPT + case["length"])
        rows.append(
            [
                *(f"{case[name]:,}" for name in BASE),
                f"{seconds:.2f} s",
                f"{1e6 * seconds / tokens:,.0f}",
                f"{operations / seconds / peak:.0%}",
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    titles = ["responses", "tokens each", "vocabulary", "update", "µs a token", "of matrix throughput"]
    text = f"{harness.in_words(harness.machine())}; medians of {given.repeat}.\n\n{harness.table(titles, rows)}"
    print(text)
    if given.readme:
        harness.write_readme("scaling", text)


if __name__ == "__main__":
    main()
