"""Stage: the run's data in one form, split into training and held-out parts, and a new model where one is asked for."""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ppo_core.randomness import derive_seed
from tasks.config import DataConfig, FromScratchConfig, PrepareDataConfig, Source
from tasks.contract import StageContext, StageOutput
from tasks.data import (
    BadRow,
    Findings,
    Preference,
    Prompt,
    Text,
    as_json,
    content_key,
    in_words,
    read_rows,
    to_preferences,
    to_prompts,
    to_texts,
)
from tasks.errors import DataError
from tasks.models import POLICY, Models, context_length, part_directory, read_text_config, require_layers, why_limited
from tasks.store import (
    PREFERENCES,
    PROMPTS,
    TEXTS,
    Ref,
    Table,
    canonical_json,
    digest_text,
    read_dataset,
    table_of,
    write_dataset,
)
from tasks.text import (
    check_tokenizer,
    doubts_about_data,
    doubts_about_endings,
    encode_dialogue,
    encode_prompt,
    encode_text,
    render_prompt,
)


def prepare_data(
    context: StageContext, config: PrepareDataConfig, *, base: Ref | None, previous: Ref | None = None
) -> StageOutput:
    """Read, check, split and tokenise all sources. ``base`` is the model to prepare for; None makes a new one.

    What the round before held out, whose data is ``previous``, stays held out.
    """
    data = config.data
    findings = Findings()
    texts = to_texts(read_all(data.texts, context), findings)
    preferences, _ = to_preferences(read_all(data.preferences, context), findings)
    prompts = to_prompts(read_all(data.prompts, context), findings)
    held_out = to_prompts(read_all(data.held_out_prompts, context), findings)
    kinds = ((data.texts, texts), (data.preferences, preferences), (data.prompts, prompts))
    if base is None or any(sources and not found for sources, found in kinds):
        # Else rows that are too long are told with the others.
        require_usable(data, findings)

    if base is None:
        assert config.from_scratch is not None
        make_model(context.output / POLICY, config.from_scratch, texts, seed=context.seed("from_scratch"))
    directory = context.output / POLICY if base is None else part_directory(base, POLICY)
    model_config = read_text_config(directory, trust_remote_code=config.access.trust_remote_code)
    models = Models(context, config.access)
    tokenizer = models.tokenizer(directory, options=config.access.chat_template_kwargs)
    check_tokenizer(tokenizer, model_config.vocab_size, name=str(directory))
    if config.adapted_layers:
        require_layers(directory, config.adapted_layers, trust_remote_code=config.access.trust_remote_code)

    for doubt in doubts_about_endings(tokenizer) + doubts_about_data(
        tokenizer, prompts=[*prompts, *held_out], answers=[*preferences, *texts]
    ):
        context.warn(doubt)

    encoder = Encoder(
        tokenizer, limit=context_length(model_config), why_limited=why_limited(model_config), findings=findings
    )
    tables = {"prompts": encoder.prompts(prompts, config.response_tokens)}
    if held_out:
        tables["held_out_prompts"] = encoder.prompts(held_out, config.response_tokens)
    if preferences:
        tables["preferences"] = encoder.preferences(preferences)
    if texts:
        tables["texts"] = encoder.texts(texts)
    require_usable(data, findings)
    if not held_out:
        tables["prompts"], tables["held_out_prompts"] = set_aside(
            tables["prompts"],
            num=data.num_held_out_prompts,
            context=context,
            before=held_out_before(previous, "prompts"),
        )
    if preferences:
        num = max(1, round(data.held_out_preferences * tables["preferences"].num_rows))
        tables["preferences"], tables["held_out_preferences"] = set_aside(
            tables["preferences"], num=num, context=context, before=held_out_before(previous, "preferences")
        )
    for name, table in tables.items():
        if table.num_rows == 0:
            raise DataError(f"data.{name}: no row is left; give more data, or a longer context")
        write_dataset(context.output / name, table)
    counts = {f"data/{name}": float(table.num_rows) for name, table in tables.items()}
    dropped = findings.reasons + findings.left_out
    if dropped:
        context.warn(f"left out {dropped.total():,} of {findings.num_rows:,} rows ({in_words(dropped)})")
    if findings.splits:
        context.warn(
            f"{findings.splits.total():,} pairs of transcripts were split after the opening of the assistant's turn "
            f"({in_words(findings.splits)})"
        )
    return StageOutput(
        rows=sum(table.num_rows for table in tables.values()),
        metrics={**counts, "data/dropped": float(dropped.total())},
    )


def require_usable(data: DataConfig, findings: "Findings") -> None:
    """Refuse bad rows, unless they are to be left out."""
    if data.on_bad_row == "error":
        findings.require_no_bad_rows()


def read_all(sources: tuple[Source, ...], context: StageContext) -> list[Any]:
    """The rows of all sources of one kind."""
    rows: list[Any] = []
    for source in sources:
        rows += read_rows(source, seed=context.run_seed)
        context.progress(len(rows), len(rows), unit="rows")
    return rows


