"""The device and the precision that models run in."""

import torch
from transformers import PreTrainedModel

from tasks.config import ExecutionConfig
from tasks.errors import ModelError


def pick_device(execution: ExecutionConfig) -> torch.device:
    """The device that the configuration names, or the fastest one there is."""
    name = execution.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"execution.device={name}: this PyTorch sees no CUDA device; set it to auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ModelError("execution.device=mps: this machine has no Metal device; set it to auto or cpu")
    device = torch.device(name)
    if device.index is not None and device.index >= (count := torch.cuda.device_count()):
        raise ModelError(
            f"execution.device={name}: {there_are(count)}, the last of which is cuda:{count - 1}; name that"
        )
    return device


def there_are(count: int) -> str:
    return f"there {'is' if count == 1 else 'are'} {count} CUDA device{'s' * (count != 1)}"


def device_mistakes(execution: ExecutionConfig) -> list[str]:
    """Why the workers cannot have the devices that they need: one that is not there, too few, or unlike ones."""
    try:
        device = pick_device(execution)
    except ModelError as error:
        return [str(error)]
    if device.type == "cpu":
        return []
    asked_for = {"workers": execution.workers_here, "train_processes": execution.train_processes}
    return [mistake for name, asked in asked_for.items() if asked > 1 for mistake in of_several(name, asked, device)]


def of_several(name: str, asked: int, device: torch.device) -> list[str]:
    """Why so many processes cannot each have a device like the others'."""
    own, each = f"execution.{name}={asked}", "each worker" if name == "workers" else "each process"
    if device.type == "mps":
        return [f"{own}: there is one Metal device, and {each} needs one of its own; set it to 1, or device to cpu"]
    count = torch.cuda.device_count()
    if count < asked:
        return [f"{own}: {there_are(count)}, and {each} needs one of its own; lower it to {count}"]
    names = [torch.cuda.get_device_name(number) for number in range(asked)]
    other = next((number for number, name in enumerate(names) if name != names[0]), None)
    if other is None:
        return []
    # A shard would have other bytes on one than on the other, and which one has it depends on the clock.
    return [
        f"{own}: cuda:0 is {names[0]} and cuda:{other} is {names[other]}, which round otherwise; name equal ones by "
        "CUDA_VISIBLE_DEVICES, or lower it"
    ]


def pick_dtype(execution: ExecutionConfig, device: torch.device) -> torch.dtype:
    """The precision of forward passes."""
    if execution.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if execution.dtype == "bfloat16" else torch.float32


def pick_head_dtype(execution: ExecutionConfig) -> torch.dtype:
    """The precision of logits, where that of forward passes is lower."""
    return torch.bfloat16 if execution.head_dtype == "bfloat16" else torch.float32


def with_weights_in(model: PreTrainedModel, dtype: torch.dtype, head_dtype: torch.dtype) -> PreTrainedModel:
    """A model that is never trained with its weights in ``dtype``, but for those of its head, which every call would
    otherwise have to widen."""
    head = model.get_output_embeddings()
    own = {} if head is None else {name: x.data for name, x in head.named_parameters()}
    model.to(dtype)
    for name, x in own.items():
        head.get_parameter(name).data = x.to(torch.promote_types(dtype, head_dtype))
    return model


def prefer_determinism() -> None:
    """Have CUDA choose repeatable kernels where it has them, and say in the log where it has none."""
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Every tensor is written before it is read; filling it first would only cost time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def empty_cache() -> None:
    """Give back the memory of an accelerator that no model holds any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
