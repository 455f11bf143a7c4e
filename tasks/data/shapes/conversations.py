"""Chat messages in the forms that people keep them in, as one form: a ``role``, and ``content`` that is text.

Lists of mappings, one mapping, or either of them as JSON text (or as Python writes it), as cells of a CSV file hold them;
``role`` and ``content``, or ShareGPT's ``from`` and ``value``; roles under their usual other names; content as text parts;
calls of tools without content.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from tasks.data.bad_rows import Row, refuse

Messages = list[dict[str, Any]]
"""Chat messages, each with a ``role`` and ``content`` text; other keys pass through to the chat template."""
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
    # The assistant's turn, whose text is the call.
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Where libraries keep what an assistant thought before its answer, which would be lost with the other keys."""
_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{.{0,200}?["'](?:role|from)["']\s*:""", re.DOTALL)
_HALF = re.compile(r"[\ud800-\udfff]")


def messages_of(row: Row, name: str, value: Any) -> Messages:
    """The messages in a column of a row.

    Raises:
        BadRow: it holds none, or something that is no message of text alone.
    """
    value = unfolded(row, name, value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        refuse(row, name, value, f"is a {type(value).__name__}", "give a list of messages")
    if not value:
        refuse(row, name, value, "holds no message", "remove or complete the row")
    return [_message(row, f"{name}[{i}]", message) for i, message in enumerate(value)]


def unfolded(row: Row, name: str, value: Any) -> Any:
    """The value, or the messages that it holds as text.

    Raises:
        BadRow: the text begins like messages and is not: cut off, or written by hand.
    """
    if isinstance(value, Mapping):
        return _unwrapped(value)
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    found = _parsed(value)
    if isinstance(found, Mapping):
        found = _unwrapped(found)
    if _is_message(found) or (isinstance(found, list) and any(map(_is_message, found))):
        return found
    if found is None and _LIKE_MESSAGES.match(value) and not _begins_with_json(value):
        move = 'mend the JSON, or, if it is text, give it as [{"role": "user", "content": TEXT}]'
        refuse(row, name, value, "begins like messages but is no whole JSON: cut-off messages, or text?", move)
    return value


def json_list(value: Any) -> Any:
    """The value, or the list that a text holds as JSON, for columns that hold nothing but lists."""
    found = _parsed(value) if isinstance(value, str) and value.lstrip().startswith("[") else None
    return found if isinstance(found, list) else value


def last_answer(row: Row, name: str, messages: Messages) -> str:
    """The text of the assistant's message that ends the conversation.

    Raises:
        BadRow: it does not end so, or the message is more than a text.
    """
    message = messages[-1]
    where = f"{name}[{len(messages) - 1}]"
    if message["role"] != "assistant":
        refuse(row, name, messages, f"ends with a message of {message['role']!r}", "end it with the assistant's")
    if message.get("tool_calls"):
        refuse(row, where, message, "calls a tool, which is no text to learn", "end it with an answer")
    for key in REASONING:
        if message.get(key):
            move = "write it into content as the model writes it, or remove it"
            refuse(row, where, message, f"keeps {key} beside its content", move)
    return require_text(row, f"{where}.content", message["content"])


def same_messages(first: Messages, second: Messages) -> bool:
    """Whether two conversations say the same, whatever else is noted beside it."""
    said = [[(m["role"], m["content"], m.get("tool_calls")) for m in messages] for messages in (first, second)]
    return said[0] == said[1]


def require_text(row: Row, name: str, value: Any) -> str:
    """The value, where it is a text that a tokenizer can read.

    Raises:
        BadRow: it is null, no text, empty, or holds half of a character.
    """
    if value is None or value != value:  # NaN, as pandas marks what is missing
        refuse(row, name, value, "is null", "remove or complete the row")
    if not isinstance(value, str):
        refuse(row, name, value, f"is a {type(value).__name__}", "give text")
    if not value.strip():
        refuse(row, name, value, "is empty", "remove or complete the row")
    _require_whole(row, name, value)
    return value


def _message(row: Row, name: str, value: Any) -> dict[str, Any]:
    if not _is_message(value):
        move = 'give each message as {"role": ..., "content": ...} with texts'
        refuse(row, name, value, "is not a message", move)
    # Null is absent at any depth: Arrow fills the keys that a message lacks with it.
    parts: dict[str, Any] = _without_nulls(value)
    # A sender beside a role, as some logs have it, is somebody's name.
    said = parts.pop("role") if "role" in parts else parts.pop("from")
    role = ROLES.get(said.strip().lower(), said)
    for key in ("content", "value", "text", "parts"):
        if key in parts:
            content = parts.pop(key)
            break
    else:
        content = None
    if role == "call":
        role = "assistant"
        parts["tool_calls"] = [_call(row, name, content)]
        content = None
    if isinstance(content, list | Mapping):
        content = _joined(row, name, content)
    if isinstance(parts.get("function_call"), Mapping):
        parts["tool_calls"] = [{"type": "function", "function": parts.pop("function_call")}]
    if calls := parts.get("tool_calls"):
        parts["tool_calls"] = [_with_arguments(row, name, call) for call in calls]
        content = content or ""
    if not isinstance(content, str):
        problem = "has no content" if content is None else "has content that is no text"
        refuse(row, name, value, problem, "give it text, or remove or complete the row")
    if role == "user":  # a system message, or what a tool returns, may well be empty
        require_text(row, f"{name}.content", content)
    message = {"role": role, "content": content, **dict(sorted(parts.items()))}
    _require_whole(row, name, json.dumps(message, ensure_ascii=False, default=repr))
    return message


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    role = value.get("role") if value.get("role") is not None else value.get("from")
    return isinstance(role, str) and any(
        key in value for key in ("content", "value", "text", "parts", "tool_calls", "function_call")
    )


def _unwrapped(value: Mapping[str, Any]) -> Any:
    """A whole record of a chat data set stands where its messages are meant."""
    inside = [value[key] for key in ("messages", "conversations") if isinstance(value.get(key), list)]
    return inside[0] if len(inside) == 1 and inside[0] and all(map(_is_message, inside[0])) else value


def _joined(row: Row, name: str, content: Any) -> str:
    """The text of content that is a list of parts, which templates write one after the other."""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            move = 'give text alone, as {"type": "text", "text": ...}, or leave the row out'
            refuse(row, f"{name}.content", part, f"holds a part of type {kind!r}", move)
        texts.append(text)
    return "".join(texts)


def _call(row: Row, name: str, content: Any) -> dict[str, Any]:
    call = _parsed(content) if isinstance(content, str) else content
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        move = 'give it as {"name": ..., "arguments": {...}}'
        refuse(row, name, content, "is a call of a function, but its text is no JSON with a name", move)
    return {"type": "function", "function": dict(call)}


def _with_arguments(row: Row, name: str, call: Any) -> Any:
    """A call whose arguments are a mapping, as templates want them, where OpenAI's interface has them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        refuse(row, name, call, "holds a call of a tool without a function's name", "complete or remove the row")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        parsed = _parsed(arguments)
        if isinstance(parsed, Mapping):
            function = {**function, "arguments": _without_nulls(parsed)}
    return {**call, "function": function}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value


def _parsed(text: str) -> Any:
    """What a text holds as JSON, or as Python writes lists and dictionaries; None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _begins_with_json(text: str) -> bool:
    """Whether a text goes on after a whole value of JSON: then it is about it, not cut off."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _require_whole(row: Row, name: str, text: str) -> None:
    if half := _HALF.search(text):
        escape = half[0].encode("unicode_escape").decode()
        problem = f"holds half of a character ({escape} at {half.start()}), which UTF-8 cannot hold"
        refuse(row, name, text, problem, "correct or remove the row")
