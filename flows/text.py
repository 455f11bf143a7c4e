"""Words and numbers as the terminal shows them.

Whatever a model or a data file wrote goes through ``printable`` first: a response may hold the sequences that move a
terminal's cursor, retitle its window or reverse the direction of text.
"""

import codecs
import io
import json
import math
import unicodedata
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.store import Place
import string

# Control, format (among them the marks that reverse text), surrogate and private characters, and the two odd line ends.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
ESCAPED = "rounds.escaped"
SHOWN_AS = {"\n": "⏎", "\t": "⇥"}


def escape_what_streams_lack(*streams: IO[str]) -> None:
    """Have text streams that know few characters, such as those of an ASCII terminal, show the others as ``\\uXXXX``.

    That is what JSON takes too, so that what is printed as JSON stays JSON.
    """
    codecs.register_error(ESCAPED, _escaped)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


def printable(text: object, width: int | None = None) -> str:
    """Text on one line without anything that acts on a terminal; longer than ``width``, it is cut and ends in …"""
    shown = str(text)
    # What has nothing else is told at once: pages show thousands of texts.
    shown = shown if shown.isprintable() else "".join(map(_shown, shown))
    return shown if width is None or len(shown) <= width else f"{shown[: max(0, width - 1)]}…"


def _shown(character: str) -> str:
    if character in SHOWN_AS:
        return SHOWN_AS[character]
    if unicodedata.category(character) in UNPRINTABLE:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


def printable_lines(text: object) -> str:
    """Text of several lines without anything else that acts on a terminal."""
    return "".join(c if c in SHOWN_AS else _shown(c) for c in str(text))


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals; – where there is none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def duration(seconds: float | None) -> str:
    """``8.3 s``, ``2 min 05 s`` or ``1 h 02 min``."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def stage_label(stage: str, place: "Place") -> str:
    """``round 1 · iteration 3 · generate rollouts``."""
    parts = [f"round {place.round}"] if place.round else []
    parts += [f"iteration {place.iteration}"] if place.iteration else []
    parts.append(stage.replace("_", " "))
    parts += [f"shard {place.shard + 1}"] if place.shard else []
    return " · ".join(parts)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that reads as it is, but for characters that would act on a terminal: those are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    return "".join(c if c == "\n" or unicodedata.category(c) not in UNPRINTABLE else json.dumps(c)[1:-1] for c in text)


def escaped_character(char: str, markup: str = string.punctuation) -> str:
    if char == "\n":
        return " ↵ "
    # Control and format characters could hide text or turn its direction.
    if char != "\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return "�"
    return f"\\{char}" if char in markup else char


def marked_literal(text: str, markup: str) -> str:
    """Text on one line of Markdown, with a backslash before what would be markup there."""
    return "".join(escaped_character(char, markup) for char in text)
