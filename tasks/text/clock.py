"""The clock that chat templates see: it stands still."""

import datetime
from typing import Any

from tasks.errors import ConfigError

CLOCK = "strftime_now"
"""What a template calls for today's date."""
DATE = "2026-01-01"
"""What the clock shows where the options give no date."""
SETTING = "model.chat_template_kwargs"
# Given by their English names, since strftime takes those of the process's locale.
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def fixed_date(text: Any) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{SETTING}.{CLOCK}={text!r}: is no date; give one like {DATE}") from error


def in_codes(date: datetime.date) -> dict[str, str]:
    """What stands for each code of strftime at midnight of the date, whatever the locale and the time zone."""
    day, month = _DAYS[date.weekday()], _MONTHS[date.month - 1]
    numbers = {"d": f"{date.day:02}", "m": f"{date.month:02}", "y": f"{date.year % 100:02}", "j": f"{date:%j}"}
    hours = {"H": "00", "I": "12", "M": "00", "S": "00"}
    shown = {f"%-{code}": text.lstrip("0") or "0" for code, text in {**numbers, **hours}.items()}
    shown |= {f"%{code}": text for code, text in {**numbers, **hours}.items()}
    iso, us = f"{date.year:04}-{date.month:02}-{date.day:02}", f"{date.month:02}/{date.day:02}/{date.year % 100:02}"
    return shown | {
        "%Y": f"{date.year:04}",
        "%B": month,
        "%b": month[:3],
        "%h": month[:3],
        "%A": day,
        "%a": day[:3],
        "%e": f"{date.day:2}",
        "%u": str(date.isoweekday()),
        "%w": str(date.isoweekday() % 7),
        "%U": f"{date:%U}",
        "%W": f"{date:%W}",
        "%V": f"{date:%V}",
        "%G": f"{date:%G}",
        "%p": "AM",
        "%f": "000000",
        "%F": iso,
        "%D": us,
        "%x": us,
        "%X": "00:00:00",
        "%T": "00:00:00",
        "%R": "00:00",
        "%c": f"{day[:3]} {month[:3]} {date.day:2} 00:00:00 {date.year:04}",
        "%s": str(int(datetime.datetime(date.year, date.month, date.day, tzinfo=datetime.UTC).timestamp())),
        "%Z": "",
        "%z": "",
        "%n": "\n",
        "%t": "\t",
        "%%": "%",
    }
