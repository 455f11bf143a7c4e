"""The files that a user's function is made of: its module, and what that imports from the user's own tree, and so on.

Nothing is executed: imports are read from the source, wherever in it they stand. Libraries are not followed, since they have
versions, nor is what only a running program knows: names of modules that it computes, and files that it reads.
"""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

LIBRARIES = ("site-packages", "dist-packages")
IMPORTERS = ("import_module", "__import__")
PARSE_TRIES = 20
MODULES_KEPT = 512
"""Modules of which is remembered what was read in them: pages and plans ask again and again. They are known by their
content, so that an edit is always seen."""
OURS = Path(__file__).resolve().parents[2]
OUR_PACKAGES = ("ppo_core", "tasks", "flows")


def files_of(module_name: str, origin: Path) -> dict[str, Path]:
    """The module's own file under an empty name, and by their names the modules of the user's tree that it needs."""
    found: dict[str, Path] = {}
    waiting = [(module_name, origin)]
    seen = {module_name}
    while waiting:
        name, path = waiting.pop()
        found["" if name == module_name else name] = path
        is_package = path.name == "__init__.py"
        for needed in [*_parents(name), *_imports(path, name, is_package=is_package)]:
            if needed in seen:
                continue
            seen.add(needed)
            spec = _spec(needed)
            if spec is not None and spec.origin is not None and _is_users(Path(spec.origin)):
                waiting.append((needed, Path(spec.origin)))
    return found


def syntax_tree(source: bytes) -> ast.Module:
    """Raises ``SyntaxError``, ``ValueError`` or ``RecursionError`` where it is no Python."""
    for _ in range(PARSE_TRIES - 1):
        # Before Python 3.11.8 the depth is counted over all threads that parse at the same time (CPython issue 106905).
        with suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


def _parents(name: str) -> list[str]:
    """The packages whose ``__init__`` runs before a module does."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _imports(path: Path, name: str, *, is_package: bool) -> tuple[str, ...]:
    """The names of all modules that a file may import, and of the packages that they are in."""
    if path.suffix != ".py":
        return ()
    return _imports_in(path.read_bytes(), name if is_package else name.rpartition(".")[0])


@lru_cache(maxsize=MODULES_KEPT)
def _imports_in(source: bytes, package: str) -> tuple[str, ...]:
    modules = [module for node in ast.walk(syntax_tree(source)) for module in _imported(node, package)]
    return tuple(dict.fromkeys(name for module in modules for name in (*_parents(module), module)))


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*(part for part in base if part), *([node.module] if node.module else [])])
        if module:
            yield module
        # What follows may be a module of the package as well as something in it.
        yield from (f"{module}.{alias.name}" if module else alias.name for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = node.args[0].value
        if called in IMPORTERS and isinstance(given, str) and not given.startswith("."):
            yield given


def _spec(name: str) -> ModuleSpec | None:
    """Where a module lies; found without importing the packages above it."""
    first, *rest = name.split(".")
    if first in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # By its last name: a package without a file would look its own package up among what is imported.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _is_users(path: Path) -> bool:
    """Whether a file belongs to the user: neither to Python, nor to a library, nor to this software."""
    path = path.resolve()
    if not path.is_file() or set(LIBRARIES) & set(path.parts):
        return False
    python = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
    ours = (OURS / package for package in OUR_PACKAGES)
    return not any(path.is_relative_to(place) for place in (*python, *ours))