class Encoder:
    """Records to Arrow tables; rows that the template refuses or that do not fit the context are noted as bad."""

    def __init__(self, tokenizer: Any, *, limit: int | None, findings: "Findings", why_limited: str = "") -> None:
        self.tokenizer = tokenizer
        self.limit = limit
        self.why_limited = why_limited
        self.findings = findings

    @contextmanager
    def _row(self) -> Iterator[None]:
        """One record, which is a bad row where the block refuses it."""
        try:
            yield
        except BadRow as bad:
            self.findings.add(bad)
        except DataError as error:
            self.findings.add(BadRow(str(error), reason="refused by the chat template"))

    def _require_fit(self, num_tokens: int, place: str, what: str, *, advice: str = "") -> None:
        if self.limit is not None and num_tokens > self.limit:
            raise BadRow(
                f"{place}: {what} takes {num_tokens} tokens and the model's context is {self.limit}{self.why_limited}; "
                f"shorten it{advice}",
                reason="too long for the model's context",
            )

    def prompts(self, prompts: "list[Prompt]", response_tokens: int) -> "Table":
        seen: Counter[str] = Counter()
        rows = []
        for prompt in prompts:
            with self._row():
                ids = encode_prompt(self.tokenizer, prompt.prompt, place=prompt.place)
                what = f"a prompt of {len(ids)} tokens with a response of up to {response_tokens}"
                room = 0 if self.limit is None else self.limit - len(ids)
                advice = f", or lower rollouts.sampling.max_new_tokens to {room}" if room > 0 else ""
                self._require_fit(len(ids) + response_tokens, prompt.place, what, advice=advice)
                text = render_prompt(self.tokenizer, prompt.prompt, place=prompt.place)
                # By content, so that a prompt keeps its id, and so its randomness, when rows before it come or go, or
                # when they are stored in another format.
                prompt_id = digest_text(canonical_json([text, content_key(prompt.extra)]))[:12]
                seen[prompt_id] += 1
                if seen[prompt_id] > 1:
                    prompt_id = f"{prompt_id}-{seen[prompt_id]}"
                rows.append((prompt_id, text, messages_json(prompt.prompt), ids, as_json(prompt.extra)))
        return table_of(rows, PROMPTS)

    def preferences(self, preferences: "list[Preference]") -> "Table":
        rows = []
        for preference in preferences:
            with self._row():
                lengths = [
                    len(encode_dialogue(self.tokenizer, preference.prompt, response, place=preference.place)[0])
                    for response in preference.responses
                ]
                self._require_fit(max(lengths), preference.place, "the longest dialogue")
                text = render_prompt(self.tokenizer, preference.prompt)
                messages = messages_json(preference.prompt)
                preference_id = digest_text(canonical_json([text, preference.responses, preference.ranks]))[:12]
                rows.append((preference_id, text, messages, preference.responses, preference.ranks, preference.margin))
        return table_of(rows, PREFERENCES)

    def texts(self, texts: "list[Text]") -> "Table":
        rows = []
        for text in texts:
            with self._row():
                if text.prompt is None:
                    ids, prompt_length = encode_text(self.tokenizer, text.response), 0
                else:
                    ids, prompt_length = encode_dialogue(self.tokenizer, text.prompt, text.response, place=text.place)
                self._require_fit(len(ids), text.place, "the text")
                rows.append((ids, prompt_length))
        return table_of(rows, TEXTS)


def messages_json(prompt: Any) -> str:
    return "" if isinstance(prompt, str) else json.dumps(prompt)


def held_out_before(previous: Ref | None, name: str) -> set[str]:
    """What an earlier round held out: the contents of rows, and the prompts of which it trained on none."""
    if previous is None or not (previous.directory / f"held_out_{name}").is_dir():
        return set()
    held_out, trained = (read_dataset(previous.directory / part) for part in (f"held_out_{name}", name))
    prompts = {*held_out.column("prompt").to_pylist()} - {*trained.column("prompt").to_pylist()}
    return prompts | set(contents(held_out))


def contents(table: "Table") -> list[str]:
    """Each row as one text."""
    return [json.dumps(row, sort_keys=True) for row in table.to_pylist()]


def set_aside(
    table: "Table", *, num: int, context: StageContext, before: Collection[str] = ()
) -> "tuple[Table, Table]":
    """The table without, and with, about ``num`` held-out rows: those held out ``before``, and of the others those of the
    prompts that hash lowest.

    All rows of a prompt fall on one side; where few prompts make that impossible, rows are told apart by their whole
    content.
    """
    if num >= table.num_rows:
        raise DataError(f"{table.num_rows} rows are too few to hold {num} of them out; give more, or hold out fewer")
    by_prompt, by_content = table.column("prompt").to_pylist(), contents(table)
    for keys in (by_prompt, by_content):
        is_known = [key in before or content in before for key, content in zip(keys, by_content, strict=True)]
        ranks = [
            (not known, derive_seed(context.run_seed, "held_out", key))
            for known, key in zip(is_known, keys, strict=True)
        ]
        threshold = sorted(ranks)[num - 1]
        held_out = [known or rank <= threshold for known, rank in zip(is_known, ranks, strict=True)]
        if sum(held_out) <= 2 * num and sum(held_out) < table.num_rows:
            break
    return table.filter([not inside for inside in held_out]), table.filter(held_out)


def make_model(directory: Path, config: FromScratchConfig, texts: "list[Text]", *, seed: int) -> None:
    """A tokenizer trained on the texts and a Llama with random weights, saved as ``from_pretrained`` reads them."""
    pad, bos, eos = "<pad>", "<s>", "</s>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[pad, bos, eos],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [t.response if t.prompt is None else f"{t.prompt}{t.response}" for t in texts], trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=config.context_length,
        clean_up_tokenization_spaces=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=config.context_length,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                tie_word_embeddings=True,
            )
        )
    model.save_pretrained(str(directory))
    fast.save_pretrained(str(directory))
