"""One PPO iteration, ours against TRL's ``PPOTrainer``: same weights, prompts, forced responses and hyper-parameters.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/ppo_iteration.py [CASE[:WORK[:OURS/TRL]] …] [--repeat N] [--out FILE.json] [--readme]

CASE is one of 1M, 15M, 60M, 50k and 150k, WORK ragged or unpadded, OURS and TRL the numerics of each: float32, medium
(float32 with products as fast as the processor has them) or bfloat16 (autocast).

Systems run by turns, each in a process of its own, which makes one iteration to warm up and then those that are measured.
An iteration is everything from reading the prompts to the new weights: ours includes the stage store (hashing, flushing,
manifests), a checkpoint with both optimizers, and an audit, of which TRL does nothing. Memory is the peak above the
process with all modules imported and the weights of the four models.
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402

from tasks.environment import MEMORY  # noqa: E402

EOS, PAD = 1, 0
EPOCHS, MINIBATCHES = 4, 4
HELD_OUT = 2
CASES = {
    # hidden, intermediate, layers, heads, vocabulary, rows, response tokens
    "1M": (128, 384, 4, 4, 512, 64, 128),
    "15M": (384, 1024, 8, 6, 2048, 32, 64),
    "60M": (640, 1792, 10, 10, 8192, 16, 64),
    "50k": (384, 1024, 5, 6, 50_257, 32, 64),
    "150k": (384, 1024, 8, 6, 151_936, 32, 64),
}
DEFAULT = [
    "1M",
    "15M",
    "15M:unpadded",
    "15M:ragged:bfloat16/float32",
    "15M:ragged:bfloat16/bfloat16",
    "60M",
    "50k",
    "150k",
]
NUMERICS = {
    "float32": {"matmul": "highest", "bf16": False},
    "medium": {"matmul": "medium", "bf16": False},
    "bfloat16": {"matmul": "highest", "bf16": True},
}


def make_case(directory, name, *, ragged, seed=0):
    """Policy, critic and reward model, a tokenizer whose words are its ids, prompts, and the responses to them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    hidden, intermediate, layers, heads, vocabulary, rows, length = CASES[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory / "policy")
    for part in ("critic", "reward"):
        config.num_labels = 1
        AutoModelForSequenceClassification.from_config(config).save_pretrained(directory / part)
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, vocabulary)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    for part in ("policy", "critic", "reward"):
        fast.save_pretrained(directory / part)
    draw = random.Random(seed)

    def some(count):
        return [draw.randrange(2, vocabulary) for _ in range(count)]

    prompts = [some(draw.randint(8, 32) if ragged else 32) for _ in range(rows + HELD_OUT)]
    lengths = [draw.randint(1, length) if ragged else length for _ in prompts]
    responses = [[*some(n - 1), EOS] for n in lengths]
    lines = [{"prompt": " ".join(f"w{token}" for token in prompt)} for prompt in prompts]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:rows]))
    (directory / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[rows:]))
    pairs = [{"prompt": prompt, "response": response} for prompt, response in zip(prompts, responses, strict=True)]
    (directory / "forced.json").write_text(json.dumps(pairs))


def forced_rows(directory, length):
    """The response to each prompt, filled up with what nobody reads."""
    pairs = json.loads((directory / "forced.json").read_text())
    return {tuple(pair["prompt"]): pair["response"] + [EOS] * (length - len(pair["response"])) for pair in pairs}


def weights_of(directory):
    """Bytes of policy, reference, critic and reward model."""
    sizes = {part: (directory / part / "model.safetensors").stat().st_size for part in ("policy", "critic", "reward")}
    return sum(sizes.values()) + sizes["policy"]


class Clock:
    """Wall and processor time between marks."""

    def __init__(self):
        self.marks = []

    def mark(self):
        self.marks.append((time.perf_counter(), harness.cpu_seconds()))

    def result(self, base, directory):
        # The first iteration is the warm-up.
        wall = [b[0] - a[0] for a, b in zip(self.marks[1:], self.marks[2:], strict=False)]
        cpu = [b[1] - a[1] for a, b in zip(self.marks[1:], self.marks[2:], strict=False)]
        peak = harness.peak_memory() - base - weights_of(directory)
        return {"wall": sum(wall) / len(wall), "cpu": sum(cpu) / len(cpu), "peak": peak}


