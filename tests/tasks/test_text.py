"""BOS, EOS and the chat template, counted, over one small tokenizer of each convention."""

import functools
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shared_data import SHARED, needs_shared_data
from tiny_tokenizers import around, byte_level, sentence_piece, wrap

from tasks.errors import ConfigError, DataError, ModelError
from tasks.text.tokens import (
    check_tokenizer,
    copy_tokenizer,
    decode_response,
    encode_dialogue,
    encode_prompt,
    encode_text,
    load_tokenizer,
    render_prompt,
    stop_checker,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Writes BOS itself and ends an answer with EOS, as Mistral's and Llama's do.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "Hi there"}]


@functools.cache
def tokenizer(kind: str):
    bos_eos = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    if kind == "llama":
        return wrap(around(sentence_piece("<s>", "</s>"), "<s> $A"), chat_template=INST, **bos_eos)
    if kind == "llama3":
        return wrap(around(byte_level("<s>", "</s>"), "<s> $A"), chat_template=INST, **bos_eos)
    if kind == "both ends":
        return wrap(around(byte_level("<s>", "</s>"), "<s> $A </s>"), chat_template=INST, **bos_eos)
    if kind == "appends eos":
        return wrap(around(byte_level("</s>"), "$A </s>"), eos_token="</s>", pad_token="</s>")
    if kind == "gpt2":
        end = "<|endoftext|>"
        return wrap(byte_level(end), bos_token=end, eos_token=end, pad_token=end)
    assert kind == "qwen"
    raw = byte_level("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    return wrap(raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


BOS_ADDED = {"llama": 1, "llama3": 1, "both ends": 1, "appends eos": 0, "gpt2": 0, "qwen": 0}
kinds = pytest.mark.parametrize("kind", BOS_ADDED)
# "▁" is the space of SentencePiece's kind, so as a character of its own it cannot come back.
characters = st.characters(codec="utf-8", exclude_characters="▁") | st.sampled_from(" \n athel")
# A text that spells a special token is that token, as everywhere with these tokenizers, and not what the laws are about.
SPECIAL = ("<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
texts = (
    st.text(characters, min_size=1, max_size=20).filter(str.strip).filter(lambda t: not any(s in t for s in SPECIAL))
)
LAWS = settings(deadline=None, max_examples=60)


def counts(kind: str, ids: list[int]) -> tuple[int, int]:
    """How many BOS and EOS; where both are one token, it is counted as EOS."""
    special = tokenizer(kind)
    bos = 0 if special.bos_token_id in (None, special.eos_token_id) else ids.count(special.bos_token_id)
    return bos, ids.count(special.eos_token_id)


# Laws.


@kinds
@LAWS
@given(text=texts)
def test_a_plain_prompt_has_the_tokenizers_bos_once_and_no_eos(kind, text):
    assert counts(kind, encode_prompt(tokenizer(kind), text)) == (BOS_ADDED[kind], 0)


@kinds
@LAWS
@given(prompt=texts, response=texts, ends=st.integers(0, 2))
def test_a_dialogue_has_one_bos_by_convention_and_one_eos_at_its_end(kind, prompt, response, ends):
    special = tokenizer(kind)
    ids, length = encode_dialogue(special, prompt, response + special.eos_token * ends)
    assert counts(kind, ids) == (BOS_ADDED[kind], 1)
    assert ids[-1] == special.eos_token_id
    assert 1 <= length < len(ids) - 1
    unfinished, same_length = encode_dialogue(special, prompt, response, complete=False)
    assert (unfinished, same_length) == (ids[:-1], length)


@kinds
@LAWS
@given(text=texts, ends=st.integers(0, 2))
def test_a_text_has_one_bos_by_convention_and_one_eos_at_its_end(kind, text, ends):
    special = tokenizer(kind)
    ids = encode_text(special, text + special.eos_token * ends)
    assert counts(kind, ids) == (BOS_ADDED[kind], 1)
    assert ids[-1] == special.eos_token_id


@kinds
@LAWS
@given(prompt=texts, response=texts)
def test_a_response_decodes_to_what_it_was(kind, prompt, response):
    special = tokenizer(kind)
    ids, length = encode_dialogue(special, prompt, response)
    assume(ids[:length] == encode_prompt(special, prompt))
    assert decode_response(special, ids[length:]) == response


@kinds
@LAWS
@given(prompt=texts, response=texts)
def test_a_plain_dialogue_reads_as_the_text_it_is(kind, prompt, response):
    special = tokenizer(kind)
    ids, _ = encode_dialogue(special, prompt, response, complete=False)
    assert decode_response(special, ids).lstrip() == (prompt + response).lstrip()


chats = pytest.mark.parametrize("kind", ["llama", "llama3", "both ends", "qwen"])


@chats
@LAWS
@given(content=texts, answer=texts)
def test_a_conversation_is_what_the_chat_template_makes_of_it(kind, content, answer):
    special = tokenizer(kind)
    prompt = [{"role": "user", "content": content}]
    expected = special.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(special, prompt) == expected
    assert counts(kind, expected)[0] == BOS_ADDED[kind]
    ids, length = encode_dialogue(special, prompt, answer)
    assert ids[:length] == expected
    whole = special.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], return_dict=False)
    if whole[:length] == expected:  # else the template's own tokens run into the answer's, which sampling never does
        assert ids == whole[: len(ids)]
    assert ids[-1] == special.eos_token_id
    assert special.eos_token_id not in ids[length:-1]


