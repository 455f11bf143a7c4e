"""Chat templates: programs of a model's author, rendered here alone, and probed before anything counts on them.

Nothing but the messages, the options of ``model.chat_template_kwargs`` and the template itself decides what is written: the
clock that a template may ask for shows one date, and a template that draws at random is refused.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from tasks.data import Messages
from tasks.errors import ConfigError, DataError, ModelError, shorten
from tasks.text.clock import CLOCK, DATE, SETTING, fixed_date, in_codes
from tasks.text.limited import LimitError, run_limited

OPTIONS_FILE = "chat_template_kwargs.json"
"""Lies beside a tokenizer whose template has been used with options; copied with the tokenizer's own files."""
MAX_SECONDS = 10.0
"""Of computing for one conversation, which takes a millisecond."""
MAX_MEMORY = 2**30
"""Bytes that rendering one conversation may ask for."""
MAX_LENGTH = 2**24
"""Characters that a template may write for one conversation; more than the longest context has."""
# What we pass, or what `apply_chat_template` takes for itself instead of passing it on.
RESERVED = (
    "messages",
    "conversation",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "sanitize_control_tokens",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
)
_RANDOM = ("lipsum", "|random")
SYSTEM, _USER, _ANSWER = "Zq3systemq3Z", "Zq5questionq5Z", "Zq7answerq7Z"
"""Texts that no template writes by itself, and that trimming and splitting leave alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a template writes around the last answer of a conversation."""

    opening: str
    """What ``add_generation_prompt`` appends to a conversation that ends with a question."""
    before: str | None
    """What stands before a given answer beyond the rendered prompt; None where the prompt is not how the whole begins."""
    after: str
    """What follows the answer."""
    drops_system: bool
    """Whether a system message leaves no trace."""


