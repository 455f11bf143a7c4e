"""All that a model of somebody else's can be refused for, found before anything is made with it, and told at once.

From configurations, tokenizers and the names and shapes of weights; no weight is read. What depends on the data, whether
prompts are conversations and how long they are, is looked at once there is prepared data.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MoeModelOutputWithPast

from ppo_core.heads import linear_head
from tasks.config import ModelChecks
from tasks.data import Messages
from tasks.errors import ConfigError, ModelError, UserError
from tasks.models.devices import device_mistakes
from tasks.models.loading import load_policy, require_layers
from tasks.models.model_config import context_length, read_text_config, why_limited
from tasks.models.scalar import load_reward_model, load_scalar_model
from tasks.models.training import checkpoint_gradients
from tasks.store import concatenate, ragged_column, read_dataset
from tasks.text import check_tokenizer, encode_dialogues, encode_prompt, load_tokenizer

PROMPTS, PREFERENCES = ("prompts", "held_out_prompts"), ("preferences", "held_out_preferences")
MOST_ROWS = 4096
"""So many prompts are read by the tokenizer of another model, the longest ones: all could take as long as a stage."""


def require_sound_models(checks: ModelChecks) -> None:
    """Refuse models that the run could not use.

    Raises:
        ModelError: naming all mistakes, each by its field.
    """
    mistakes = model_mistakes(checks)
    if len(mistakes) == 1:
        raise ModelError(mistakes[0])
    if mistakes:
        numbered = "; ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, start=1))
        raise ModelError(f"{len(mistakes)} mistakes in the models: {numbered}")


def model_mistakes(checks: ModelChecks) -> list[str]:
    """One sentence for each mistake, the devices' first; empty where the run can use all its models."""

    def candidate(directory: str, field: str) -> Candidate:
        return Candidate(directory, field=field, trust_remote_code=checks.trust_remote_code)

    mistakes = device_mistakes(checks.execution)
    policy = None if checks.policy is None else candidate(checks.policy, "model.policy")
    mistakes += [] if policy is None else mistakes_of(policy, policy_checks(policy, checks))
    made = None if checks.data is None else Path(checks.data) / "policy"
    if policy is None and made is not None and made.is_dir():
        # What the others have to agree with.
        policy = candidate(str(made), "model.from_scratch")
    if checks.critic is not None:
        critic = candidate(checks.critic, "model.critic")
        mistakes += mistakes_of(critic, critic_checks(critic, policy, checks))
    if checks.reward_model_base is not None:
        base = candidate(checks.reward_model_base, "reward_model.base")
        mistakes += mistakes_of(base, reward_model_base_checks(base, policy, checks))
    others = [candidate(directory, field) for field, directory in checks.reward_models.items()]
    return mistakes + [own for other in others for own in mistakes_of(other, reward_model_checks(other, checks))]


Check = Callable[[], object]


def mistakes_of(model: "Candidate", checks: Iterator[Check]) -> list[str]:
    """What the checks of a model find; where its configuration cannot be read, that alone."""
    try:
        _ = model.config
    except UserError as error:
        return [f"{model.field}: {error}"]
    mistakes: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            names_field = re.match(r"[a-z_]+\.[a-z_.]+[:=]", str(error))
            sentence = str(error) if names_field else f"{model.field}: {error}"
            # Two checks may stumble over the same, as over a tokenizer that is not there.
            if sentence not in mistakes:
                mistakes.append(sentence)
    return mistakes


