"""The digest of a function's code: what of the user's own files it follows, and what it does not.

Each case edits one file of a small tree and says whether the digest must change.
"""

import gc
import itertools
import os
import sys
import threading
from pathlib import Path

import pytest

from tasks.data.code_files import files_of, syntax_tree
from tasks.data.functions import code_digest
from tasks.errors import ConfigError

NUMBERS = itertools.count()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Writes files into the current directory, in a package of its own that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    name = f"tree{next(NUMBERS)}_{os.getpid()}"

    class Tree:
        package = name

        def write(self, path, text):
            file = tmp_path / path.replace("PKG", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("PKG", name))

        def digest(self, module="PKG_main"):
            return code_digest(f"{module.replace('PKG', name)}:reward")

    return Tree()


IMPORTS = {
    "a module beside it": ("import PKG_helper", "PKG_helper.py"),
    "by another name": ("import PKG_helper as h", "PKG_helper.py"),
    "a name from a module": ("from PKG_helper import x", "PKG_helper.py"),
    "everything from a module": ("from PKG_helper import *", "PKG_helper.py"),
    "inside of a function": ("def reward(p, r, rows):\n    import PKG_helper", "PKG_helper.py"),
    "where it may fail": ("try:\n    import PKG_helper\nexcept ImportError:\n    pass", "PKG_helper.py"),
    "a module of a package": ("import PKG.part", "PKG/part.py"),
    "a module of a package by from": ("from PKG import part", "PKG/part.py"),
    "a name from a module of a package": ("from PKG.part import x", "PKG/part.py"),
    "the package that a module is in": ("import PKG.part", "PKG/__init__.py"),
    "by a call": ("import importlib\nimportlib.import_module('PKG_helper')", "PKG_helper.py"),
    "by the function behind import": ("__import__('PKG.part')", "PKG/part.py"),
    "a package without a file": ("import PKG_space.deep.part", "PKG_space/deep/part.py"),
}


@pytest.mark.parametrize(("statement", "path"), IMPORTS.values(), ids=IMPORTS)
def test_an_edit_in_an_imported_module_of_the_users_changes_the_digest(tree, statement, path):
    tree.write("PKG/__init__.py", "y = 1\n")
    tree.write("PKG_main.py", f"{statement}\n")
    tree.write(path, "x = 1\n")
    before = tree.digest()
    tree.write(path, "x = 1  # one\n")
    assert tree.digest() == before
    tree.write(path, "x = 2\n")
    assert tree.digest() != before


def test_imports_are_followed_as_far_as_they_go_and_in_a_circle(tree):
    tree.write("PKG_main.py", "import PKG_a\n")
    tree.write("PKG_a.py", "import PKG_b\n")
    tree.write("PKG_b.py", "import PKG_c, PKG_main\n")
    tree.write("PKG_c.py", "x = 1\n")
    before = tree.digest()
    tree.write("PKG_c.py", "x = 2\n")
    assert tree.digest() != before


@pytest.mark.parametrize(
    ("statement", "path"),
    [
        ("from . import helper", "PKG/inner/helper.py"),
        ("from .helper import x", "PKG/inner/helper.py"),
        ("from .. import helper", "PKG/helper.py"),
        ("from ..other.helper import x", "PKG/other/helper.py"),
    ],
)
def test_relative_imports_are_followed(tree, statement, path):
    for package in ("PKG", "PKG/inner", "PKG/other"):
        tree.write(f"{package}/__init__.py", "")
    tree.write("PKG/inner/main.py", f"{statement}\n")
    tree.write(path, "x = 1\n")
    before = tree.digest("PKG.inner.main")
    tree.write(path, "x = 2\n")
    assert tree.digest("PKG.inner.main") != before


def test_relative_imports_of_a_package_count_from_the_package_itself(tree):
    tree.write("PKG/__init__.py", "from .helper import x\n")
    tree.write("PKG/helper.py", "x = 1\n")
    before = tree.digest("PKG")
    tree.write("PKG/helper.py", "x = 2\n")
    assert tree.digest("PKG") != before


def test_the_package_that_the_function_is_in_counts(tree):
    tree.write("PKG/__init__.py", "x = 1\n")
    tree.write("PKG/main.py", "from PKG import x\n")
    tree.write("PKG/alone.py", "y = 1\n")
    before = tree.digest("PKG.alone")
    tree.write("PKG/__init__.py", "x = 2\n")
    assert tree.digest("PKG.alone") != before


def test_a_module_that_is_not_imported_does_not_count(tree):
    tree.write("PKG_main.py", "x = 'import PKG_other'\n")
    tree.write("PKG_other.py", "x = 1\n")
    before = tree.digest()
    tree.write("PKG_other.py", "x = 2\n")
    assert tree.digest() == before


def test_libraries_do_not_count_even_those_of_an_environment_in_the_tree(tree, tmp_path, monkeypatch):
    tree.write("PKG_main.py", "import PKG_library, json, pytest\n")
    tree.write("env/lib/python3/site-packages/PKG_library.py", "x = 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "env" / "lib" / "python3" / "site-packages")])
    before = tree.digest()
    tree.write("env/lib/python3/site-packages/PKG_library.py", "x = 2\n")
    assert tree.digest() == before


def test_code_of_this_software_does_not_count(tree):
    tree.write("PKG_main.py", "from tasks.errors import DataError\nimport flows.cli\nimport PKG_helper\n")
    tree.write("PKG_helper.py", "x = 1\n")
    found = files_of(f"{tree.package}_main", Path(f"{tree.package}_main.py"))
    assert set(found) == {"", f"{tree.package}_helper"}


def test_nothing_is_executed_to_find_what_is_imported(tree, tmp_path):
    tree.write("PKG_main.py", "def reward(p, r, rows):\n    import PKG.part\n")
    tree.write("PKG/__init__.py", "open('executed', 'w')\n")
    tree.write("PKG/part.py", "open('executed', 'w')\n")
    tree.digest()
    assert not (tmp_path / "executed").exists()


def test_a_helper_that_does_not_parse_is_told(tree):
    tree.write("PKG_main.py", "import PKG_helper\n")
    tree.write("PKG_helper.py", "x = = 1\n")
    with pytest.raises(ConfigError, match="make the module importable"):
        tree.digest()


def test_an_import_of_what_is_not_there_changes_nothing_until_it_is(tree):
    tree.write("PKG_main.py", "import PKG_helper\n")
    before = tree.digest()
    tree.write("PKG_helper.py", "x = 1\n")
    sys.path_importer_cache.clear()
    assert tree.digest() != before


def test_files_are_read_by_several_threads_at_once():
    source = b"def one():\n    return [1, 2, {3: (4, 5)}]\n" * 400
    failures = []

    def parse():
        try:
            for _ in range(20):
                syntax_tree(source)
        except SystemError as error:
            failures.append(error)

    def collected(*_):  # Python code in the middle of a parse, where the threads may change
        sum(range(50))

    before = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)
    gc.callbacks.append(collected)
    threads = [threading.Thread(target=parse) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.callbacks.remove(collected)
        gc.set_threshold(*before[1])
        sys.setswitchinterval(before[0])
    assert failures == []
