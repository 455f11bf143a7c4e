"""What ends a response and a dialogue, over the shapes that chat templates have."""

import json

import pytest
from tiny_tokenizers import around, byte_level, sentence_piece, wrap

from tasks.errors import ModelError
from tasks.text.endings import bind_declared, declared_eos_ids, doubts_about_endings, ending_of, terminators
from tasks.text.tokens import decode_response, encode_dialogue, encode_prompt, encode_text, load_tokenizer

EOS = "<|endoftext|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}<|start|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end_header|>\n\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}<|turn|>{{ m.role }}{% if m.role == 'assistant' %}<|open|>{{ m.content }}<|close|>"
    "{% else %}{{ m.content }}{% endif %}<|end_of_turn|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant<|open|>{% endif %}"
)
NOTHING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BLANK = NOTHING.replace("{{ m.content }}", "{{ m.content }}\n\n")
SPELT_OUT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n### end\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)
ALWAYS_OPENS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "<|assistant|>"
)
OPENS_AFTER_AN_ANSWER = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt or messages[-1].role == 'assistant' %}<|assistant|>{% endif %}"
)
WANTS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
WANTS_QUESTION = "{% if messages[-1].role != 'user' %}{{ raise_exception('question last') }}{% endif %}" + CHATML
REFUSES_ANSWERS = (
    "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
)
SPEAKS_UP = CHATML.replace("m.content", "m.content | upper")

TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start|>", "<|end_header|>", "<|eot_id|>"),
    *("<|user|>", "<|assistant|>", "<|end|>", "<|turn|>", "<|open|>", "<|close|>", "<|end_of_turn|>", "<|message|>"),
    "<|return|>",
)
# The template, and the tokens that it ends an answer with: none where the tokenizer's EOS does.
TEMPLATES = {
    "chatml": (CHATML, ["<|im_end|>"]),
    "gemma": (GEMMA, ["<end_of_turn>"]),
    "llama 3": (LLAMA_3, ["<|eot_id|>"]),
    "phi 3": (PHI_3, ["<|end|>"]),
    "llama 2": (LLAMA_2, [EOS]),
    "an answer in parts": (PARTS, ["<|close|>"]),
    "nothing": (NOTHING, []),
    "blank lines": (BLANK, []),
    "harmony": (HARMONY, ["<|return|>"]),
    "the next turn's opening, always": (ALWAYS_OPENS, ["<|end|>"]),
    "the next turn's opening, after an answer": (OPENS_AFTER_AN_ANSWER, []),
    "wants a system message": (WANTS_SYSTEM, ["<|im_end|>"]),
    "wants a question last": (WANTS_QUESTION, ["<|im_end|>"]),
    "refuses answers": (REFUSES_ANSWERS, []),
    "changes the answer": (SPEAKS_UP, []),
}
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "Hi there"}]


def chat_tokenizer(template, *, raw=None, tokens=TOKENS):
    raw = raw or byte_level(EOS, *tokens)
    return wrap(raw, eos_token=EOS, pad_token=EOS, chat_template=template)


def declaring(tokenizer, directory, eos_token_id):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_id}))
    bind_declared(tokenizer, directory)
    return tokenizer


def ids_of(tokenizer, tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["bytes", "sentence pieces", "not special"])
def test_an_answer_ends_with_what_the_template_writes_after_one(name, kind):
    template, end = TEMPLATES[name]
    if kind == "bytes":
        tokenizer = chat_tokenizer(template)
    elif kind == "sentence pieces":
        tokenizer = chat_tokenizer(template, raw=around(sentence_piece(EOS, *TOKENS), "$A"))
    else:
        tokenizer = chat_tokenizer(template, raw=byte_level(EOS))
        tokenizer.add_tokens(list(TOKENS))
    eos = tokenizer.eos_token_id
    expected = ids_of(tokenizer, end) or [eos]
    assert terminators(tokenizer) == tuple(sorted({*expected, eos}))
    messages = MESSAGES[1:] if name in ("llama 2", "refuses answers") else MESSAGES
    for written in ("well", *(f"well{token}" for token in end), f"well{EOS}"):
        ids, length = encode_dialogue(tokenizer, messages, written)
        assert ids[:length] == encode_prompt(tokenizer, messages)
        assert ids[-len(expected) :] == expected
        assert not {*expected, eos} & {*ids[length : -len(expected)]}
        # With sentence pieces, a space of the tokenizer's own follows a special token.
        assert decode_response(tokenizer, ids[length:], special_tokens=True).lstrip() == "well"
    # Plain text has no turns, whatever the template.
    assert encode_dialogue(tokenizer, "Hi", " well")[0][-1] == eos
    assert encode_text(tokenizer, "Hi")[-1] == eos


@pytest.mark.parametrize("name", ["chatml", "gemma", "phi 3", "an answer in parts", "harmony"])
def test_a_dialogue_is_the_template_s_own_up_to_the_turn_s_end_and_with_the_rest_to_its_last_token(name):
    tokenizer = chat_tokenizer(TEMPLATES[name][0])
    whole = tokenizer.apply_chat_template([*MESSAGES, {"role": "assistant", "content": "well"}], return_dict=False)
    ids, _ = encode_dialogue(tokenizer, MESSAGES, "well")
    assert ids == whole[: len(ids)]
    assert encode_dialogue(tokenizer, MESSAGES, "well", to_the_end=True)[0] == whole


