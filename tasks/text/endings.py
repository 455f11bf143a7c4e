"""What ends a response, and what a text that is whole ends with.

A response ends at the tokenizer's EOS, at every id of the checkpoint's generation configuration, and at what the chat
template writes after an answer, which is found by having it write one. A text that is whole ends with the EOS, an answer of
a conversation with what the template writes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tasks.errors import ModelError, shorten
from tasks.text.chat_template import remembered, turn_of

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an answer of a conversation ends."""

    ids: tuple[int, ...]
    """From the answer's last character to the end of the turn; the last one ends it."""
    rest: tuple[int, ...] = ()
    """What the template writes after that."""
    stop_string: str | None = None
    """The end of the turn where it is spelt out in ordinary tokens, of which none alone ends anything."""


def declared_eos_ids(directory: Path) -> tuple[int, ...]:
    """The ids that end a text by a checkpoint's own word: those of its generation configuration, else of its config.json.

    Raises:
        ModelError: a file that is not readable, or holds something else than ids.
    """
    for name in (GENERATION_CONFIG, "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not readable as JSON ({error}); mend it, or remove it") from error
        if not isinstance(settings, dict):
            raise ModelError(f"{path} holds {shorten(settings)}, not a mapping of settings; mend it, or remove it")
        declared = settings.get("eos_token_id")
        ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
            raise ModelError(
                f"{path}: eos_token_id is {shorten(declared)}, not a token id or a list of them; correct it, or remove it"
            )
        if ids:
            return tuple(ids)
    return ()


def declared_by(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that the checkpoint of the tokenizer declares; none for a tokenizer that comes from no checkpoint."""
    declared: tuple[int, ...] = getattr(tokenizer, "declared_eos_ids", ())
    return declared


def terminators(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token ids of which each ends a response, sorted."""
    ids = {*declared_by(tokenizer), *_own_eos(tokenizer)}
    ending = ending_of(tokenizer)
    if ending is not None and ending.stop_string is None:
        ids.add(ending.ids[-1])
    return tuple(sorted(token for token in ids if token < len(tokenizer)))


def ending_of(tokenizer: PreTrainedTokenizerBase) -> Ending | None:
    """The end of an answer by the chat template; None where the template writes none, so that the EOS ends it."""
    return remembered(tokenizer, _find_ending, declared_by(tokenizer))


def doubts_about_endings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What to tell about ids that a checkpoint declares and that no text of the model can end with, or would by chance."""
    known = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    said = []
    for token in sorted({*declared_by(tokenizer)}):
        where = f"{GENERATION_CONFIG} or config.json of {tokenizer.name_or_path}: eos_token_id {token}"
        if token >= len(tokenizer):
            said.append(f"{where} is beyond the {len(tokenizer)} tokens of the tokenizer, so nothing ends with it")
        elif token not in known:
            text = tokenizer.convert_ids_to_tokens(token)
            said.append(f"{where} is the ordinary token {text!r}; responses end wherever it is written")
    return said


def _own_eos(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}


def _find_ending(tokenizer: PreTrainedTokenizerBase) -> Ending | None:
    turn = turn_of(tokenizer)
    if turn is None or not turn.after.strip():
        return None
    text = turn.after.lstrip()
    tokens: dict[str, int] = {str(token): i for i, token in tokenizer.added_tokens_decoder.items()}
    tokens |= {token: int(tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens}
    # Some tokenizers have runs of blanks as tokens of their own.
    run = _first_run(text, {token: i for token, i in tokens.items() if token.strip()})
    if not run:
        text = text.rstrip()
        return Ending(ids=tuple(_ids(tokenizer, text)), stop_string=text)
    known = {*declared_by(tokenizer), *_own_eos(tokenizer)}
    # Some templates close a part of the answer first, and then the turn.
    end = next((end for end, token in run if token in known), run[0][0])
    return Ending(ids=tuple(_ids(tokenizer, text[:end])), rest=tuple(_ids(tokenizer, text[end:])))


def _first_run(text: str, tokens: dict[str, int]) -> list[tuple[int, int]]:
    """The first added token of a text and those that follow it without a gap, as (end in the text, id)."""
    run: list[tuple[int, int]] = []
    position = 0
    while position < len(text):
        here = max((token for token in tokens if text.startswith(token, position)), key=len, default=None)
        if here is not None:
            position += len(here)
            run.append((position, tokens[here]))
        elif run:
            break
        else:
            position += 1
    return run


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    from tasks.text.tokens import encode_fragment

    return encode_fragment(tokenizer, text) if text else []


def bind_declared(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Remember with the tokenizer what the checkpoint in its directory declares."""
    tokenizer.declared_eos_ids = declared_eos_ids(directory)
