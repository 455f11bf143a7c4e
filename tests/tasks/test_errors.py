"""The tree of errors, as it is drawn at the top of ``tasks/errors.py``."""

import importlib
import importlib.util
import pkgutil
import re

import flows
import ppo_core
import tasks
import tasks.errors

LINE = re.compile(r"^    ( *)(\w+)(?:  .*)?$")


def drawn_tree():
    """Each drawn class with the one that it is drawn below."""
    parents, above = {}, []
    drawing = tasks.errors.__doc__.split("\n\n")[1]
    for line in drawing.splitlines():
        indent, name = LINE.match(line).groups()
        depth = len(indent) // 2
        above[depth:] = [name]
        parents[name] = above[depth - 1] if depth else None
    return parents


NEEDS_RAY = "tasks.worker.machines.bridge"
"""Which has no errors of its own."""


def real_tree():
    """Each class of ours that is not private, and what it is derived from up to ``Exception``, with its base."""
    parents = {"Exception": None}
    for package in (ppo_core, tasks, flows):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name == NEEDS_RAY and importlib.util.find_spec("ray") is None:
                continue
            for found in vars(importlib.import_module(module.name)).values():
                is_error = isinstance(found, type) and issubclass(found, Exception)
                if is_error and found.__module__ == module.name and not found.__name__.startswith("_"):
                    line = found.__mro__[: found.__mro__.index(Exception)]
                    parents |= {error.__name__: error.__base__.__name__ for error in line}
    return parents


def test_the_tree_of_errors_is_the_one_that_is_drawn():
    assert drawn_tree() == real_tree()
