"""Facts as pages: templates that escape whatever they show, numbers, times, and small pictures."""

import json
import math
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flows.addresses import page_path
from flows.pages.pictures import sparkline, two_histograms
from flows.query.tints import background
from flows.text import duration, number, printable, printable_lines
from tasks.metrics.declared import declared

LONGEST_TEXT = 4000
"""Characters of a text in a list; its own page shows all of it."""


@cache
def environment() -> Environment:
    found = Environment(
        loader=PackageLoader("flows.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "ago": ago,
        "as_data": as_data,
        "clock": clock,
        "cut": cut,
        "duration": duration,
        "is_special": is_special,
        "line": printable,
        "number": short_number,
        "signed": signed,
        "share": share,
        "sparkline": sparkline,
        "state_class": state_class,
        "text": printable_lines,
        "token": token_text,
        "words": words,
    }
    found.globals |= {
        "address": page_path,
        "background": background,
        "explained": explained,
        "two_histograms": two_histograms,
    }
    return found


def render(template: str, facts: Mapping[str, Any]) -> str:
    """A page, or a part of one."""
    return environment().get_template(template).render(facts)


def short_number(value: Any, digits: int = 3) -> str:
    """A number in three significant digits; whole ones, and those from 1000 on, without decimals."""
    if value is None:
        return "–"
    if isinstance(value, bool | str) or not math.isfinite(value):
        return printable(value)
    if not value or isinstance(value, int) or abs(value) >= 1000:
        return f"{value + 0:,.0f}".replace("-", "−")
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return number(value, min(decimals, digits)).replace("-", "−")


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    shown = short_number(value)
    return shown if value is None or shown.startswith("−") or not value else f"+{shown}"


def share(value: float | None) -> str:
    """A part of a whole, in percent."""
    return "–" if value is None else f"{round(100 * value)} %"


def words(name: object) -> str:
    return printable(name).replace("_", " ")


def state_class(state: str) -> str:
    """What the colour of a run's state says."""
    return state if state in ("running", "finished", "damaged", "unreadable") else "stopped"


def cut(text: object, longest: int = LONGEST_TEXT) -> str:
    """A text of several lines; of one that is too long, its beginning, and how much there is more."""
    whole = str(text)
    if len(whole) <= longest:
        return printable_lines(whole)
    return f"{printable_lines(whole[:longest])} … and {len(whole) - longest:,} more characters"


def token_text(token: str) -> str:
    """A token in the text that it is of: ends of lines are shown and kept."""
    return cut(token).replace("\n", "⏎\n")


def is_special(token: str) -> bool:
    """Whether a token looks like one that stands for no text: ``</s>``, ``<|user|>``, ``[INST]``."""
    return len(token) > 2 and (token[0], token[-1]) in (("<", ">"), ("[", "]"))


def clock(seconds: float | None) -> str:
    return "–" if not seconds else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def ago(seconds: float | None) -> str:
    """How long ago, in the unit that says it in one or two digits."""
    if not seconds:
        return "–"
    passed = max(0.0, time.time() - seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= size:
            return f"{passed // size:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def as_data(value: Any) -> Markup:
    """JSON for a script to read from the page, which cannot end its element. NaN and the like become null."""
    text = json.dumps(finite(value), ensure_ascii=False, default=str, separators=(",", ":"))
    escaped = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(escaped.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def finite(value: Any) -> Any:
    """The value, with null for each number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(own) for key, own in value.items()}
    return [finite(own) for own in value] if isinstance(value, list | tuple) else value


def explained(name: str, label: str | None = None) -> Markup:
    """A metric's name, which says on hover what it measures, where it should lie, and what to do where it does not."""
    metric = declared(name)
    shown = Markup.escape(printable(label or name))
    if metric is None:
        return shown
    parts = [f"{printable(name)}: {metric.meaning} ({metric.unit})"]
    parts += [f"healthy: {metric.healthy}"] if str(metric.healthy) else []
    parts += [f"otherwise: {metric.advice}"] if metric.advice else []
    return Markup('<abbr tabindex="0" title="{}">{}</abbr>').format("\n".join(parts), shown)
