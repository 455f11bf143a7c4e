"""An adapter added to the model that it is over, as a directory of its own: ``python -m tasks.models.merge_adapter``.

In a process of its own, since whoever finds out that a name is an adapter's has not loaded torch.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tasks.errors import ModelError
from tasks.models.loading import load_policy
from tasks.models.model_config import first_line
from tasks.models.scalar import load_scalar_model
from tasks.text import copy_tokenizer, load_tokenizer

CONFIG_FILE = "adapter_config.json"
FEW = 8
ADVICE = "merge it where it was trained, and name the result"


def merge_adapter(adapter: Path, base: Path, target: Path, *, trust_remote_code: bool = False) -> None:
    """Write the whole model, float32, with the adapter's tokenizer where it has one, else the base's.

    Raises:
        ModelError: the base does not load, or the adapter does not fit it or cannot be added to weights.
    """
    source = adapter if (adapter / "tokenizer_config.json").is_file() else base
    model = base_model(adapter, base, trust_remote_code=trust_remote_code)
    if source is adapter:
        num_tokens = len(load_tokenizer(str(adapter), trust_remote_code=trust_remote_code))
        # Tokens that were added for the adapter's training; it brings the rows of the new ones.
        if num_tokens > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(num_tokens)
    untie(model)
    try:
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
        expected = on_a_few_tokens(adapted)
        merged = adapted.merge_and_unload(safe_merge=True)
    # What PEFT raises for an adapter that does not fit, or that is no change of weights, is of any kind.
    except Exception as error:
        raise ModelError(f"it cannot be merged with that ({first_line(error)}); {ADVICE}") from error
    tie_where_equal(merged)
    merged.save_pretrained(str(target))
    copy_tokenizer(source, target)
    found = on_a_few_tokens(base_model(adapter, target, trust_remote_code=trust_remote_code))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ModelError(f"merged with that, it says something else than over it; {ADVICE}")


def untie(model: PreTrainedModel) -> None:
    """Give a head that is its embedding's matrix one of its own: a change of either would be one of both."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())


def tie_where_equal(model: PreTrainedModel) -> None:
    """Undo ``untie``; where the adapter has changed one of the two, or both, the model has two matrices from now on."""
    head, embedding, config = (
        model.get_output_embeddings(),
        model.get_input_embeddings(),
        model.config.get_text_config(),
    )
    if head is None or not config.tie_word_embeddings:
        return
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    else:
        model.config.tie_word_embeddings = config.tie_word_embeddings = False


def on_a_few_tokens(model: PreTrainedModel) -> torch.Tensor:
    """What a model says of a row of token ids."""
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 3 + FEW)[None] % model.config.get_text_config().vocab_size).logits


def base_model(adapter: Path, base: Path, *, trust_remote_code: bool) -> PreTrainedModel:
    """What the adapter was trained over: a classifier with one output, or a language model."""
    if json.loads((adapter / CONFIG_FILE).read_text()).get("task_type") == "SEQ_CLS":
        return load_scalar_model(base, seed=0, trust_remote_code=trust_remote_code).model
    return load_policy(base, trust_remote_code=trust_remote_code)


def main() -> None:
    """``ADAPTER BASE TARGET TRUST``; a mistake is the last line of standard error, with exit code 2."""
    adapter, base, target, trust = sys.argv[1:]
    try:
        merge_adapter(Path(adapter), Path(base), Path(target), trust_remote_code=trust == "trust")
    except ModelError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    main()
