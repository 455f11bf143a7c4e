"""Conversations written out as one text, and where in them an assistant's turn begins.

A text is split only after the written-out opening of an assistant's turn that is known here; where none is, or where two
readings are possible, there is doubt, and doubt is refused: shared first words of two answers would become prompt.
"""

import re
from dataclasses import dataclass

from tasks.errors import shorten

PARTED = "conversations that part before their last message"


@dataclass(frozen=True, slots=True)
class Template:
    """How one family of models, or of data sets, writes turns."""

    name: str
    opening: re.Pattern[str]
    """Opens an assistant's turn; white space that is the template's own belongs to it."""
    others: re.Pattern[str]
    """Opens a turn of anybody else."""
    end: re.Pattern[str] | None = None
    """What the template writes after an answer."""
    has_marks: bool = True
    """Whether its openings are marks that no other text has, rather than words before a colon."""
    needs_others: bool = False
    """Whether an opening counts only after another's turn, because its word is a common one."""
    turn_has_parts: bool = False
    """Whether one turn of the assistant has several openings."""


def _marks(name: str, opening: str, others: str, end: str, *, turn_has_parts: bool = False) -> Template:
    return Template(name, re.compile(opening), re.compile(others), re.compile(end), turn_has_parts=turn_has_parts)


def _words(name: str, opening: str, others: str, *, needs_others: bool, end: str | None = None) -> Template:
    ending = re.compile(end) if end else None
    return Template(name, re.compile(opening), re.compile(others), ending, has_marks=False, needs_others=needs_others)


def _labels(words: str) -> str:
    return rf"(?im:^[ \t]*(?:\#+[ \t]*)?(?:{words})[ \t]*[:：])"


TEMPLATES = (
    _marks(
        "ChatML",
        r"<\|im_start\|>assistant(?:\n|<\|im_sep\|>)",
        r"<\|im_start\|>(?!assistant)[\w-]+(?:\n|<\|im_sep\|>)",
        r"<\|im_end\|>",
    ),
    _marks(
        "Llama 3",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
        r"<\|start_header_id\|>(?!assistant)\w+<\|end_header_id\|>",
        r"<\|eot_id\|>|<\|end_of_text\|>",
    ),
    _marks(
        "Llama 4",
        r"<\|header_start\|>assistant<\|header_end\|>\n\n",
        r"<\|header_start\|>(?!assistant)\w+<\|header_end\|>",
        r"<\|eot\|>|<\|end_of_text\|>",
    ),
    _marks("Gemma", r"<start_of_turn>model\n", r"<start_of_turn>(?!model)\w+\n", r"<end_of_turn>"),
    # Llama 2 and Mistral; some of them write a space after the opening, some none, so it goes with the answer.
    _marks("[INST]", r"\[/INST\]", r"\[INST\]", r"</s>"),
    _marks(
        "<|assistant|>",
        r"<\|assistant\|>\n?",
        r"<\|(?:user|system|prompter|tool|observation)\|>",
        r"<\|end\|>|<\|endoftext\|>|</s>",
    ),
    _marks(
        "Command R",
        r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>",
        r"<\|START_OF_TURN_TOKEN\|><\|(?:USER|SYSTEM)_TOKEN\|>",
        r"<\|END_OF_TURN_TOKEN\|>",
    ),
    _marks("DeepSeek", r"<｜Assistant｜>", r"<｜User｜>", r"<｜end▁of▁sentence｜>"),
    _marks(
        "harmony",
        r"<\|start\|>assistant",
        r"<\|start\|>(?!assistant)[\w.]+",
        r"<\|return\|>|<\|end\|>",
        turn_has_parts=True,
    ),
    _marks(
        "Granite",
        r"<\|start_of_role\|>assistant<\|end_of_role\|>",
        r"<\|start_of_role\|>(?!assistant)\w+<\|end_of_role\|>",
        r"<\|end_of_text\|>",
    ),
    _marks("EXAONE", r"\[\|assistant\|\]", r"\[\|(?:user|system)\|\]", r"\[\|endofturn\|\]"),
    _marks("OpenChat", r"GPT4 Correct Assistant:", r"GPT4 Correct User:", r"<\|end_of_turn\|>"),
    # Anthropic's HH, Guanaco's "### Assistant:", and whoever writes the two words.
    _words("Assistant:", _labels("assistant"), _labels("human|user|system"), needs_others=False),
    _words("ASSISTANT:", r"(?<=[ >])ASSISTANT:", r"(?:^|(?<=[\s>]))USER:", needs_others=True, end="</s>"),
    _words("### Response:", _labels("response"), _labels("instruction|input"), needs_others=True),
    _words("Answer:", _labels("answer|a"), _labels("question|q"), needs_others=True),
    _words("AI:", _labels("ai|bot|chatbot|agent|gpt|model"), _labels("human|user|customer|person"), needs_others=True),
)
# Marks of turns that templates write, the known ones and others: a label beside them is part of what somebody says.
_MARK = re.compile(r"<[|｜][^<>\n]{1,40}>|<[^<>\n|｜]{1,40}[|｜]>|<(?:start|end)_of_turn>|\[/?INST\]")
_BEFORE_A_TURN = (
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<BOS_TOKEN>|<\|endoftext\|>|\[gMASK\]<sop>)*\s*"
)
# What a template, or whoever prompts a model that reasons, opens an answer with.
_PREFILL = re.compile(r"</?think>|<\|channel\|>\w+|<\|message\|>|\s")


