"""Records encoded by a tokenizer, as the tables that ``prepare_data`` writes."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedTokenizerBase

from tasks.data import BadRow, Findings, Messages, Preference, Prompt, Text, as_json, content_key
from tasks.errors import DataError
from tasks.store import PREFERENCES, PROMPTS, TEXTS, Table, canonical_json, digest_text, table_of
from tasks.text.tokens import encode_dialogue, encode_prompt, encode_text, render_prompt


class Encoder:
    """Records to Arrow tables; rows that the template refuses or that do not fit the context are noted as bad."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, limit: int | None, findings: Findings, why_limited: str = ""
    ) -> None:
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

    def prompts(self, prompts: list[Prompt], response_tokens: int) -> Table:
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

    def preferences(self, preferences: list[Preference]) -> Table:
        rows = []
        # Where several sources hold the same preference, it is of the first of them.
        source_of: dict[str, int] = {}
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
                source = source_of.setdefault(preference_id, preference.source)
                answers = (preference.responses, preference.ranks)
                rows.append((preference_id, text, messages, *answers, preference.margin, source))
        return table_of(rows, PREFERENCES)

    def texts(self, texts: list[Text]) -> Table:
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


def messages_json(prompt: str | Messages) -> str:
    return "" if isinstance(prompt, str) else json.dumps(prompt)