# By hand.


def test_bos_that_stands_in_the_text_is_not_written_again():
    for kind in ("llama", "llama3", "both ends"):
        for encode in (encode_prompt, encode_text):
            assert counts(kind, encode(tokenizer(kind), "<s>Hello"))[0] == 1
        assert counts(kind, encode_dialogue(tokenizer(kind), "<s>Hello", " you")[0]) == (1, 1)


def test_an_eos_inside_a_prompt_stays():
    ids = encode_prompt(tokenizer("both ends"), "Hi</s>there")
    assert counts("both ends", ids) == (1, 1)


def test_a_text_of_nothing_but_eos_is_one_eos():
    assert encode_text(tokenizer("gpt2"), "<|endoftext|>") == [tokenizer("gpt2").eos_token_id]


def test_a_word_at_the_seam_reads_as_it_does_anywhere_else():
    special = tokenizer("gpt2")
    the = special.convert_tokens_to_ids("Ġthe")
    ids, length = encode_dialogue(special, "is", " the")
    assert ids == [*special.encode("is"), the, special.eos_token_id]
    assert length == 2
    # The prompt's last token, a lone space, becomes part of the word: it counts as the response's.
    ids, length = encode_dialogue(special, "is ", "the")
    assert ids == [*special.encode("is"), the, special.eos_token_id]
    assert length == 2


def test_a_conversations_prompt_keeps_its_ids_where_the_answer_runs_into_it():
    special = tokenizer("qwen")
    prompt_ids = encode_prompt(special, MESSAGES)
    rendered = render_prompt(special, MESSAGES)
    assert special.encode(rendered + "\n\nwell")[: len(prompt_ids)] != prompt_ids  # "\n" and "\n" become one token
    ids, length = encode_dialogue(special, MESSAGES, "\n\nwell")
    assert ids[:length] == prompt_ids
    assert decode_response(special, ids[length:]) == "\n\nwell"


def test_a_prompt_keeps_a_token_even_where_the_response_runs_into_its_only_one():
    special = tokenizer("gpt2")
    (letter,) = special.encode("l")  # "ll" is one token
    assert encode_dialogue(special, "l", "l") == ([letter, letter, special.eos_token_id], 1)


def test_an_eos_that_ends_a_prompt_is_not_taken_for_the_responses():
    special = tokenizer("gpt2")
    (letter,), eos = special.encode("x"), special.eos_token_id
    assert encode_dialogue(special, "x<|endoftext|>", "<|endoftext|>") == ([letter, eos, eos], 2)


def test_a_chat_template_has_the_last_word_on_bos():
    special = wrap(around(byte_level("<s>", "</s>"), "<s> $A"), bos_token="<s>", eos_token="</s>", pad_token="</s>")
    special.chat_template = "{{ messages[0].content }}:"
    assert decode_response(special, encode_prompt(special, MESSAGES)) == "Hi there:"
    assert encode_prompt(special, "Hi there:") == [special.bos_token_id, *encode_prompt(special, MESSAGES)]


def test_the_first_space_of_a_response_survives_decoding():
    special = tokenizer("llama")
    ids, length = encode_dialogue(special, "Once", " the cat")
    assert decode_response(special, ids[length:]) == " the cat"
    assert special.decode(ids[length:], skip_special_tokens=True) == "the cat"  # why decode_response exists


