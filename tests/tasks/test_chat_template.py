"""Chat templates: what they are used with, what they must not read, and what is said about them."""

import datetime
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_endings import CHATML, EOS, GEMMA, LLAMA_2, REFUSES_ANSWERS, TOKENS, chat_tokenizer
from tiny_tokenizers import byte_level, wrap

from tasks.data.shapes.records import Prompt, Text
from tasks.errors import ConfigError, DataError, ModelError
from tasks.text.chat_template import bind_options, remembered, render
from tasks.text.doubts import doubts_about, doubts_about_data
from tasks.text.tokens import copy_tokenizer, encode_prompt, load_tokenizer

MESSAGES = [{"role": "user", "content": "Hi there"}]
# Qwen3's kind: an answer is written with its reasoning, empty where it has none.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# R1's kind: reasoning is opened for the model, and taken out of what was answered.
OPENS_THOUGHT = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
NEVER_OPENS = CHATML.partition("{% if add_generation_prompt %}")[0]
SYSTEMLESS = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
# Llama 3's kind.
DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today: {{ date_string }}\n"
)
IN_A_MACRO = "{% macro today() %}{{ strftime_now('%A, %-d %B %Y %H:%M') }}{% endmacro %}{{ today() }}|"
BY_VARIABLE = "\n  {% set format = '%Y-%m-%d' %}{{ strftime_now(format) }}|"


def with_options(template, **options):
    tokenizer = chat_tokenizer(template)
    bind_options(tokenizer, options)
    return tokenizer


def rendered(tokenizer, messages=MESSAGES):
    return render(tokenizer, messages, add_generation_prompt=True)


# Nothing hidden.


@pytest.mark.parametrize(
    ("template", "shown"),
    [(DATED, "Today: 01 Jan 2026\n"), (IN_A_MACRO, "Thursday, 1 January 2026 00:00|"), (BY_VARIABLE, "\n2026-01-01|")],
)
def test_a_template_that_asks_for_the_time_gets_the_same_one_always(monkeypatch, template, shown):
    from transformers.utils import chat_template_utils

    class NoClock:
        @staticmethod
        def now():
            raise AssertionError("the clock was asked")

    monkeypatch.setattr(chat_template_utils, "datetime", NoClock)
    tokenizer = chat_tokenizer(template + CHATML)
    assert rendered(tokenizer).startswith(shown)
    (said,) = doubts_about(tokenizer, has_answers=True, has_system=True)
    assert "the date is always 2026-01-01; model.chat_template_kwargs.strftime_now sets another" in said


def test_the_date_is_a_setting():
    tokenizer = with_options(DATED + CHATML, strftime_now="2024-02-29")
    assert rendered(tokenizer).startswith("Today: 29 Feb 2024\n")
    assert doubts_about(tokenizer, has_answers=True, has_system=True) == []
    bind_options(tokenizer, {"strftime_now": "2025-03-01"})
    assert rendered(tokenizer).startswith("Today: 01 Mar 2025\n")
    assert rendered(with_options(DATED + CHATML, date_string="some day")).startswith("Today: some day\n")
    for text in ("29.2.2024", "2023-02-29", 7):
        with pytest.raises(ConfigError, match=r"chat_template_kwargs\.strftime_now=.* is no date; give one like 2026"):
            with_options(DATED + CHATML, strftime_now=text)


@settings(deadline=None)
@given(st.dates(min_value=datetime.date(1000, 1, 1)), st.sampled_from("YmdBbAajyHIMSpeuwUWVFDTR"))
def test_each_code_shows_what_strftime_has_for_it_in_english(date, code):
    template = f"{{{{ strftime_now('%{code}') }}}}"
    tokenizer = with_options(template, strftime_now=date.isoformat())
    assert rendered(tokenizer) == datetime.datetime(date.year, date.month, date.day).strftime(f"%{code}")


@pytest.mark.parametrize("draws", ["{{ lipsum(1) }}", "{{ messages | random }}"])
def test_a_template_that_draws_at_random_is_refused(draws):
    with pytest.raises(ModelError, match=r"draws at random .*no two runs would have the same prompts"):
        rendered(chat_tokenizer(draws + CHATML))


def test_a_template_of_the_library_s_own_dialect_is_read():
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% endfor %}{{ style }}"
    )
    assert rendered(with_options(template, style="!")) == "Hi there!"


def test_a_template_that_cannot_be_read_is_refused():
    with pytest.raises(ModelError, match=r"not readable as Jinja .*; mend it"):
        rendered(chat_tokenizer("{% for %}"))


# Options.


