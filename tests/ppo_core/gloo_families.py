"""Updates of models of many families, whole in one process and in parts on several: what each came to.

python gloo_families.py FOLDER PROCESSES FAMILY …
"""

import sys
from pathlib import Path

# Imported on the first use of an optimizer: better once than in each process.
import torch._dynamo
from cases import Draws
from gloo_update import join
from test_decoding import PROMPTS, V, a_model
from torch import Tensor, distributed, multiprocessing, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from ppo_core import Optimizers, PPOConfig, Ragged, RolloutBatch, Sharing, inside, ppo_update, shard, whole
from ppo_core.forward import can_pack
from ppo_core.heads import linear_head

SHARES = 4
EXPERTS = "experts that are modules"
WIDE = "a wide one"
"""Whose fourths have a multiple of what a processor computes at once: an optimizer rounds a rest otherwise."""


class Expert(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(size, 8, bias=False), nn.Linear(8, size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(hidden)))


class Experts(nn.Module):
    """Of which each token goes to one, and which most micro-batches do not reach all of; and a weight that none reaches."""

    def __init__(self, size: int, number: int) -> None:
        super().__init__()
        self.router = nn.Linear(size, number, bias=False)
        self.experts = nn.ModuleList(Expert(size) for _ in range(number))
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, -2)
        weights, chosen = self.router(tokens).softmax(-1).max(-1)
        outputs = torch.zeros_like(tokens)
        for number in chosen.unique().tolist():
            where = (chosen == number).nonzero().squeeze(1)
            outputs = outputs.index_add(0, where, weights[where, None] * self.experts[number](tokens[where]))
        return outputs.view_as(hidden)


def model_of(family: str) -> nn.Module:
    if family == WIDE:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).eval()
    if family != EXPERTS:
        return a_model(family)
    model = a_model("llama")
    for layer in model.model.layers:
        layer.mlp = Experts(model.config.hidden_size, 16)
    return model


def rollouts() -> RolloutBatch:
    draws = Draws(0)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    responses = [draws.integers(V, 2 + 3 * i % 7) for i in range(len(prompts))]
    number = sum(map(len, responses))
    return RolloutBatch(
        prompts=Ragged.from_rows(prompts, torch.int64),
        responses=Ragged.from_rows(responses, torch.int64),
        stopped=torch.ones(len(prompts), dtype=torch.bool),
        token_columns={"logprobs": torch.full((number,), -3.0), "advantages": draws.normal(number).float()},
    )


def updated(model: nn.Module, sharing: Sharing) -> list[Tensor]:
    """All weights after two epochs of two steps."""
    optimizers = Optimizers(policy=torch.optim.AdamW(model.parameters(), 1e-2, eps=1e-3, weight_decay=0.1))
    # A limit that every gradient is above.
    settings = PPOConfig(epochs=2, num_minibatches=2, max_grad_norm=1e-3)
    ppo_update(model, None, optimizers, rollouts(), settings, seed=0, micro_batch_tokens=16, sharing=sharing)
    return [whole(parameter.detach()).clone() for parameter in model.parameters()]


def take_part(rank: int, folder: Path, processes: int, families: list[str]) -> None:
    join(rank, folder, processes)
    results = {}
    for family in families:
        model = model_of(family)
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        shard(model, layers, torch.device("cpu"), in_order=True)
        with torch.no_grad():
            inside(model, lambda model=model: (can_pack(model), linear_head(model)))
        results[family] = updated(model, Sharing(distributed.group.WORLD, SHARES, in_parts=True))
    if rank == 0:
        alone = {family: updated(model_of(family), Sharing(None, SHARES)) for family in families}
        torch.save((alone, results), folder / "weights.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked processes share the imports, most of the time that this takes. Here nothing has started a thread yet.
    method = "fork" if sys.platform == "linux" else "spawn"
    folder, processes, *families = sys.argv[1:]
    arguments = (Path(folder), int(processes), families)
    multiprocessing.start_processes(take_part, arguments, int(processes), start_method=method)
