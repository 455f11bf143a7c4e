"""Limits of time and memory on other people's programs, and chat templates within them."""

import resource
import threading
import time

import pytest
from test_chat_template import MESSAGES, rendered
from test_endings import CHATML, chat_tokenizer

from tasks.errors import ModelError
from tasks.text import chat_template
from tasks.text.limited import LimitError, run_limited


def limited(program, *, seconds=0.3, more_bytes=2**28):
    return run_limited(program, seconds=seconds, more_bytes=more_bytes)


def count_for_ever():
    number = 0
    while True:
        number += 1


def hide_errors_for_ever():
    while True:
        try:
            count_for_ever()
        except Exception:
            continue


@pytest.mark.parametrize("program", [count_for_ever, hide_errors_for_ever])
def test_a_program_without_end_is_ended(program):
    with pytest.raises(LimitError, match=r"computes for more than 0.3 s"):
        limited(program)


def test_waiting_is_no_computing():
    assert limited(lambda: time.sleep(1) or "done") == "done"


@pytest.mark.parametrize("program", [lambda: "a" * 2**33, lambda: [0] * 2**31, lambda: "x".center(2**33)])
def test_a_program_that_asks_for_too_much_memory_is_ended(program):
    with pytest.raises(LimitError, match="needs more than 256 MiB of memory"):
        limited(program)


def test_nothing_is_left_behind():
    before = resource.getrlimit(resource.RLIMIT_AS)
    for _ in range(20):
        with pytest.raises(LimitError):
            limited(count_for_ever, seconds=0.01)
        # An error that came late would come here.
        assert sum(1 for _ in range(10**6)) == 10**6
    assert limited(lambda: 3) == 3
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert len("a" * 2**29) == 2**29


def test_nothing_is_left_behind_by_several_threads_at_once():
    before = resource.getrlimit(resource.RLIMIT_AS)
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def first():
        first_is_in.set()
        return second_is_in.wait(10)

    def second():
        second_is_in.set()
        thread.join()
        with pytest.raises(MemoryError):
            "a" * 2**33
        return resource.getrlimit(resource.RLIMIT_AS)

    thread = threading.Thread(target=limited, args=[first])
    thread.start()
    assert first_is_in.wait(10)
    assert limited(second) != before
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_errors_of_the_program_are_its_own():
    with pytest.raises(ZeroDivisionError):
        limited(lambda: 1 / 0)


def test_each_thread_has_a_limit_of_its_own():
    told = []

    def attempt(program):
        try:
            told.append(limited(program))
        except LimitError:
            told.append("ended")

    threads = [threading.Thread(target=attempt, args=(p,)) for p in (count_for_ever, lambda: time.sleep(1.5) or "done")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["done", "ended"]


# Templates

NESTED = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
ENDLESS = {
    "loops in loops": NESTED,
    "only for a question": "{% if messages[-1].role == 'user' %}" + NESTED + "{% endif %}",
    "a macro that calls itself": "{% macro f(n) %}{% for a in range(9) %}{% if n %}{{ f(n - 1) }}{% endif %}{% endfor %}"
    "{% endmacro %}{{ f(40) }}",
}
LARGE = {
    "a product": "{{ 'a' * 6000000000 }}",
    "a text that doubles": "{% set n = namespace(s='a') %}{% for a in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "a width": "{{ 'a'.center(6000000000) }}",
    "a format": "{{ '%6000000000d' % 1 }}",
    "a filter": "{{ 'a'|center(6000000000) }}",
    "a list that doubles": "{% set n = namespace(s=[1]) %}{% for a in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_loops_is_told(template, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.5)
    with pytest.raises(ModelError, match=r"a prompt: the chat template of .* computes for more than 0.5 s .*; mend it"):
        rendered(chat_tokenizer(template + CHATML))


@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE)
def test_a_template_that_writes_more_than_memory_holds_is_told(template):
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"the chat template of .* needs more than 1,024 MiB of memory"):
        rendered(chat_tokenizer(template + CHATML))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak_kib + 1.5 * 2**20


def test_a_template_that_writes_more_than_any_context_holds_is_told():
    with pytest.raises(ModelError, match=r"writes more than 16,777,216 characters"):
        rendered(chat_tokenizer("{{ 'a' * 20000000 }}" + CHATML))


@pytest.mark.parametrize("template", ["{{ 9 ** 9 ** 9 }}", "{% set x = 7 %}{{ x ** x ** x ** x }}"])
def test_a_template_that_computes_powers_is_refused_unrendered(template):
    tokenizer = chat_tokenizer(template + CHATML)
    with pytest.raises(ModelError, match=r"computes powers \(\*\*\), which have no bound"):
        rendered(tokenizer)


def test_a_template_within_the_limits_writes_what_it_always_did():
    tokenizer = chat_tokenizer("{% for a in range(30000) %}x{% endfor %}" + CHATML)
    assert rendered(tokenizer) == "x" * 30000 + rendered(chat_tokenizer(CHATML))
    assert MESSAGES[0]["content"] in rendered(tokenizer)
