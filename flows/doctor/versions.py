"""Whether the packages that are installed are those that ours, and those that it needs, say they work with."""

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.doctor.finding import OK, PROBLEM, WARNING, Finding, State

OURS = "rlhf-rounds"
EXTRAS = ("", "vllm")
"""Parts of ours that somebody may have installed to run with; the others are for tests."""


def check_versions() -> list[Finding]:
    """Our own ranges, then those of what we need: a package that was installed later may have moved another's."""
    try:
        wanted = metadata.metadata(OURS)["Requires-Python"]
    except metadata.PackageNotFoundError:
        return [
            _finding(PROBLEM, f"{OURS} is not installed, so nothing says which versions it needs", "pip install -e .")
        ]
    python = platform.python_version()
    found = []
    if not SpecifierSet(wanted or "").contains(python, prereleases=True):
        found.append(_finding(PROBLEM, f"Python {python}, not {wanted}", f"make an environment with Python {wanted}"))
    needed = [requirement for extra in EXTRAS for requirement in required_by(OURS, extra)]
    found += [_finding(PROBLEM, *mismatch) for needs in needed if (mismatch := mismatch_of(needs, OURS))]
    known = {str(finding) for finding in found}
    for needs in needed:
        for theirs in required_by(needs.name, ""):
            mismatch = mismatch_of(theirs, needs.name)
            if mismatch and str(finding := _finding(WARNING, *mismatch)) not in known:
                known.add(str(finding))
                found.append(finding)
    return found or [_finding(OK, f"Python {python} and {len(needed)} packages are as {OURS} needs them", "")]


def required_by(name: str, extra: str) -> Iterator[Requirement]:
    """What an installed package needs here; of an extra, only what is installed, since nobody has to have it."""
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        always, here = (
            requirement.marker is None or requirement.marker.evaluate({"extra": part}) for part in ("", extra)
        )
        if always if not extra else here and not always and version_of(requirement.name) is not None:
            yield requirement


def mismatch_of(requirement: Requirement, who: str) -> tuple[str, str] | None:
    """What is wrong with an installed version, and the command that mends it."""
    installed = version_of(requirement.name)
    if installed is not None and requirement.specifier.contains(installed, prereleases=True):
        return None
    # Quoted, because < and > mean something to a shell.
    command = f"pip install '{requirement.name}{requirement.specifier}'"
    if installed is None:
        return f"{requirement.name} is not installed, and {who} needs it", command
    return f"{requirement.name} {installed} is installed, and {who} needs {requirement.specifier}", command


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _finding(state: State, found: str, next_move: str) -> Finding:
    return Finding(check="versions", state=state, found=found, next_move=next_move)