class Candidate:
    """A model that a configuration names, with what can be known of it without its weights, each read once."""

    def __init__(self, directory: str, *, field: str, trust_remote_code: bool) -> None:
        self.directory = Path(directory)
        self.field = field
        self.trust_remote_code = trust_remote_code

    @cached_property
    def config(self) -> PreTrainedConfig:
        """That of its language model."""
        return read_text_config(self.directory, trust_remote_code=self.trust_remote_code)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(str(self.directory), trust_remote_code=self.trust_remote_code)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    @cached_property
    def language_model(self) -> PreTrainedModel:
        """On the meta device; refused where its files lack weights."""
        return load_policy(self.directory, trust_remote_code=self.trust_remote_code, weightless=True)

    def scalar_model(self) -> PreTrainedModel:
        """On the meta device, with a new head where it has none; refused where its files lack weights of the body."""
        return load_scalar_model(
            self.directory, seed=0, trust_remote_code=self.trust_remote_code, weightless=True
        ).model

    def reward_model(self) -> PreTrainedModel:
        """The same, refused where its files lack the head."""
        return load_reward_model(self.directory, trust_remote_code=self.trust_remote_code, weightless=True).model

    def require_context(self, num_tokens: int, what: str) -> None:
        """Refuse a model that cannot attend to so many tokens."""
        limit = context_length(self.config)
        if limit is not None and num_tokens > limit:
            raise ModelError(
                f"{what} takes {num_tokens} tokens and the context of {self.directory} is {limit}"
                f"{why_limited(self.config)}; {num_tokens - limit} fewer fit: lower rollouts.sampling.max_new_tokens, leave "
                "out long rows, or name a model with a longer context"
            )

    def require_rows_for(self, vocabulary: Mapping[str, int], *, whose: str) -> None:
        """Refuse a model whose embedding lacks rows for a tokenizer's ids."""
        rows = self.config.vocab_size
        token, highest = max(vocabulary.items(), key=lambda entry: entry[1])
        if highest >= rows:
            raise ModelError(
                f"the embedding of {self.directory} has {rows:,} rows, and {whose} has a token {token!r} with id "
                f"{highest:,}; use the tokenizer that came with the model"
            )

    def require_terminator(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {self.directory} has no EOS token, which a finished response ends with; add "
                f'"eos_token" to {self.directory}/tokenizer_config.json, the token that ended the texts it was trained on'
            )

    def require_recomputable_layers(self, model: PreTrainedModel) -> None:
        checkpoint_gradients(model)


def policy_checks(policy: Candidate, checks: ModelChecks) -> Iterator[Check]:
    """What the model that is trained, and stays the reference, must be."""
    yield lambda: policy.language_model
    if checks.scalar_policy:
        yield policy.scalar_model
    if checks.execution.gradient_checkpointing:
        yield lambda: policy.require_recomputable_layers(policy.language_model)
    if checks.shared_trunk:
        yield lambda: require_linear_head(policy.language_model, policy.directory)
    if checks.adapted_layers:
        yield lambda: require_layers(
            policy.directory, checks.adapted_layers, trust_remote_code=checks.trust_remote_code
        )
    yield lambda: check_tokenizer(policy.tokenizer, policy.config.vocab_size, name=str(policy.directory))
    # A prompt has a token at least. With the data, prepare_data looks at each prompt by itself.
    yield lambda: policy.require_context(
        1 + checks.max_new_tokens, f"the shortest prompt with rollouts.sampling.max_new_tokens={checks.max_new_tokens}"
    )


def critic_checks(critic: Candidate, policy: Candidate | None, checks: ModelChecks) -> Iterator[Check]:
    """What a model that the critic starts from must be: it reads the policy's own token ids."""
    yield critic.scalar_model
    if checks.execution.gradient_checkpointing:
        yield lambda: critic.require_recomputable_layers(critic.scalar_model())
    if policy is not None:
        yield lambda: require_policys_tokens(critic, policy)
    yield lambda: critic.require_context(
        1 + checks.max_new_tokens, f"the shortest prompt with rollouts.sampling.max_new_tokens={checks.max_new_tokens}"
    )
    if checks.data is not None:
        longest = longest_in_tokens(Path(checks.data))
        yield lambda: critic.require_context(
            longest + checks.max_new_tokens,
            f"the longest prompt, {longest} tokens, with rollouts.sampling.max_new_tokens={checks.max_new_tokens}",
        )


def reward_model_base_checks(base: Candidate, policy: Candidate | None, checks: ModelChecks) -> Iterator[Check]:
    """What the model that the run's reward model starts from must be."""
    yield base.scalar_model
    yield from reading_checks(base, checks)
    if checks.critic_is_reward_model and policy is not None:
        yield lambda: require_policys_tokens(base, policy)
    if checks.data is not None:
        yield lambda: base.require_context(*longest_dialogue(base, Path(checks.data or "")))


def reward_model_checks(model: Candidate, checks: ModelChecks) -> Iterator[Check]:
    """What a finished reward model of somebody else's must be."""
    yield model.reward_model
    yield from reading_checks(model, checks)


