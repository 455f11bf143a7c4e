"""Text to token ids and back: the one place where the chat template, BOS and the end of a text are applied, each once.

- Plain text gets what the tokenizer itself puts before a text (a BOS, or nothing), unless the text begins with it.
- A conversation gets what its chat template writes and nothing else, as from ``apply_chat_template(tokenize=True)``: a
  template that wants a BOS writes one.
- What a tokenizer puts after a text is never used. A text that is whole ends with one EOS, an answer of a conversation with
  what the template writes at its end (``tasks.endings``), because we add it here.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tasks.data import Messages
from tasks.errors import ConfigError, ModelError
from tasks.store import PATTERNS, TEMPLATES, files_below, lies_inside, read_json
from tasks.text.chat_template import OPTIONS_FILE, bind_options, render
from tasks.text.endings import GENERATION_CONFIG, Ending, bind_declared, ending_of, terminators

# What `save_pretrained` of any tokenizer class writes, the code of those that bring their own, and what says where a text
# ends: saving a model writes that anew, in the words of the library's version.
_TOKENIZER_FILES = (
    GENERATION_CONFIG,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    TEMPLATES,
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tokenization_*.py",
)


def load_tokenizer(
    path: str, *, trust_remote_code: bool = False, chat_template_kwargs: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's directory; its template is used with the options given, else with those saved there.

    Raises:
        ModelError: there is no tokenizer that `transformers` can read, or what ends its texts is not readable.
        ConfigError: an option that the template does not read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # `tokenizers` raises plain Exception for a file that it cannot read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path} has no tokenizer that loads ({reason}); name a model directory with tokenizer.json and "
            f"tokenizer_config.json"
        ) from error
    directory = Path(path)
    bind_declared(tokenizer, directory)
    bind_options(tokenizer, chat_template_kwargs or read_json(directory / OPTIONS_FILE, default={}))
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files as they are: saving a loaded tokenizer may rewrite them.

    Of those alone that a model is made of: another file of such a name is in no digest, or may be a link to anything.
    """
    own = set(files_below(source, PATTERNS))
    for file in files_below(source, _TOKENIZER_FILES):
        if file in own and lies_inside(file, source):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, *, name: str) -> None:
    """Refuse a tokenizer that cannot train the model in ``name``, whose embedding has ``vocab_size`` rows.

    A smaller vocabulary is fine, since embeddings are often padded to a round size.

    Raises:
        ModelError: there is no EOS or pad token, or a token id that the embedding lacks.
    """
    file = f"{name}/tokenizer_config.json"
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f'the tokenizer of {name} has no EOS token, so no response could end; add "eos_token" to {file}, '
            f"the token that ended the texts the model was trained on"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f'the tokenizer of {name} has no pad token; add "pad_token": "{tokenizer.eos_token}" to {file} '
            f"(the EOS token serves: padding is masked by position, not by id)"
        )
    token, highest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if highest >= vocab_size:
        raise ModelError(
            f"the tokenizer of {name} has {len(tokenizer):,} tokens (the last is {token!r} with id {highest:,}) but "
            f"the model's embedding has {vocab_size:,} rows; use the tokenizer that came with the model, or resize the "
            f"embedding and save the model again"
        )


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, *, place: str = "a prompt") -> str:
    """The prompt as the model reads it: text as it is, messages through the chat template up to the answer's start.

    To show or to search in. For token ids give the messages to ``encode_prompt``: in rendered text it cannot see that
    the template had its say on BOS.

    Raises:
        ModelError: messages, but the tokenizer has no chat template.
        DataError: the template refuses this conversation; names ``place``.
    """
    if isinstance(prompt, str):
        return prompt
    return render(tokenizer, prompt, add_generation_prompt=True, place=place)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, *, place: str = "a prompt") -> list[int]:
    """Token ids after which a policy samples its response. Errors as in ``render_prompt``."""
    text = render_prompt(tokenizer, prompt, place=place)
    return _encode(tokenizer, text, begin=isinstance(prompt, str))


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    response: str,
    *,
    complete: bool = True,
    to_the_end: bool = False,
    place: str = "a prompt",
) -> tuple[list[int], int]:
    """Token ids of a prompt and its response, and how many of them are the prompt.

    A complete response ends exactly once: after a plain prompt with the EOS, in a conversation with the template's end of
    turn; otherwise nothing is added. ``to_the_end`` adds what the template writes after that, a line's end often: models
    of others have read it so. Prompt and response are encoded as one text, so that a word at the seam reads as it does
    anywhere else. Where that changes the prompt's own last tokens, a plain text counts as prompt only what stays the same;
    in a conversation the prompt's ids come first unchanged, as they do when a policy answers.
    """
    plain = isinstance(prompt, str)
    text = render_prompt(tokenizer, prompt, place=place)
    prompt_ids = _encode(tokenizer, text, begin=plain)
    ids = _encode(tokenizer, text + response, begin=plain)
    length = _shared(prompt_ids, ids)
    if length == len(ids) or (length < len(prompt_ids) and (not plain or length == 0)):
        ids = prompt_ids + _encode(tokenizer, response, begin=False)
        length = len(prompt_ids)
    if complete:
        ending = None if plain else ending_of(tokenizer)
        kept = [*ids[:length], *_without_end(tokenizer, ids[length:], ending)]
        end = (_eos(tokenizer),) if ending is None else (*ending.ids, *(ending.rest if to_the_end else ()))
        ids = [*kept, *end]
    return ids, length


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a whole text: what the tokenizer puts before one, the text, one EOS."""
    before, ids = _encode_parts(tokenizer, text)
    ids = _begun(before, ids)
    return [*ids[: len(before)], *_without_end(tokenizer, ids[len(before) :], None), _eos(tokenizer)]


def encode_fragment(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a part of a text, and nothing around them."""
    return _encode(tokenizer, text, begin=False)


