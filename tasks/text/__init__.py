"""Text to token ids and back: chat templates, what ends a response, and what a tokenizer is asked for."""

from tasks.text.chat_template import OPTIONS_FILE, options_of
from tasks.text.doubts import doubts_about_data
from tasks.text.encoder import Encoder
from tasks.text.endings import GENERATION_CONFIG, doubts_about_endings, ending_of, terminators
from tasks.text.tokens import (
    check_tokenizer,
    copy_tokenizer,
    decode_response,
    encode_dialogue,
    encode_dialogues,
    encode_prompt,
    load_tokenizer,
    stop_checker,
)

__all__ = [
    "GENERATION_CONFIG",
    "OPTIONS_FILE",
    "Encoder",
    "check_tokenizer",
    "copy_tokenizer",
    "decode_response",
    "doubts_about_data",
    "doubts_about_endings",
    "encode_dialogue",
    "encode_dialogues",
    "encode_prompt",
    "ending_of",
    "load_tokenizer",
    "options_of",
    "stop_checker",
    "terminators",
]