def reading_checks(model: Candidate, checks: ModelChecks) -> Iterator[Check]:
    """What a model needs to read prompts and responses by its own tokenizer, template, BOS and EOS."""
    yield model.require_terminator
    yield lambda: model.require_rows_for(model.vocabulary, whose="its tokenizer")
    # The terminator of a response that was cut off comes on top.
    response = checks.max_new_tokens + 1
    what = f"with rollouts.sampling.max_new_tokens={checks.max_new_tokens} and a terminator"
    yield lambda: model.require_context(1 + response, f"the shortest prompt {what}")
    if checks.data is not None:
        yield lambda: model.require_context(*longest_prompt(model, Path(checks.data or ""), response, what))


def longest_prompt(model: Candidate, data: Path, response: int, what: str) -> tuple[int, str]:
    """Tokens of the longest prompt, as this model reads it, and a response."""
    rows = the_longest(data, PROMPTS, ["prompt_id", "prompt", "messages"])
    lengths = [len(encode_prompt(model.tokenizer, prompt_of(r), place=f"prompt {r['prompt_id']}")) for r in rows]
    return max(lengths) + response, f"the longest prompt, {max(lengths)} tokens, {what}"


def longest_dialogue(model: Candidate, data: Path) -> tuple[int, str]:
    """Tokens of the longest prompt with one of its responses among the preferences, as this model reads them."""
    rows = the_longest(data, PREFERENCES, ["prompt", "messages", "responses"])
    lengths = [max(map(len, encode_dialogues(model.tokenizer, row, row["responses"]))) for row in rows]
    return max(lengths), "the longest dialogue among the preferences"


def longest_in_tokens(data: Path) -> int:
    """Of the prompts as the policy reads them."""
    tables = [read_dataset(data / name) for name in PROMPTS]
    return max(int(ragged_column(table, "prompt_token_ids", torch.int64).lengths.max()) for table in tables)


def the_longest(data: Path, names: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of data sets, or of many those with the longest texts, in characters."""
    table = concatenate([read_dataset(data / name).select(list(columns)) for name in names])
    if table.num_rows <= MOST_ROWS:
        return list(table.to_pylist())
    sizes = [len(str(row)) for batch in table.to_batches(1024) for row in batch.to_pylist()]
    rows = sorted(range(len(sizes)), key=lambda row: sizes[row], reverse=True)[:MOST_ROWS]
    return list(table.take(rows).to_pylist())


def prompt_of(row: Mapping[str, Any]) -> str | Messages:
    return json.loads(row["messages"]) if row["messages"] else row["prompt"]


def require_policys_tokens(model: Candidate, policy: Candidate) -> None:
    """Refuse a critic to whom the policy's token ids would mean other tokens."""
    if not any(model.directory.glob("tokenizer*")):
        # One that never had texts of its own.
        model.require_rows_for(policy.vocabulary, whose="the policy's tokenizer")
        return
    if model.vocabulary != policy.vocabulary:
        other = "name a model with the policy's tokenizer, or leave model.critic out"
        advice = other if model.field == "model.critic" else "set model.critic: policy"
        raise ModelError(
            f"{model.field}: the critic starts from {model.directory} and reads the policy's token ids, but the tokenizer "
            f"there is another than that of {policy.directory}; {advice}"
        )


def require_linear_head(model: PreTrainedModel, directory: Path) -> None:
    """Refuse a model that does more to its logits than a linear head does (scales, caps): its body cannot be shared.

    Its own forward pass is tried, with numbers in the place of what its body computes and a small head in that of its own.
    """
    body, head = model.base_model, model.get_output_embeddings()
    fits = isinstance(head, nn.Linear) and body is not model
    if fits:
        hidden = torch.randn(1, 4, head.in_features, generator=torch.Generator().manual_seed(0))
        try:
            body.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=hidden)
            model.set_output_embeddings(nn.Linear(head.in_features, 8, bias=head.bias is not None))
            fits = linear_head(model) is not None
        except Exception:
            # One that asks more of its body than hidden states; the update will try with all of it.
            return
        finally:
            del body.forward
            model.set_output_embeddings(head)
    if not fits:
        raise ConfigError(
            f"model.shared_trunk: {directory} does more to its logits than a linear head does, or has no such head, so that "
            "a critic cannot share its body; leave shared_trunk out"
        )
