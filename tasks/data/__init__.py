"""Other people's files and functions, read into canonical records."""

from tasks.data.bad_rows import BadRow, Findings, Row, in_words
from tasks.data.functions import TOKEN_IDS, WITH_SPECIAL_TOKENS, code_digest, reward_function
from tasks.data.growth import how_changed
from tasks.data.held_out import with_held_out
from tasks.data.plain_values import as_json, content_key
from tasks.data.shapes.conversations import Messages
from tasks.data.shapes.preferences import to_preferences
from tasks.data.shapes.records import Preference, Prompt, Text, to_prompts, to_texts
from tasks.data.sources import is_pattern, matching_paths, read_rows, require_there, source_digest

__all__ = [
    "TOKEN_IDS",
    "WITH_SPECIAL_TOKENS",
    "BadRow",
    "Findings",
    "Messages",
    "Preference",
    "Prompt",
    "Row",
    "Text",
    "as_json",
    "code_digest",
    "content_key",
    "how_changed",
    "in_words",
    "is_pattern",
    "matching_paths",
    "read_rows",
    "require_there",
    "reward_function",
    "source_digest",
    "to_preferences",
    "to_prompts",
    "to_texts",
    "with_held_out",
]