def ours(directory, case, numerics, iterations):
    """Our stages through the stage store, in one process."""
    sys.path[:0] = [str(harness.ROOT), str(harness.ROOT / "tests" / "flows")]
    from tasks import environment

    environment.quieten(hub=False)
    import torch
    from direct_run import run_directly
    from transformers.models.llama import modeling_llama  # noqa: F401

    from flows.config.reading import checked
    from ppo_core import sampling

    # All that stages import when they first need it, so that it does not count as theirs.
    from tasks.sampling.engines import builtin
    from tasks.scoring import mixture as scoring  # noqa: F401
    from tasks.store.data_sets import read_dataset
    from tasks.store.manifest import Manifest

    torch.set_float32_matmul_precision(NUMERICS[numerics]["matmul"])
    rows, length = CASES[case][5:]
    forced = forced_rows(directory, length)
    draw_tokens, row_uniforms, sample = sampling.draw_tokens, sampling.row_uniforms, builtin.sample

    def forced_sample(model, prompts, **options):
        table = torch.tensor([forced[tuple(prompts.row(i).tolist())] for i in range(len(prompts))])

        def forced_draw(logits, uniforms, *, sampling):
            drawn, logprobs = draw_tokens(logits, torch.full_like(uniforms, 0.5), sampling=sampling)
            wanted = uniforms.long()
            z = logits / sampling.temperature
            return wanted, logprobs + (z.gather(1, wanted[:, None]) - z.gather(1, drawn[:, None]))[:, 0]

        sampling.draw_tokens, sampling.row_uniforms = forced_draw, lambda seeds, n: table[:, :n].double()
        try:
            return sample(model, prompts, **options)
        finally:
            sampling.draw_tokens, sampling.row_uniforms = draw_tokens, row_uniforms

    builtin.sample = forced_sample
    config = checked(
        {
            "iterations": iterations + 1,
            "model": {"policy": str(directory / "policy"), "critic": str(directory / "critic")},
            "data": {
                "prompts": [str(directory / "prompts.jsonl")],
                "held_out_prompts": [str(directory / "held_out.jsonl")],
            },
            "reward_model": None,
            "warm_up": None,
            "critic_pretraining": None,
            "rewards": {"reward": {"model": str(directory / "reward")}},
            "rollouts": {"prompts_per_iteration": rows, "sampling": {"max_new_tokens": length}},
            "advantages": {"kl_coef": 0.05, "gamma": 1.0, "lam": 0.95},
            # As TRL does by default.
            "ppo": {"epochs": EPOCHS, "num_minibatches": MINIBATCHES, "cliprange_value": 0.2},
            "optimizers": {"learning_rate": 3e-6, "critic_learning_rate": 3e-6},
            "execution": {"device": "cpu", "dtype": "bfloat16" if NUMERICS[numerics]["bf16"] else "float32"},
        },
        where="benchmark",
    )
    clock = Clock()
    base = []

    class Done(Exception):
        pass

    def after_stage(call):
        # No model has been loaded yet, but all that loads one.
        base.extend([harness.memory()] * (call.stage == "prepare_data"))
        if call.stage == "prepare_data" or call.stage == "audit_rollouts":
            clock.mark()
        if call.stage == "audit_rollouts" and call.place.iteration == iterations + 1:
            raise Done

    home = Path(tempfile.mkdtemp(dir=directory))
    with contextlib.suppress(Done):
        run_directly(home, "run", config, after_stage)
    result = clock.result(base[0], directory)
    (scored,) = (home / "runs/run/stages/round-001/iteration-001/score_rollouts/shard-000").iterdir()
    table = read_dataset(scored / "rollouts")
    logprobs = table.column("logprobs").to_pylist()
    result["entropy"] = -sum(map(sum, logprobs)) / len(logprobs)
    result["score"] = sum(table.column("score").to_pylist()) / table.num_rows
    stages = [Manifest.read(path.parent) for path in home.rglob("iteration-002/**/manifest.json")]
    result["stages"] = {manifest.stage: manifest.seconds for manifest in stages}
    shutil.rmtree(home)
    return result