def test_where_an_answer_closes_in_parts_the_declared_one_of_them_ends_the_turn(tmp_path):
    tokenizer = chat_tokenizer(PARTS)
    close, end = ids_of(tokenizer, ["<|close|>", "<|end_of_turn|>"])
    assert ending_of(tokenizer).ids == (close,)
    declaring(tokenizer, tmp_path, [tokenizer.eos_token_id, end])
    assert ending_of(tokenizer).ids == (close, end)
    assert terminators(tokenizer) == tuple(sorted({tokenizer.eos_token_id, end}))
    well = tokenizer.encode("well")
    for written in ("well", "well<|close|>", "well<|close|><|end_of_turn|>"):
        ids, length = encode_dialogue(tokenizer, MESSAGES, written)
        assert ids[length:] == [*well, close, end]
    assert decode_response(tokenizer, [*well, close, end], special_tokens=True) == "well"
    assert decode_response(tokenizer, [*well, close], finished=False, special_tokens=True) == "well<|close|>"
    assert decode_response(tokenizer, [*well, end], finished=False, special_tokens=True) == "well<|end_of_turn|>"


def test_an_end_that_is_spelt_out_is_a_stop_string_and_ends_dialogues(tmp_path):
    tokenizer = chat_tokenizer(SPELT_OUT)
    ending = ending_of(tokenizer)
    assert ending.stop_string == "### end"
    assert terminators(tokenizer) == (tokenizer.eos_token_id,)
    ids, length = encode_dialogue(tokenizer, MESSAGES, "well #")
    assert ids[length:] == [*tokenizer.encode("well #"), *tokenizer.encode("### end")]
    for written in ("well\n### end", "well\n### end### end"):
        ids, length = encode_dialogue(tokenizer, MESSAGES, written)
        assert ids[length:] == [*tokenizer.encode("well\n"), *tokenizer.encode("### end")]
    sampled = tokenizer.encode("well\n### end\n")
    assert decode_response(tokenizer, sampled) == "well\n"
    assert decode_response(tokenizer, sampled, finished=False) == "well\n### end\n"


def test_bos_that_is_eos_ends_an_answer_and_does_not_begin_one():
    tokenizer = wrap(byte_level(EOS), bos_token=EOS, eos_token=EOS, pad_token=EOS)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    )
    eos = tokenizer.eos_token_id
    ids, length = encode_dialogue(tokenizer, MESSAGES, "well")
    assert ids[0] == eos
    assert ids[length:] == [*tokenizer.encode("well"), eos]


def test_another_template_is_probed_anew():
    tokenizer = chat_tokenizer(CHATML)
    assert ending_of(tokenizer).ids == tuple(ids_of(tokenizer, ["<|im_end|>"]))
    tokenizer.chat_template = GEMMA
    assert ending_of(tokenizer).ids == tuple(ids_of(tokenizer, ["<end_of_turn>"]))


# What a checkpoint declares.


@pytest.mark.parametrize(("declared", "expected"), [(7, (7,)), ([7, 9], (7, 9)), (None, ()), ([], ())])
def test_a_checkpoint_declares_one_id_or_several_or_none(tmp_path, declared, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "eos_token_id": declared}))
    assert declared_eos_ids(tmp_path) == expected


def test_without_a_generation_config_the_model_s_config_counts_as_the_library_has_it(tmp_path):
    assert declared_eos_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": [3, 4]}')
    assert declared_eos_ids(tmp_path) == (3, 4)
    (tmp_path / "generation_config.json").write_text('{"top_k": 3}')
    assert declared_eos_ids(tmp_path) == (3, 4)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert declared_eos_ids(tmp_path) == (5,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"generation_config\.json is not readable as JSON .*; mend it, or remove it"),
        ("[1]", r"generation_config\.json holds \[1\], not a mapping of settings"),
        ('{"eos_token_id": "</s>"}', r"generation_config\.json: eos_token_id is '</s>', not a token id or a list"),
        ('{"eos_token_id": [1, true]}', r"eos_token_id is \[1, True\], not a token id"),
        ('{"eos_token_id": -1}', r"eos_token_id is -1, not a token id"),
        ('{"eos_token_id": 1.0}', r"eos_token_id is 1\.0, not a token id"),
    ],
)
def test_a_declaration_that_cannot_be_read_is_one_sentence(tmp_path, text, message):
    chat_tokenizer(CHATML).save_pretrained(str(tmp_path))
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(str(tmp_path))


def test_declared_ids_end_responses_and_odd_ones_are_told(tmp_path):
    tokenizer = chat_tokenizer(CHATML)
    (letter,), (end, eot) = tokenizer.encode("x"), ids_of(tokenizer, ["<|im_end|>", "<|eot_id|>"])
    declaring(tokenizer, tmp_path, [eot, letter, 9999])
    assert terminators(tokenizer) == tuple(sorted({letter, end, eot, tokenizer.eos_token_id}))
    ordinary, beyond = doubts_about_endings(tokenizer)
    assert "is the ordinary token 'x'; responses end wherever it is written" in ordinary
    assert "eos_token_id 9999 is beyond" in beyond
    assert doubts_about_endings(declaring(tokenizer, tmp_path, [eot, tokenizer.eos_token_id])) == []