def test_options_reach_the_prompt_and_go_with_the_tokenizer_s_files(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    chat_tokenizer(THINKS).save_pretrained(str(source))
    plain = load_tokenizer(str(source))
    quiet = load_tokenizer(str(source), chat_template_kwargs={"enable_thinking": False})
    assert rendered(plain).endswith("<|im_start|>assistant\n")
    assert rendered(quiet).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert encode_prompt(quiet, MESSAGES) != encode_prompt(plain, MESSAGES)
    (source / "chat_template_kwargs.json").write_text(json.dumps({"enable_thinking": False}))
    copy_tokenizer(source, target)
    assert rendered(load_tokenizer(str(target))) == rendered(quiet)


def test_what_is_remembered_of_a_template_is_found_again_for_other_options():
    found = []
    tokenizer = chat_tokenizer(THINKS)
    for options in ({}, {}, {"enable_thinking": False}, {"enable_thinking": False}, {"enable_thinking": True}):
        bind_options(tokenizer, options)
        remembered(tokenizer, found.append)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"enable_thinkin": False},
            r"chat_template_kwargs\.enable_thinkin: .* never reads .*; it reads enable_thinking$",
        ),
        ({"add_generation_prompt": False}, r"chat_template_kwargs\.add_generation_prompt: is set for each use"),
        ({"strftime_now": "2026-01-01"}, r"chat_template_kwargs\.strftime_now: .* never reads strftime_now"),
        ({"m": 1}, r"chat_template_kwargs\.m: .* never reads m"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        with_options(THINKS, **options)


def test_options_without_a_template_are_refused():
    tokenizer = wrap(byte_level(EOS), eos_token=EOS, pad_token=EOS)
    with pytest.raises(ModelError, match="has no chat template; leave it out"):
        bind_options(tokenizer, {"enable_thinking": False})


# What is said before a template is used.


def said_of(template, *, has_answers=True, has_system=True, **options):
    return doubts_about(with_options(template, **options), has_answers=has_answers, has_system=has_system)


@pytest.mark.parametrize("template", [CHATML, GEMMA, LLAMA_2])
def test_of_a_template_that_does_what_is_counted_on_nothing_is_said(template):
    assert said_of(template) == []


def test_an_opening_that_is_never_written_for_generation_is_refused():
    with pytest.raises(ModelError, match=r"writes '<\|im_start\|>assistant\\n' before an answer, but not for add_gen"):
        said_of(NEVER_OPENS)


def test_an_answer_that_is_not_written_after_the_opening_is_told_where_answers_are_given():
    (said,) = said_of(THINKS)
    assert "puts '<think>\\n\\n</think>\\n\\n' before an answer that is given" in said
    assert said_of(THINKS, enable_thinking=False) == []
    assert said_of(THINKS, has_answers=False) == []
    (said,) = said_of(OPENS_THOUGHT)
    assert "opens an answer that is to be sampled with '<|im_start|>assistant\\n<think>\\n'" in said
    assert said_of(OPENS_THOUGHT, has_answers=False) == []


def test_system_messages_that_are_left_out_are_told_where_there_are_any():
    (said,) = said_of(SYSTEMLESS)
    assert "leaves system messages out" in said
    assert said_of(SYSTEMLESS, has_system=False) == []


def test_a_template_that_takes_no_answer_is_told():
    (said,) = said_of(REFUSES_ANSWERS)
    assert "takes no answer after a question" in said


def test_columns_and_options_that_no_template_sees_are_told():
    tokenizer = with_options(THINKS, enable_thinking=False)
    chat = Prompt(prompt=MESSAGES, extra={"enable_thinking": False, "answer": 3, "messages": 1}, place="")
    (said,) = doubts_about_data(tokenizer, prompts=[chat], answers=[])
    assert said.startswith("the column enable_thinking of the prompts goes to reward functions alone")
    plain = Text(prompt="Hi", response="well", place="")
    (said,) = doubts_about_data(tokenizer, prompts=[], answers=[plain])
    assert "no row of the data is a conversation" in said
    assert doubts_about_data(chat_tokenizer(NEVER_OPENS), prompts=[], answers=[plain]) == []


def test_a_conversation_that_the_template_refuses_is_named():
    with pytest.raises(
        DataError, match=r"a\.jsonl, row 3: the chat template of .* refuses the messages .*no, not that"
    ):
        render(
            chat_tokenizer("{{ raise_exception('no, not that') }}"), MESSAGES, add_generation_prompt=True,
            place="a.jsonl, row 3",
        )  # fmt: skip


def test_templates_for_special_uses_alone_are_told():
    tokenizer = wrap(byte_level(EOS, *TOKENS), eos_token=EOS, pad_token=EOS)
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(ModelError, match=r"special uses alone \(tool_use, rag\); add one named default"):
        rendered(tokenizer)
    tokenizer.chat_template = {"tool_use": GEMMA, "default": CHATML}
    assert rendered(tokenizer).startswith("<|im_start|>")
