"""One small tokenizer of each convention, made on the spot."""


def wrap(raw, **special):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def around(raw, template: str):
    """Let the tokenizer put special tokens around every text."""
    from tokenizers.processors import TemplateProcessing

    tokens = [(token, raw.token_to_id(token)) for token in template.split() if token != "$A"]
    raw.post_processor = TemplateProcessing(single=template, special_tokens=tokens)
    return raw


def byte_level(*special: str):
    """GPT-2's kind: no space is added, every byte has a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "a"), ("l", "l"), ("Ċ", "Ċ")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(special))
    return raw


def sentence_piece(*special: str):
    """Llama's kind: a space before the first word, which decoding takes away again; other characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    letters = [chr(c) for c in range(33, 127)]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("l", "l")]
    tokens = ["<unk>", *special, *(f"<0x{b:02X}>" for b in range(256)), "▁", *letters, *(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    raw.add_special_tokens(["<unk>", *special])
    return raw
