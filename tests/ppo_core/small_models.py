"""Models small enough to compute by hand, called like the real ones."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class HistoryCache:
    """What HistoryPolicy remembers of each row: one number."""

    def __init__(self, histories: Tensor) -> None:
        self.histories = histories

    def batch_select_indices(self, rows: Tensor) -> None:
        self.histories = self.histories[rows]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.histories = self.histories.repeat_interleave(repeats)


class HistoryPolicy(nn.Module):
    """Logits from a table, looked up by a number that hashes **all** real tokens so far, in order.

    A cache row out of place, a padding token read or a position missed gives other logits altogether.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.batch_sizes: list[int] = []

    def forward(
        self,
        *,
        input_ids: Tensor,
        use_cache: bool,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        past_key_values: HistoryCache | None = None,
    ) -> SimpleNamespace:
        is_packed = attention_mask is None
        if attention_mask is None:
            # As a causal model does: nothing is padding, and a row begins where the position is 0.
            attention_mask = torch.ones_like(input_ids)
            position_ids = attention_mask.cumsum(1) - 1 if position_ids is None else position_ids
        self.batch_sizes.append(len(input_ids))
        num_new = input_ids.shape[1]
        if past_key_values is None:
            past_key_values = HistoryCache(torch.zeros(len(input_ids), dtype=torch.int64))
        steps = []
        for column in range(num_new):
            real = attention_mask[:, column - num_new] == 1
            if is_packed and num_new > 1:
                past_key_values.histories = torch.where(position_ids[:, column] == 0, 0, past_key_values.histories)
            elif not is_packed:
                assert (position_ids[:, column] == (attention_mask.cumsum(1)[:, column - num_new] - 1) * real).all()
            mixed = (past_key_values.histories * 31 + 7 * input_ids[:, column] + 1) % len(self.table)
            past_key_values.histories = torch.where(real, mixed, past_key_values.histories)
            steps.append(past_key_values.histories)
        logits = self.table[torch.stack(steps, dim=1)[:, -logits_to_keep:]]
        return SimpleNamespace(logits=logits, past_key_values=past_key_values if use_cache else None)


class HistoryCritic(nn.Module):
    """A value from a table, looked up as by HistoryPolicy."""

    def __init__(self, num_histories: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.policy = HistoryPolicy(torch.zeros(num_histories, 1, dtype=dtype))

    def forward(self, *, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        return self.policy(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[..., 0]


def history_policy(seed: int, *, vocabulary: int = 8, num_histories: int = 97, spread: float = 1.5) -> HistoryPolicy:
    generator = torch.Generator().manual_seed(seed)
    return HistoryPolicy(spread * torch.randn(num_histories, vocabulary, dtype=torch.float64, generator=generator))


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


class LlamaCritic(nn.Module):
    """One number per position from the hidden states of a Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny_llama().model
        self.head = nn.Linear(16, 1, bias=False)

    def forward(self, *, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        said = self.body(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        return self.head(said.last_hidden_state)[..., 0]


def tiny_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def tiny_softcapped() -> nn.Module:
    """One whose logits are more than a linear function of its hidden states."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        query_pre_attn_scalar=4,
        max_position_embeddings=64,
        sliding_window=4,
        final_logit_softcapping=2.0,
        initializer_range=0.3,
    )
    return Gemma2ForCausalLM(config).eval()


def tiny(model_type: str) -> nn.Module:
    """A random model of a family, with a sliding window shorter than what is sampled where the family has one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    window = {"sliding_window": 4} if model_type in ("mistral", "gemma3_text") else {}
    config = AutoConfig.for_model(
        model_type,
        **window,
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config).eval()
