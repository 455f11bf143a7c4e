"""The documents of this repository as tests read them: their blocks of code, words in code, links and headings."""

import re
import shlex
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("flows", "infra", "ppo_core", "tasks", "tests")
ROOMS = [
    directory
    for part in ("flows", "tasks")
    for directory in sorted((ROOT / part).iterdir())
    if (directory / "__init__.py").exists()
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
# Where a command of the shell ends.
SEPARATORS = ("&&", "&", "|", ";")


@cache
def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def names():
    """Every document, relative to the root."""
    below = [path for part in PARTS for path in (ROOT / part).rglob("*.md")]
    found = [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *below)]
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def blocks(name, language):
    """What stands in the fenced blocks of a language; "" is a block without one."""
    return [text for found, text in FENCED.findall(read(name)) if found == language]


def prose(name):
    """A document without its blocks."""
    return FENCED.sub("", read(name))


def words_in_code(name):
    """What stands between backticks, on one line."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(name))]


def links(name):
    """Where its links and pictures lead that are no addresses of the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]+`", "", prose(name)))
    return [link for link in found if "://" not in link]


def anchors(name):
    """What its headings are linked to by, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(name, heading):
    """A document from this heading to the next one of its level."""
    level = re.search(rf"^(#+) {re.escape(heading)}$", read(name), re.MULTILINE)
    assert level is not None, f"{name} has no heading {heading}"
    rest = read(name)[level.end() :]
    return re.split(rf"^#{{1,{len(level[1])}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text):
    """The cells of the rows of the tables in a text, without their heads."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("|")]
    heads = {number - 1 for number, line in enumerate(lines) if re.fullmatch(r"[|\- ]+", line)}
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for number, line in enumerate(lines)
        if number not in heads and number - 1 not in heads
    ]


def commands(name):
    """The commands of its blocks for a shell, and those behind a $ in what a terminal showed, as words."""
    lines = [line for text in blocks(name, "bash") for line in text.splitlines()]
    lines += [line[2:] for text in blocks(name, "") for line in text.splitlines() if line.startswith("$ ")]
    found = [[]]
    for line in lines:
        for word in shlex.split(line, comments=True):
            if word in SEPARATORS:
                found.append([])
            elif found[-1] or not ASSIGNMENT.fullmatch(word):
                found[-1].append(word)
        found.append([])
    return [words for words in found if words]