def test_render_prompt_shows_what_the_model_reads():
    assert render_prompt(tokenizer("qwen"), "as it is") == "as it is"
    assert render_prompt(tokenizer("llama"), MESSAGES) == "<s>[INST] Hi there [/INST]"
    expected = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(tokenizer("qwen"), MESSAGES) == expected


# Stop strings.


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("stop", ["\n", "\n\n", "the end", "🦊\n", "</s>", "Human:"])
def test_a_stop_string_is_seen_with_the_token_that_completes_it(kind, stop):
    special = tokenizer(kind)
    stopped = stop_checker(special, (stop, "~"))
    ids, length = encode_dialogue(special, "Q", f" 🦊🦊 all of it 🦊{stop}", complete=False)
    seen = [stopped(ids[length:end]) for end in range(length + 1, len(ids) + 1)]
    assert seen[-1]
    assert seen.index(True) == len(seen) - 1


def test_no_stop_strings_mean_no_checker_and_an_empty_one_is_refused():
    assert stop_checker(tokenizer("gpt2"), ()) is None
    with pytest.raises(ConfigError, match="stop_strings"):
        stop_checker(tokenizer("gpt2"), ("a", ""))


# What is refused.


def test_a_tokenizer_without_eos_or_pad_is_refused_with_the_line_to_add():
    with pytest.raises(ModelError, match=r'models/x has no EOS token.*"eos_token".*models/x/tokenizer_config.json'):
        check_tokenizer(wrap(byte_level("</s>"), pad_token="</s>"), 1000, name="models/x")
    with pytest.raises(
        ModelError, match='models/x has no pad token; add "pad_token": "</s>" to models/x/tokenizer_con'
    ):
        check_tokenizer(wrap(byte_level("</s>"), eos_token="</s>"), 1000, name="models/x")


def test_a_vocabulary_larger_than_the_embedding_is_refused():
    special = tokenizer("gpt2")  # 256 bytes, 6 merges, 1 special token
    check_tokenizer(special, 263, name="models/x")
    check_tokenizer(special, 512, name="models/x")
    with pytest.raises(ModelError, match=r"models/x has 263 tokens .*'<\|endoftext\|>' with id 262.*has 262 rows"):
        check_tokenizer(special, 262, name="models/x")


def test_messages_without_a_chat_template_are_refused():
    with pytest.raises(ModelError, match=r"a.jsonl, row 3 is a list of messages.*no chat template"):
        encode_prompt(tokenizer("gpt2"), MESSAGES, place="a.jsonl, row 3")


def test_messages_that_the_template_refuses_are_named():
    system = [{"role": "system", "content": "Be kind"}]
    with pytest.raises(DataError, match=r"a.jsonl, row 3.*'Be kind'.*only user and assistant"):
        encode_dialogue(tokenizer("llama"), system, "yes", place="a.jsonl, row 3")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has no tokenizer that loads"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{nope")
    with pytest.raises(ModelError, match="has no tokenizer that loads"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_copied_tokenizer_is_the_same_and_brings_no_weights(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    tokenizer("qwen").save_pretrained(str(source))
    (source / "model.safetensors").write_bytes(b"weights")
    copy_tokenizer(source, target)
    assert not (target / "model.safetensors").exists()
    assert encode_prompt(load_tokenizer(str(target)), MESSAGES) == encode_prompt(tokenizer("qwen"), MESSAGES)


# The shared model's tokenizer: BOS and EOS are one token, and a space goes before the first word.


@needs_shared_data
def test_stories260k_pairs_read_right():
    special = load_tokenizer(str(SHARED / "models" / "stories260K"))
    check_tokenizer(special, 512, name="stories260K")
    with (SHARED / "pairs" / "ukp_convarg.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(200)]
    for row in rows:
        for response in (row["chosen"], row["rejected"]):
            ids, length = encode_dialogue(special, row["prompt"], response)
            assert ids[:length] == encode_prompt(special, row["prompt"])
            assert ids[0] == ids[-1] == 1
            assert ids.count(1) == 2
            assert decode_response(special, ids[length:]) == response
            assert special.decode(ids[1:-1]) == row["prompt"] + response


@needs_shared_data
def test_stories260k_puts_no_second_space_before_a_response():
    special = load_tokenizer(str(SHARED / "models" / "stories260K"))
    ids, length = encode_dialogue(special, "Once upon", " a time")
    assert special.convert_ids_to_tokens(ids) == ["<s>", "▁Once", "▁upon", "▁a", "▁time", "<s>"]
    assert length == 3