def options_of(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    """The options that the tokenizer's template is used with."""
    options: Mapping[str, Any] = getattr(tokenizer, "chat_template_kwargs", {})
    return options


def bind_options(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
    """Have the tokenizer's template used with these options from now on.

    Raises:
        ConfigError: an option that the template does not read, that we set ourselves, or a date that is none.
        ModelError: there is no template, or it is not one.
    """
    if not options:
        return
    template = template_of(tokenizer, place=SETTING)
    read = variables_of(tokenizer, template)
    for name in options:
        if name in RESERVED:
            raise ConfigError(f"{SETTING}.{name}: is set for each use of the template; leave it out")
        if name not in read:
            known = ", ".join(sorted(read - {*RESERVED, *tokenizer.special_tokens_map, "raise_exception"})) or "nothing"
            raise ConfigError(
                f"{SETTING}.{name}: the chat template of {tokenizer.name_or_path} never reads {name}, so it would change "
                f"nothing; it reads {known}"
            )
    if CLOCK in options:
        fixed_date(options[CLOCK])
    tokenizer.chat_template_kwargs = dict(options)


def template_of(tokenizer: PreTrainedTokenizerBase, *, place: str) -> str:
    """The template for conversations without tools.

    Raises:
        ModelError: there is none.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{place} is a list of messages, but the tokenizer of {tokenizer.name_or_path} has no chat template; "
            f"use an instruction-tuned model, add chat_template.jinja to its directory, or give the prompts as text"
            if place != SETTING
            else f"{SETTING}: the tokenizer of {tokenizer.name_or_path} has no chat template; leave it out"
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several templates, none of which is the default
        raise ModelError(
            f"{place}: the tokenizer of {tokenizer.name_or_path} has chat templates for special uses alone "
            f"({', '.join(tokenizer.chat_template)}); add one named default"
        ) from error


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool, place: str = "a prompt"
) -> str:
    """The conversation as the template writes it.

    Raises:
        ModelError: the tokenizer has no chat template, or its template draws at random, or passes a limit.
        DataError: the template refuses this conversation; names ``place``.
    """
    # The library imports it on the way, and a gigabyte of it is not the template's.
    import torch  # noqa: F401

    template = _still(tokenizer, place)
    options = {name: value for name, value in options_of(tokenizer).items() if name != CLOCK}
    try:
        text = run_limited(
            lambda: str(
                tokenizer.apply_chat_template(
                    messages,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **options,
                )
            ),
            seconds=MAX_SECONDS,
            more_bytes=MAX_MEMORY,
        )
        if len(text) > MAX_LENGTH:
            raise LimitError(f"writes more than {MAX_LENGTH:,} characters")
        return text
    except LimitError as error:
        raise ModelError(
            f"{place}: the chat template of {tokenizer.name_or_path} {error} for the messages {shorten(messages)}; mend it"
        ) from None
    except Exception as error:  # a template is a program of the model's author
        raise DataError(
            f"{place}: the chat template of {tokenizer.name_or_path} refuses the messages {shorten(messages)} ({error}); "
            f"give roles and an order that it knows"
        ) from error


def turn_of(tokenizer: PreTrainedTokenizerBase) -> Turn | None:
    """How the template writes an answer, found by having it write one; None without a template, or if it takes no answer."""
    return remembered(tokenizer, _probe) if tokenizer.chat_template else None


def variables_of(tokenizer: PreTrainedTokenizerBase, template: str) -> set[str]:
    """The names that a template looks up from outside of itself.

    Raises:
        ModelError: it cannot be read, it draws at random, or reading it passes a limit: Jinja computes constants then.
    """
    import jinja2
    from jinja2 import meta, nodes

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    # The library's own tag, which changes nothing of what is written.
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)
    try:
        tree = environment.parse(plain)
    except jinja2.TemplateError as error:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} is not readable as Jinja ({error}); mend it"
        ) from error
    if next(tree.find_all(nodes.Pow), None) is not None:
        # The one operation that can take for ever by itself.
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} computes powers (**), which have no bound; take that out"
        )
    filters = {f"|{node.name}" for node in tree.find_all(nodes.Filter)}
    if drawn := sorted((filters | {node.name for node in tree.find_all(nodes.Name)}) & set(_RANDOM)):
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} draws at random ({drawn[0]}), so no two runs would have the "
            "same prompts; take that out"
        )
    try:
        return run_limited(lambda: meta.find_undeclared_variables(tree), seconds=MAX_SECONDS, more_bytes=MAX_MEMORY)
    except LimitError as error:
        raise ModelError(f"the chat template of {tokenizer.name_or_path} {error}; mend it") from None


Found = TypeVar("Found")
_MEMORY: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[Hashable, ...], Any]] = WeakKeyDictionary()


def remembered(
    tokenizer: PreTrainedTokenizerBase, find: Callable[[PreTrainedTokenizerBase], Found], *more: Hashable
) -> Found:
    """``find(tokenizer)``, found once for each template, set of options, and what else decides it."""
    key = (find, str(tokenizer.chat_template), tokenizer.eos_token, repr(options_of(tokenizer)), *more)
    memory = _MEMORY.setdefault(tokenizer, {})
    if key not in memory:
        memory[key] = find(tokenizer)
    found: Found = memory[key]
    return found


def _probe(tokenizer: PreTrainedTokenizerBase) -> Turn | None:
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}
    system = {"role": "system", "content": SYSTEM}
    # Some templates want a system message, some none; some want a question last.
    for messages, more in (([user], []), ([system, user], []), ([user], [user])):
        try:
            bare = render(tokenizer, messages, add_generation_prompt=False)
            opened = render(tokenizer, messages, add_generation_prompt=True)
            whole = render(tokenizer, [*messages, answer, *more], add_generation_prompt=False)
        except DataError:
            continue
        if _ANSWER not in whole:
            continue
        start, _, after = whole.rpartition(_ANSWER)
        opening = opened[len(bare) :] if opened.startswith(bare) else opened
        # Where the next answer is opened whether asked for or not, that is no end of this one.
        after = after.partition(_USER)[0] if more else after.removesuffix(opening or "\0")
        return Turn(
            opening=opening,
            before=start[len(opened) :] if start.startswith(opened) else None,
            after=after,
            drops_system=_drops_system(tokenizer, system, user),
        )
    return None


def _drops_system(tokenizer: PreTrainedTokenizerBase, system: dict[str, str], user: dict[str, str]) -> bool:
    try:
        return SYSTEM not in render(tokenizer, [system, user], add_generation_prompt=True)
    except DataError:
        return False  # it says so itself


def _still(tokenizer: PreTrainedTokenizerBase, place: str) -> str:
    """The template with a clock that stands still, where it asks for one."""

    def find(tokenizer: PreTrainedTokenizerBase) -> str:
        template = template_of(tokenizer, place=place)
        if CLOCK not in variables_of(tokenizer, template):
            return template
        date = fixed_date(options_of(tokenizer).get(CLOCK, DATE))
        shown = "".join(f" | replace({code!r}, {text!r})" for code, text in in_codes(date).items())
        # A macro hides the library's function of that name; "+" keeps whatever whitespace the template begins with.
        return f"{{%- macro {CLOCK}(format) -%}}{{{{ format{shown} }}}}{{%- endmacro +%}}{template}"

    return remembered(tokenizer, find) if tokenizer.chat_template else template_of(tokenizer, place=place)
