"""What models take, from their configurations alone: no weight is read and nothing is computed."""

from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tasks.config import ExecutionConfig
from tasks.contract import PreviewConfig
from tasks.models import load_policy, load_scalar_model, pick_device, pick_dtype

SHORT, LONG = 64, 192
"""Tokens of the two passes by which what grows with tokens is told from what does not."""
USUAL_FLOATS = 24
"""Numbers that a layer keeps for each token and unit of its width, where a model's own cannot be counted."""
FLOAT32 = 4


def sizes_of(config: PreviewConfig, policy: Path) -> dict[str, Any]:
    """Of the policy and of each other model by the field that names it."""
    trusts, checks = config.access.trust_remote_code, config.checks
    device = pick_device(config.execution)
    dtype = pick_dtype(config.execution, device)
    model = load_policy(policy, trust_remote_code=trusts, weightless=True)
    text = model.config.get_text_config()
    others = {"model.critic": checks.critic, "reward_model.base": checks.reward_model_base, **checks.reward_models}
    return {
        "forward_bytes": dtype.itemsize,
        "parameters": parameters_of(model),
        "hidden_size": text.hidden_size,
        "layers": text.num_hidden_layers,
        "vocabulary": text.vocab_size,
        "cache_bytes_a_token": cache_bytes(text) * dtype.itemsize,
        "kept_bytes_a_token": kept_bytes(model.config, dtype, trust_remote_code=trusts),
        "adapter_parameters": adapter_parameters(config, model),
        "others": {
            field: parameters_of(load_scalar_model(Path(path), trust_remote_code=trusts, weightless=True).model)
            for field, path in others.items()
            if path is not None
        },
    }


def parameters_of(model: torch.nn.Module) -> int:
    """Those that two layers share count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def adapter_parameters(config: PreviewConfig, model: torch.nn.Module) -> int:
    """Of the adapters that the configuration asks for: two narrow matrices beside each layer that gets one."""
    lora = config.access.lora
    if lora is None:
        return 0
    head = model.get_output_embeddings()  # type: ignore[operator]
    total = 0
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        is_linear = type(layer).__name__ in ("Linear", "Conv1D") and layer is not head
        if is_linear and isinstance(weight, torch.Tensor):
            wanted = not lora.target_modules or any(f".{name}".endswith(f".{part}") for part in lora.target_modules)
            total += lora.rank * sum(weight.shape) if wanted else 0
    return total


def cache_bytes(config: PreTrainedConfig) -> int:
    """Numbers that sampling keeps of a token: a key and a value in each layer; none without attention, as in Mamba."""
    all_heads = getattr(config, "num_attention_heads", None)
    if not all_heads:
        return 0
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    return int(2 * config.num_hidden_layers * heads * size)


def kept_bytes(config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool) -> float:
    """Bytes that a pass keeps of a token for the backward pass, in float32 or by autocast: counted in a pass that computes
    nothing."""
    try:
        with FakeTensorMode():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).eval()
            short, long = (_kept(model, length, dtype) for length in (SHORT, LONG))
        return (long - short) / (LONG - SHORT)
    except Exception:
        # A model that looks at numbers while it computes, or is made otherwise.
        text = config.get_text_config()
        return float(USUAL_FLOATS * FLOAT32 * text.hidden_size * text.num_hidden_layers)


def _kept(model: Any, length: int, dtype: torch.dtype) -> int:
    storages: dict[int, torch.UntypedStorage] = {}
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return x

    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), autocast:
        model.base_model(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


def device_facts(execution: ExecutionConfig) -> dict[str, Any]:
    """The device that the run would take, with its memory where torch knows of it."""
    device = pick_device(execution)
    if device.type == "cuda":
        # Of several workers each has one of the first devices, and the fullest of them decides.
        used = range(execution.workers_here) if execution.workers_here > 1 else [device]
        free, total = min(torch.cuda.mem_get_info(own) for own in used)
        return {"kind": "cuda", "name": torch.cuda.get_device_name(device), "free": free, "total": total}
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return {"kind": "mps", "name": "Apple GPU", "free": total, "total": total}
    return {"kind": "cpu", "name": "the processor", "free": None, "total": None}
