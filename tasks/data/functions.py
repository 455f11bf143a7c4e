"""Functions that a configuration names by import path: data sources and reward functions."""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.config import parse_import_path
from tasks.data.code_files import MODULES_KEPT, files_of, syntax_tree
from tasks.errors import ConfigError, shorten
from tasks.store import found_or_known

TOKEN_IDS, WITH_SPECIAL_TOKENS = "response_token_ids", "responses_with_special_tokens"
ON_REQUEST = (TOKEN_IDS, WITH_SPECIAL_TOKENS)


def import_function(import_path: str, *, field: str) -> Callable[..., Any]:
    """The callable that ``package.module:callable`` names; the current directory is importable.

    Raises:
        ConfigError: naming ``field``: the form is wrong, the module is missing or fails, or it has no such callable.
    """
    module_name, attribute = parse_import_path(import_path, field=field)
    _make_current_directory_importable()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not _is_part(error.name, module_name):
            raise _import_failed(import_path, field, error) from error
        raise ConfigError(
            f"{field}: {import_path} names the module {module_name}, but there is no module {error.name!r} "
            f"(looked from {Path.cwd()}); correct it or install the package"
        ) from None
    except Exception as error:
        raise _import_failed(import_path, field, error) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            hint = f", but {', '.join(near)}" if near else ""
            origin = getattr(module, "__file__", None) or "no file"
            raise ConfigError(f"{field}: {import_path}: {module_name} ({origin}) has no {part!r}{hint}; correct it")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{field}: {import_path} is {shorten(found)}, not a function; name one that can be called")
    return found


def reward_function(import_path: str, *, field: str) -> tuple[Callable[..., Any], list[str]]:
    """The function, and what it asks for.

    Raises:
        ConfigError: it cannot be imported, or called with what there is.
    """
    function = import_function(import_path, field=field)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # Some callables that are not written in Python do not say.
        return function, []
    asked = [parameter.name for parameter in parameters if parameter.name in ON_REQUEST]
    try:
        inspect.signature(function).bind([], [], [], **dict.fromkeys(asked))
    except TypeError as error:
        raise ConfigError(
            f"{field}: {import_path}{inspect.signature(function)} cannot be called as (prompts, responses, rows) "
            f"({error}); beyond those three, a function can ask for {' and '.join(ON_REQUEST)}"
        ) from error
    return function, asked


def code_digest(import_path: str) -> str:
    """Hex sha256 of the code of the module in ``import_path``, and of the modules of the user's own tree that it imports.

    Comments, formatting and docstrings change nothing. Another Python version may give another digest.

    Raises:
        ConfigError: there is no such module, or its source, or that of a module it imports, does not parse.
    """
    digest: str = found_or_known("code", import_path, lambda: _code_digest(import_path))
    return digest


def _code_digest(import_path: str) -> str:
    module_name, _ = parse_import_path(import_path, field="import path")
    _make_current_directory_importable()
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception as error:  # a parent package runs here
        raise _import_failed(import_path, "import path", error) from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"{import_path}: no file holds the module {module_name} (looked from {Path.cwd()}); correct it"
        )
    try:
        digests = {name: _file_digest(path) for name, path in files_of(module_name, Path(spec.origin)).items()}
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _import_failed(import_path, "import path", error) from error
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    """Of a module's meaning, where it is Python; else of its bytes."""
    content = path.read_bytes()
    return _digest_of_meaning(content) if path.suffix == ".py" else hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=MODULES_KEPT)
def _digest_of_meaning(content: bytes) -> str:
    tree = syntax_tree(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _has_docstring(
            node
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _make_current_directory_importable() -> None:
    # Last, so that a local file named like a library (datasets.py) does not replace it for the whole process.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()


def _is_part(missing: str | None, module_name: str) -> bool:
    return missing is not None and (module_name == missing or module_name.startswith(f"{missing}."))


def _import_failed(import_path: str, field: str, error: Exception) -> ConfigError:
    reason = f"{type(error).__name__}: {error}"
    return ConfigError(f"{field}: importing {import_path} failed with {reason}; make the module importable")
