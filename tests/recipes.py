"""The recipes of CONTRIBUTING.md: in each, a line before every block says what to do with it.

In `FILE`, before `TEXT`:         the block stands before the only line that has this text, indented as that line is
In `FILE`, after `TEXT`:
In `FILE`, instead of `TEXT`:
At the end of `FILE`:
A new file `FILE`:
In a configuration:               what the result is tried with
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from documents import FENCED, PARTS, ROOT, section

DOCUMENT = "CONTRIBUTING.md"
STEPS = (
    r"In `(?P<path>[^`]+)`, (?P<where>before|after|instead of) `(?P<anchor>[^`]+)`:",
    r"At the (?P<where>end) of `(?P<path>[^`]+)`:",
    r"A (?P<where>new file) `(?P<path>[^`]+)`:",
    r"In a (?P<where>configuration):",
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One block of a recipe."""

    where: str
    text: str
    path: str = ""
    anchor: str = ""

    def carry_out(self, tree: Path) -> None:
        """Make this edit in a copy of the tree."""
        path = tree / self.path
        if self.where == "new file":
            assert not path.exists(), f"{self.path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text)
            return
        lines = path.read_text().splitlines()
        first, last = self._replaced(lines)
        indent = re.match(r" *", lines[first])[0] if first < len(lines) else ""
        block = [indent + line if line else line for line in self.text.splitlines()]
        path.write_text("\n".join([*lines[:first], *block, *lines[last:]]) + "\n")

    def _replaced(self, lines):
        """The lines in whose place the block comes: from the first on, before the last."""
        if self.where == "end":
            return len(lines), len(lines)
        found = [number for number, line in enumerate(lines) if self.anchor in line]
        assert len(found) == 1, f"{self.path} has {len(found)} lines with {self.anchor!r}"
        (at,) = found
        return {"before": (at, at), "after": (at + 1, at + 1), "instead of": (at, at + 1)}[self.where]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    edits: list[Step]
    configuration: str

    @property
    def files(self):
        return {edit.path for edit in self.edits}


def recipe(heading: str) -> Recipe:
    """What a recipe says."""
    text = section(DOCUMENT, heading)
    steps = [step_of(text[: block.start()], block[2]) for block in FENCED.finditer(text)]
    edits = [step for step in steps if step.where != "configuration"]
    (configuration,) = [step.text for step in steps if step.where == "configuration"]
    return Recipe(edits=edits, configuration=configuration)


def step_of(before: str, block: str) -> Step:
    said = before.rstrip().splitlines()[-1]
    found = [match for pattern in STEPS if (match := re.fullmatch(pattern, said))]
    assert found, f"{said!r} does not say where its block goes"
    return Step(text=block, **found[0].groupdict())


def carried_out(heading: str, tree: Path) -> Recipe:
    """A copy of this tree in which a recipe was carried out."""
    # What hidden files and caches have is not the project's.
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build")
    for path in ROOT.iterdir():
        if path.name in PARTS:
            shutil.copytree(path, tree / path.name, ignore=ignored)
        elif path.suffix in (".md", ".toml") or path.name == "LICENSE":
            shutil.copy2(path, tree)
    found = recipe(heading)
    for edit in found.edits:
        edit.carry_out(tree)
    return found


def new_files() -> set[str]:
    """The files that recipes make."""
    return set(
        re.findall(STEPS[2].replace("(?P<where>", "(?:").replace("(?P<path>", "("), section(DOCUMENT, "Recipes"))
    )
