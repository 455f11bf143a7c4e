"""Runs and draws over a real engine, and how far its log-probabilities lie from those of the checkpoint's own files."""

import json
from pathlib import Path

import torch
from direct_run import run_directly
from transformers import AutoModelForCausalLM

from flows.config.reading import load_config
from ppo_core import Ragged, SamplingConfig
from tasks.sampling.engines.policy_files import PolicyFiles, tied_weights
from tasks.store.manifest import Manifest

RLOO = Path(__file__).with_name("rloo.yaml")
DIFFERENCES: list[str] = []
"""What the runs say of their iterations, for the end of the output."""


def variety(prompts, responses, rows):
    """How many characters each response has that are different."""
    return [float(len(set(response))) for response in responses]


def three_iterations(home, name, policy, *settings, after_stage=lambda call: None):
    """A run of RLOO from the policy in a directory, whose evaluation samples both the last policy and the first."""
    config = load_config(str(RLOO), [f"model.policy={policy}", *settings])
    run = run_directly(home, name, config, after_stage)
    found = [Manifest.read(path.parent) for path in run.root.glob("stages/**/generate_rollouts/**/manifest.json")]
    return run, sorted(found, key=lambda manifest: manifest.place)


def differences(name, rollouts):
    """Mean and largest of each iteration, which the end of the output shows too."""
    table = {}
    for manifest in rollouts:
        mean, largest = (manifest.metrics[f"rollouts/engine_logprob_{kind}difference"] for kind in ("", "max_"))
        before = table.get(manifest.place.iteration, (0.0, 0.0))
        table[manifest.place.iteration] = (max(before[0], mean), max(before[1], largest))
    for iteration, (mean, largest) in sorted(table.items()):
        DIFFERENCES.append(f"{name:32} iteration {iteration}   {mean:.1e}   {largest:.1e}")
    return table


def moved(run):
    """How far the last checkpoint's policy lies from the first one's, in the largest of its weights."""
    first, *_, last = sorted(run.root.glob("stages/round-001/iteration-*/update_policy/*/policy"))
    weights = [next(iter(load(path).state_dict().values())) for path in (first, last)]
    return float((weights[0] - weights[1]).abs().max())


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def files(directory, scratch, *, with_head=True, digest=None):
    tied = tied_weights(load(directory)) if with_head else {}
    digest = digest or Path(directory).name
    return PolicyFiles(directory=Path(directory), digest=digest, tied=tied, scratch=Path(scratch))


PROMPTS = Ragged.from_rows(
    # The last is longer than a block of the prefix cache, which on CPUs has 128 tokens.
    [torch.randint(3, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 40, 300)],
    torch.int64,
)


def draw(engine, *, samples_per_prompt=1, stop_strings=(), should_stop=None, on_rows=lambda *_: None, **sampling):
    num_rows = len(PROMPTS) * samples_per_prompt
    return engine.draw(
        PROMPTS,
        samples_per_prompt=samples_per_prompt,
        sampling=SamplingConfig(**{"max_new_tokens": 12, **sampling}),
        stop_strings=stop_strings,
        should_stop=should_stop,
        seeds=list(range(num_rows)),
        on_rows=on_rows,
    )


@torch.no_grad()
def furthest(batch, directory, temperature=1.0):
    """The largest difference at a token from log softmax(z / temperature) of the model in a directory, row by row."""
    model = load(directory)
    apart = []
    for i in range(len(batch.responses)):
        prompt, response = batch.prompts.row(i), batch.responses.row(i)
        z = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        expected = (z / temperature).log_softmax(-1).gather(1, response[:, None])[:, 0]
        start, end = batch.responses.offsets[i : i + 2].tolist()
        apart.append(float((batch.token_columns["logprobs"][start:end] - expected).abs().max()))
    return max(apart)


def tokens(batch):
    return [batch.responses.row(i).tolist() for i in range(len(batch.responses))]


def evaluated(run):
    (path,) = run.root.glob("stages/round-001/evaluate_policy/*/manifest.json")
    return json.loads(path.read_text())["metrics"]