@dataclass(frozen=True, slots=True)
class Split:
    """``prompt + response`` is the transcript, character for character."""

    prompt: str
    responses: tuple[str, str]
    template: Template

    @property
    def answers(self) -> list[str]:
        """The responses without what the template writes after an answer."""
        if self.template.end is None:
            return list(self.responses)
        ends = rf"(?:(?:{self.template.end.pattern})\s*)+\Z"
        return [re.sub(ends, "", response, count=1) for response in self.responses]


def split(first: str, second: str) -> Split | str:
    """How two transcripts of one prompt split: the responses begin after the last opening of an assistant's turn that both
    share, and white space goes with them, unless it is the template's own. ``PARTED`` where they differ before their last
    turn, else where the doubt lies, in words."""
    shared = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    begin = first[:shared]
    possible = [(template, cuts) for template in TEMPLATES if (cuts := _openings(template, begin))]
    if marked := [entry for entry in possible if entry[0].has_marks]:
        possible = marked
    elif _MARK.search(begin):
        possible = []
    if len(possible) > 1:
        possible = [entry for entry in possible if _begins(entry[0], begin)] or possible
    if not possible:
        return (
            f"after what both share, {shorten(begin[-40:])}, an answer may begin or go on: no known opening of an "
            "assistant's turn stands there"
        )
    template, cuts = possible[0]
    if len(possible) > 1:
        names = " or ".join(f"{template.name!r}" for template, _ in possible)
        return f"the answers may begin after {names}, which both stand in what the two share"
    if len(cuts) > 1 and not template.turn_has_parts:
        turn = shorten(begin[cuts[0] : cuts[-1]])
        return f"the answers may begin after the first or the last {template.name!r}: {turn} is part of them, or a turn"
    cut = cuts[0]
    responses = (first[cut:], second[cut:])
    for response in responses:
        if template.others.search(response) or (not template.turn_has_parts and template.opening.search(response)):
            return PARTED
        if template.end is not None and not template.turn_has_parts and _ends_early(template.end, response):
            return f"text follows the end of the answer {shorten(response)}"
    return Split(first[:cut], responses, template)


def _openings(template: Template, text: str) -> list[int]:
    """Where assistant's turns begin after the last turn of somebody else."""
    others = [match.end() for match in template.others.finditer(text)]
    if template.needs_others and not others:
        return []
    return [match.end() for match in template.opening.finditer(text, others[-1] if others else 0)]


def _begins(template: Template, text: str) -> bool:
    start = re.match(_BEFORE_A_TURN, text)
    position = start.end() if start else 0
    return any(pattern.match(text, position) for pattern in (template.opening, template.others))


def _ends_early(end: re.Pattern[str], response: str) -> bool:
    found = end.search(response)
    return found is not None and bool(end.sub("", response[found.end() :]).strip())


def ends_with_opening(prompt: str) -> bool:
    """Whether a text ends with the opening of an assistant's turn, so that an answer begins right after it."""
    return any(
        match.end() == len(prompt.rstrip()) or match.end() == len(prompt)
        for template in TEMPLATES
        for match in template.opening.finditer(prompt)
    )


def begins_with_turn(response: str) -> str | None:
    """The opening of a turn that a response begins with, which belongs into its prompt; a label only where people write
    nothing else by it."""
    for template in TEMPLATES:
        if not (template.has_marks or template.name in ("Assistant:", "### Response:")):
            continue
        position = re.match(_BEFORE_A_TURN, response).end()  # type: ignore[union-attr]
        if opened := template.opening.match(response, position):
            return opened[0].strip()
        opened = template.others.match(response, position)
        if opened and (template.has_marks or template.opening.search(response, opened.end())):
            return opened[0].strip()
    return None


def ends_with_answer(prompt: str) -> str | None:
    """What an assistant says at the end of a text that is a transcript, where it says something."""
    for template in TEMPLATES:
        if not (template.has_marks or (template.name == "Assistant:" and _begins(template, prompt))):
            continue
        cuts = _openings(template, prompt)
        if cuts and (answer := prompt[cuts[-1] :]) and _PREFILL.sub("", answer):
            return answer
    return None
