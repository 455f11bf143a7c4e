"""What about a chat template is told before anything counts on it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tasks.data import Preference, Prompt, Text
from tasks.errors import ModelError, shorten
from tasks.text.chat_template import RESERVED, options_of, template_of, turn_of, variables_of
from tasks.text.clock import CLOCK, DATE, SETTING

_OWN_COLUMNS = ("bos_token", "eos_token", "pad_token", "unk_token", "raise_exception", "namespace", "dict", "range")


def doubts_about(tokenizer: PreTrainedTokenizerBase, *, has_answers: bool, has_system: bool) -> list[str]:
    """What to tell about a template that is about to be used; ``has_answers``: on dialogues whose answers are given.

    Raises:
        ModelError: prompts would end before the place where the template puts an answer.
    """
    name = tokenizer.name_or_path
    said: list[str] = []
    template = template_of(tokenizer, place="a prompt")
    if CLOCK in variables_of(tokenizer, template) and CLOCK not in options_of(tokenizer):
        said.append(
            f"the chat template of {name} may write today's date into prompts; so that a run is the same on every day, the "
            f"date is always {DATE}; {SETTING}.{CLOCK} sets another"
        )
    turn = turn_of(tokenizer)
    if turn is None:
        said.append(
            f"the chat template of {name} takes no answer after a question, so its end of turn is not known; responses end "
            f"with {tokenizer.eos_token}"
        )
        return said
    if not turn.opening and turn.before is not None and turn.before.strip():
        raise ModelError(
            f"the chat template of {name} writes {shorten(turn.before)} before an answer, but not for "
            "add_generation_prompt, so a prompt would end before the answer's start; append that text to it, inside of "
            "{% if add_generation_prompt %}"
        )
    if has_answers and turn.before is None:
        said.append(
            f"the chat template of {name} opens an answer that is to be sampled with {shorten(turn.opening)}, but one that "
            f"is given in another way; the answers of the data are read after the former ({SETTING} may make both agree)"
        )
    elif has_answers and turn.before and turn.before.strip():
        said.append(
            f"the chat template of {name} puts {shorten(turn.before)} before an answer that is given, but not before one "
            f"that is to be sampled; the answers of the data are read without it ({SETTING} may make both agree)"
        )
    if has_system and turn.drops_system:
        said.append(f"the chat template of {name} leaves system messages out, so no model of this run reads them")
    return said


def doubts_about_data(
    tokenizer: PreTrainedTokenizerBase, *, prompts: Sequence[Prompt], answers: Sequence[Preference | Text]
) -> list[str]:
    """What to tell before a template is used on these conversations; nothing where all is plain text.

    Raises:
        ModelError: as in ``doubts_about``.
    """
    conversations = [row.prompt for row in (*prompts, *answers) if isinstance(row.prompt, list)]
    if not conversations:
        options = options_of(tokenizer)
        return [f"{SETTING}: no row of the data is a conversation, so no template is used"] if options else []
    said = doubts_about(
        tokenizer,
        has_answers=any(isinstance(row.prompt, list) for row in answers),
        has_system=any(message.get("role") == "system" for messages in conversations for message in messages),
    )
    read = variables_of(tokenizer, template_of(tokenizer, place="a prompt")) - {*RESERVED, *_OWN_COLUMNS}
    columns = {name for row in prompts for name in row.extra}
    for name in sorted(columns & (read | {"chat_template_kwargs"})):
        said.append(
            f"the column {name} of the prompts goes to reward functions alone, although the chat template of "
            f"{tokenizer.name_or_path} has an option for it; {SETTING} sets one for all rows"
        )
    return said