def trl(directory, case, numerics, iterations):
    """TRL's trainer, told which tokens to draw."""
    import os

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.models.llama import modeling_llama  # noqa: F401
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    torch.set_float32_matmul_precision(NUMERICS[numerics]["matmul"])
    rows, length = CASES[case][5:]
    forced = forced_rows(directory, length)
    clock = Clock()
    generate, multinomial = ppo_trainer.generate, torch.multinomial
    state = {}

    def forced_generate(model, queries, pad_token_id, generation_config):
        clock.mark()
        kept = [tuple(token for token in row if token != PAD) for row in queries.tolist()]
        state.update(table=torch.tensor([forced[row] for row in kept]), t=0)
        return generate(model, queries, pad_token_id, generation_config)

    def forced_multinomial(probs, num_samples, **options):
        multinomial(probs, num_samples, **options)
        state["t"] += 1
        return state["table"][:, state["t"] - 1 : state["t"]]

    ppo_trainer.generate, torch.multinomial = forced_generate, forced_multinomial
    base = harness.memory()
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(directory / "policy", dtype=torch.float32) for _ in "ab")
    critic, reward = (
        AutoModelForSequenceClassification.from_pretrained(directory / part, dtype=torch.float32)
        for part in ("critic", "reward")
    )
    prompts = [list(prompt) for prompt in list(forced)[:rows]]
    # One more than is measured, since an iteration ends where the next one begins.
    batches = iterations + 2
    output = tempfile.mkdtemp(dir=directory)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=NUMERICS[numerics]["bf16"],
            gradient_checkpointing=False,
            # Its batch; of which a minibatch, smaller than this, is one micro-batch and one step.
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            num_mini_batches=MINIBATCHES,
            num_ppo_epochs=EPOCHS,
            local_rollout_forward_batch_size=rows,
            total_episodes=rows * batches,
            response_length=length,
            stop_token="eos",
            temperature=1.0,
            learning_rate=3e-6,
            kl_coef=0.05,
            vf_coef=0.5,
            gamma=1.0,
            lam=0.95,
            report_to="none",
            save_strategy="no",
            num_sample_generations=0,
            logging_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts[:2]}),
    )
    logged = []
    trainer.log = lambda metrics, *_: logged.append(metrics)
    trainer.train()
    result = clock.result(base, directory)
    result["entropy"], result["score"] = logged[0]["objective/entropy"], logged[0]["objective/scores"]
    return result


def compare(case, work, *, numerics, versus, repeat, iterations, directory):
    """Both systems by turns on one case."""
    script = Path(__file__)

    def run(system, how):
        place = ("--directory", directory, "--iterations", iterations)
        options = ("--system", system, "--case", case, "--numerics", how, *place)
        # Ours runs in the worker's environment.
        return lambda: harness.child(script, *options, env=MEMORY if system == "ours" else None)

    found = harness.interleaved({"ours": run("ours", numerics), "trl": run("trl", versus)}, repeat)
    for name in ("entropy", "score"):
        a, b = found["ours"][0][name], found["trl"][0][name]
        tolerance = 1e-3 if numerics == versus == "float32" else 5e-2
        if abs(a - b) > tolerance * max(1.0, abs(b)):
            raise SystemExit(f"{case}, {work}: {name} is {a} in ours and {b} in TRL: not the same work")
    return {"case": case, "work": work, "numerics": numerics, "versus": versus, **found}


def row_of(result):
    mine, theirs = result["ours"], result["trl"]
    of_memory = [a["peak"] / b["peak"] for a, b in zip(mine, theirs, strict=True)]
    return [
        result["case"],
        result["work"],
        f"{result['numerics']} / {result['versus']}",
        f"{harness.median(mine, 'wall'):.2f} s",
        f"{harness.median(theirs, 'wall'):.2f} s",
        f"{harness.spread(harness.ratios(mine, theirs, 'wall'))}×",
        f"{harness.spread(harness.ratios(mine, theirs, 'cpu'))}×",
        f"{harness.median(mine, 'peak') / 2**20:,.0f} / {harness.median(theirs, 'peak') / 2**20:,.0f} MiB",
        f"{harness.spread(of_memory)}×",
    ]


TITLES = [
    "case",
    "work",
    "numerics, ours / TRL",
    "ours",
    "TRL",
    "faster",
    "less processor time",
    "peak memory",
    "of TRL's",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=DEFAULT)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--system")
    parser.add_argument("--case")
    parser.add_argument("--numerics")
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    if given.system:
        run = {"ours": ours, "trl": trl}[given.system]
        print("\n" + json.dumps(run(given.directory, given.case, given.numerics, given.iterations)))
        return
    results = []
    for spec in given.cases:
        case, work, pair = [*spec.split(":"), *("", "ragged", "float32/float32")[spec.count(":") + 1 :]]
        with tempfile.TemporaryDirectory() as directory:
            make_case(Path(directory), case, ragged=work == "ragged")
            numerics, versus = pair.split("/")
            options = {"repeat": given.repeat, "iterations": given.iterations, "directory": directory}
            results.append(compare(case, work, numerics=numerics, versus=versus, **options))
            print(" | ".join(row_of(results[-1])), flush=True)
    found = harness.machine()
    text = f"{harness.in_words(found)}; {given.repeat} turns.\n\n{harness.table(TITLES, map(row_of, results))}"
    print(text)
    if given.out:
        given.out.write_text(json.dumps({"machine": found, "results": results}, indent=1))
    if given.readme:
        harness.write_readme("ppo_iteration", text)


if __name__ == "__main__":
    main()
