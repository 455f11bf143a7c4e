"""The versions that are installed: what the READMEs' commands get, and that no later release comes in unseen."""

import re
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in PROJECT["optional-dependencies"][name]] for name in ("test", "dev")}
TOOLS = [requirement for requirements in EXTRAS.values() for requirement in requirements if requirement.specifier]
CONSTRAINTS = (ROOT / "infra" / "constraints.txt").read_text()
PINS = [Requirement(line) for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
VERSIONS = {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in PINS}


def ends(requirement):
    return [Version(part.version) for part in requirement.specifier if part.operator in ("<", "==")]


@pytest.mark.parametrize("requirement", [*NEEDED, *TOOLS], ids=lambda requirement: requirement.name)
def test_each_requirement_is_installed_in_one_version_that_its_range_admits(requirement):
    assert VERSIONS[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_each_range_ends_within_two_minor_releases_of_what_is_installed(requirement):
    """The suite may have passed with one more than that; a major release it has never seen."""
    (end,) = ends(requirement)
    installed = VERSIONS[canonicalize_name(requirement.name)]
    if end.release[1:] in ((), (0,)):
        assert end.major == installed.major + 1
    else:
        assert end.major == installed.major
        assert installed.minor < end.minor <= installed.minor + 2


def test_constraints_name_one_version_of_each_package_and_no_place():
    assert len(VERSIONS) == len(PINS)
    for pin in PINS:
        assert re.fullmatch(r"==[0-9a-z.]+", str(pin.specifier))
        assert pin.url is None
    assert not re.search(r"://|^-", CONSTRAINTS, re.MULTILINE)


def test_constraints_are_for_linux_and_macos_with_and_without_cuda():
    conditions = {pin.name: pin.marker for pin in PINS}
    assert conditions["torch"] is None
    for name in ("triton", "nvidia-cudnn-cu13"):
        for platform, is_there in (("linux", True), ("darwin", False)):
            environment = {"sys_platform": platform, "python_full_version": "3.12.1", "python_version": "3.12"}
            assert conditions[name].evaluate(environment) is is_there


@pytest.mark.parametrize(
    ("name", "num"), [("README.md", 1), ("CONTRIBUTING.md", 2), ("infra/README.md", 1), (".ci/run", 2)]
)
def test_what_installs_the_project_installs_these_versions(name, num):
    commands = re.findall(r"^(?:python -m )?pip install\b.* -e .*", (ROOT / name).read_text(), re.MULTILINE)
    assert len(commands) == num
    for command in commands:
        assert "-c infra/constraints.txt" in command