def decode_response(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], *, finished: bool = True, special_tokens: bool = False
) -> str:
    """The text of a response, such that ``prompt + response`` reads right, without what ended it where it is ``finished``.

    ``special_tokens`` shows those that are part of the response. Decoded alone, a response would lose the space before its
    first word with tokenizers that put one before every text.
    """
    ending = ending_of(tokenizer)
    if finished and ids and ids[-1] in {*terminators(tokenizer), *tokenizer.all_special_ids}:
        ids = _without_end(tokenizer, ids[:-1], ending)
    text = _decode_after_text(tokenizer, ids, skip_special_tokens=not special_tokens)
    if finished and ending is not None and ending.stop_string is not None:
        # What follows it is the rest of the token that completed it.
        text = text.partition(ending.stop_string)[0]
    return text


def stop_checker(
    tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...]
) -> Callable[[list[int]], bool] | None:
    """A function that says whether a response, ids so far, ends within a token that completed one of ``stop_strings``.

    Meant to be asked after each token: it reads only as many of the last tokens as a stop string may take.

    Raises:
        ConfigError: a stop string is empty.
    """
    if not stop_strings:
        return None
    if not all(stop_strings):
        raise ConfigError(f"stop_strings={list(stop_strings)} holds an empty one, which would stop at once; remove it")
    # A token that carries text carries at least one byte; two more for those that carry none.
    reach = max(len(stop.encode()) for stop in stop_strings) + 2

    def stopped(ids: list[int]) -> bool:
        # A tail that begins inside a character may decode as U+FFFD as a whole; a character has at most four bytes.
        for more in range(4):
            tail = _decode_after_text(tokenizer, ids[-reach - more :], skip_special_tokens=False)
            if any(stop in tail for stop in stop_strings):
                return True
            if "\ufffd" not in tail:
                return False
        return False

    return stopped


def _encode_parts(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and the ids of ``text`` alone; what it puts after one is left out."""
    encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    # The mask marks what the tokenizer added, not special tokens that are written in the text.
    added = encoded["special_tokens_mask"]
    start = added.index(0) if 0 in added else len(added)
    ids = [token for token, extra in zip(encoded["input_ids"], added, strict=True) if not extra]
    return encoded["input_ids"][:start], ids


def _begun(before: list[int], ids: list[int]) -> list[int]:
    return ids if ids[: len(before)] == before else before + ids


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, begin: bool) -> list[int]:
    before, ids = _encode_parts(tokenizer, text)
    return _begun(before, ids) if begin else ids


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f'the tokenizer of {tokenizer.name_or_path} has no EOS token to end a text with; add "eos_token" to its '
            "tokenizer_config.json, the token that ended the texts the model was trained on"
        )
    return int(tokenizer.eos_token_id)


def _without_end(tokenizer: PreTrainedTokenizerBase, ids: list[int], ending: Ending | None) -> list[int]:
    """``ids`` without EOS and this ending at their end, nor special tokens that only begin the ending."""
    whole = [] if ending is None else list(ending.ids)
    special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    begun = [whole[:n] for n in range(len(whole), 0, -1) if n == len(whole) or special.issuperset(whole[:n])]
    if tokenizer.eos_token_id is not None:
        begun.append([int(tokenizer.eos_token_id)])
    end = len(ids)
    while own := next((len(part) for part in begun if len(part) <= end and ids[end - len(part) : end] == part), 0):
        end -= own
    return ids[:end]


def _decode_after_text(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool) -> str:
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    anchor = _encode(tokenizer, "a", begin=False)
    before = tokenizer.decode(anchor, **options)
    return str(tokenizer.decode(anchor + ids, **options)).removeprefix(before)


def _shared(first: list[int], second: list[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def encode_dialogues(
    tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], responses: Sequence[str], *, to_the_end: bool = False
) -> list[list[int]]:
    """Token ids of a prompt with each of its complete responses, for a model of this tokenizer."""
    prompt = json.loads(row["messages"]) if row["messages"] else row["prompt"]
    return [encode_dialogue(tokenizer, prompt, response, to_the_end=to_the_end)[0] for response in responses]
