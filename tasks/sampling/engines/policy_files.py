"""A checkpoint's policy as the files that an engine loads it from."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tasks.models import POLICY, part_directory
from tasks.sampling.engines.interface import LoadedPolicy
from tasks.text import copy_tokenizer

ADAPTER_FILE = "adapter_config.json"
"""Lies in a policy's directory that holds a LoRA adapter instead of weights."""
TIED_FILE, INDEX_FILE = "tied.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFiles:
    """A policy in ``directory``, whose content has this digest."""

    directory: Path
    digest: str
    tied: Mapping[str, Tensor]
    """Weights that the files leave out, since each is another one by tying: as a rule, the output head."""
    scratch: Path
    """Where an engine sees what is written for it."""

    @property
    def is_adapter(self) -> bool:
        return (self.directory / ADAPTER_FILE).exists()

    @contextmanager
    def with_tied_weights(self) -> Iterator[Path]:
        """A directory of the same files and the tied weights, each as a tensor of its own; the policy's where none is tied.

        An engine renews its weights tensor by tensor. One that has packed the output head for its kernels, as vLLM has on
        CPUs, keeps the old head where only the embedding comes.
        """
        if not self.tied:
            yield self.directory
            return
        with TemporaryDirectory(dir=self.scratch, prefix="policy-") as name:
            directory = Path(name)
            # The engine may be another user's process.
            directory.chmod(0o755)
            for path in self.directory.iterdir():
                (directory / path.name).symlink_to(path.resolve())
            save_file({name: x.contiguous() for name, x in self.tied.items()}, directory / TIED_FILE, {"format": "pt"})
            if (directory / INDEX_FILE).exists():
                # Of a policy in several files, an engine reads those that the index names.
                index = json.loads((directory / INDEX_FILE).read_text())
                index["weight_map"] |= dict.fromkeys(self.tied, TIED_FILE)
                (directory / INDEX_FILE).unlink()
                (directory / INDEX_FILE).write_text(json.dumps(index))
            yield directory


@contextmanager
def on_disk(policy: LoadedPolicy) -> Iterator[PolicyFiles]:
    """A policy's files, for an engine that reads them."""
    context = policy.models.context
    with _weights_on_disk(policy) as directory:
        yield PolicyFiles(
            directory=directory.resolve(),
            digest=policy.ref.digest,
            tied=tied_weights(policy.model if context.lora_base is None else policy.model.model),
            scratch=context.output.parent,
        )


@contextmanager
def _weights_on_disk(policy: LoadedPolicy) -> Iterator[Path]:
    """The policy's directory; a copy for a while where its weights were not kept."""
    directory = part_directory(policy.ref, POLICY)
    if any(directory.glob("*.safetensors")):
        yield directory
        return
    copy = policy.models.context.output.parent / f"policy-{policy.ref.digest}"
    try:
        policy.models.write_policy(policy.ref, copy)
        copy_tokenizer(directory, copy)
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def tied_weights(policy: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a model that are others by tying, by their own names."""
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    return {
        name: parameters[source].detach().cpu().clone()
        for name, source in getattr(policy, "all_tied_weights_keys", {}).items()
        if source in parameters
    }
