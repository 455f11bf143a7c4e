"""What the stage tests build on: tiny models and tokenizers made on the spot, and a way to run one stage."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.models import ResidentModels
from tasks.prepare_data import FromScratchConfig, make_model
from tasks.records import Text
from tasks.stage import ExecutionConfig, StageConfig, StageContext, load_stage
from tasks.store import Place, Recipe, Ref, Store, digest_file, digest_files, input_digests

WORDS = ("the", "is", "on", "under", "by", "door", "thank", "you", "go", "away", "now", "glad", "to", "help", "table")
TEXTS = [f"the {a} {b} is on the {c}. thank you" for a in ("red", "blue") for b in ("lamp", "clock") for c in WORDS]


def a_model(directory: Path, *, family: str = "llama", seed: int = 0, context_length: int = 64) -> Ref:
    """A causal language model with a byte-level tokenizer, as an external reference."""
    texts = [Text(prompt=None, response=text, place="") for text in TEXTS]
    shape = FromScratchConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
    make_model(directory, shape.model_copy(update={"context_length": context_length}), texts, seed=seed)
    if family == "gpt2":
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=context_length, bos_token_id=1, eos_token_id=2,
            pad_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(str(directory))
    return external(directory)


def external(directory: Path) -> Ref:
    """A directory as ``model_ref`` would name it."""
    files = {path.name: digest_file(path) for path in sorted(directory.iterdir()) if path.is_file()}
    return Ref(str(directory), digest_files(files))


class Workbench:
    """Runs single stages and commits what they make."""

    def __init__(self, root: Path, *, micro_batch_tokens: int = 4096, seed: int = 7) -> None:
        self.store = Store(root)
        self.execution = ExecutionConfig(device="cpu", micro_batch_tokens=micro_batch_tokens)
        self.seed = seed
        self.models = ResidentModels()
        self.events: list[Any] = []

    def run(self, name: str, config: StageConfig, *, place: Place = Place(1, 1), **inputs: Any) -> Ref:
        stage = load_stage(name)
        recipe = Recipe(
            stage=name,
            version=stage.version,
            place=place,
            seed=self.seed,
            settings=json.loads(config.model_dump_json()),
            inputs=input_digests(inputs),
        )
        scratch = self.store.scratch(recipe)
        context = StageContext(
            output=scratch,
            place=place,
            run_seed=self.seed,
            execution=self.execution,
            models=self.models,
            report=self.events.append,
        )
        output = stage.fn(context, config, **inputs)
        return self.store.commit(recipe, scratch, inputs=inputs, rows=output.rows, metrics=output.metrics, seconds=0.0)

    def metrics(self, ref: Ref) -> dict[str, float]:
        return dict(json.loads((ref.directory / "manifest.json").read_text())["metrics"])
