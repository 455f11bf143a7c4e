"""YAML as people mean it: the core schema of YAML 1.2, read and written by one table of what a bare word is.

PyYAML speaks 1.1, where ``on`` is true, ``010`` is 8, ``1:30`` is 90, ``1e-5`` is a text, a date is no text, and a key that
stands twice counts once. Here they are a text, 10, a text, a number, a text, and an error.
"""

import math
import re
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

YAMLError = yaml.YAMLError
MAX_VALUES = 200_000
"""Values that a document may hold, those counted again that an alias stands for: a few lines can stand for millions."""
MAX_DEPTH = 100
MAX_DIGITS = 400
"""Of a whole number, a few more than the largest number with a point has."""
_NULL, _BOOL, _INT, _FLOAT, _STR, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "merge")
)
# What a word without quotes is, by its first characters (YAML 1.2.2, section 10.3.2). The underscores in numbers are
# Python's, not YAML's: 1_000 cannot be anything else.
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_WORDS = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(rf"^(?:[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        _FLOAT,
        re.compile(
            rf"^(?:[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    # Not of the core schema, but how people share parts of a file.
    (_MERGE, re.compile(r"^<<$"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: SafeConstructor.yaml_constructors[tag] for tag in (_NULL, _BOOL, _STR, "tag:yaml.org,2002:seq", None)
    } | {"tag:yaml.org,2002:map": SafeConstructor.construct_yaml_map}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping whose keys are the texts that were written, each of them once."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be a text", key.start_mark)
            if key.tag in (_NULL, _BOOL, _INT, _FLOAT):
                key.tag = _STR
            if key.value in seen:
                line = seen[key.value].line + 1
                problem = f"the key {key.value!r} stands here for the second time, first in line {line}"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = key.start_mark
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConstructorError(
                None, None, f"lists and mappings nest deeper than {MAX_DEPTH}", self.peek_event().start_mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the keys of ``<<`` in its place; of several mappings the first that has a key counts, and its own before."""
        own = [(key, value) for key, value in node.value if key.tag != _MERGE]
        merged: dict[str, Any] = {}
        for part in (value for key, value in node.value if key.tag == _MERGE):
            for mapping in part.value if isinstance(part, yaml.SequenceNode) else [part]:
                if not isinstance(mapping, yaml.MappingNode):
                    raise ConstructorError(None, None, "<< takes a mapping, or a list of them", mapping.start_mark)
                self.flatten_mapping(mapping)
                self.num_merged += len(mapping.value)
                _require_few(self.num_merged)
                for key, value in mapping.value:
                    merged.setdefault(key.value, (key, value))
        written = {key.value for key, _ in own}
        node.value = [*(pair for name, pair in merged.items() if name not in written), *own]

    depth = 0
    num_merged = 0


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _WORDS:
        _class.add_implicit_resolver(_tag, _pattern, _first)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    if len(text) > MAX_DIGITS:
        problem = f"a number of {len(text):,} digits is too large; quote a text"
        raise ConstructorError(None, None, problem, node.start_mark)
    # int(text, 0) would refuse 010, which people write to align columns.
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    value = float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(value) and "inf" not in text:
        raise ConstructorError(None, None, f"{node.value} is too large a number; quote a text", node.start_mark)
    return value


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    value = str(loader.construct_scalar(node))
    if any("\ud800" <= character <= "\udfff" for character in value):
        # As in JSON, two escapes may write one character.
        try:
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise ConstructorError(None, None, "a text holds half of a character", node.start_mark) from None
    return value


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """A text; with the breaks that PyYAML writes bare and reads as white space, it needs escapes."""
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_STR, text, style=style)


_Dumper.add_representer(str, _quoted)
_Loader.add_constructor(_INT, _integer)
_Loader.add_constructor(_FLOAT, _number)
_Loader.add_constructor(_STR, _text)


def read_yaml(text: str | bytes) -> Any:
    """The one document in ``text`` as JSON has it: mappings with text keys, lists, texts, numbers, booleans, null.

    Bytes are UTF-8, or UTF-16 with its mark, whatever the locale.

    Raises:
        YAMLError: not YAML, a key twice in a mapping, a tag that is none of JSON's types, a list that holds itself, or more
            than anybody writes.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except (ValueError, KeyError) as error:  # !!int and !!bool before a text that is none
        raise YAMLError(f"a text is not what its tag says ({error})") from None
    except RecursionError:
        raise YAMLError("a list or mapping holds itself") from None
    _require_few(_size(value, {}))
    return value


def _size(value: Any, known: dict[int, int | None]) -> int:
    """How many values a document holds; what several aliases stand for is looked at once and counted each time."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = None
        known[id(value)] = 1 + sum(
            _size(part, known) for part in (value.values() if isinstance(value, dict) else value)
        )
    size = known[id(value)]
    if size is None:
        raise YAMLError("a list or mapping holds itself")
    return size


def _require_few(size: int) -> None:
    if size > MAX_VALUES:
        raise YAMLError(f"aliases included, there are more than {MAX_VALUES:,} values in it; write less")


def write_yaml(value: Any) -> str:
    """Plain values as text that ``read_yaml`` reads as the same values; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
