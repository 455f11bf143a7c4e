"""References to models from outside the run: the digest is of what counts, and remembered only as long as it is sure."""

import json
import os

import peft
import pytest
import torch
import transformers as hf

from tasks.config.model_access import needs_hub
from tasks.errors import ModelError, RunError
from tasks.models.loading import load_policy
from tasks.models.scalar import load_scalar_model
from tasks.store.digests import digest_file
from tasks.store.outside.models import model_ref, remembered_digests
from tasks.text.tokens import copy_tokenizer

FILES = {
    "config.json": '{"model_type": "llama"}',
    "model.safetensors": "the weights",
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"eos_token": "</s>"}',
    "generation_config.json": "{}",
    "merges.txt": "a b",
    "vocab.bpe": "a",
    "spiece.model": "pieces",
    "words.tiktoken": "YQ== 0",
    "chat_template.jinja": "{{ messages }}",
    "modeling_theirs.py": "class Theirs: ...",
}


@pytest.fixture
def directory(tmp_path):
    return a_directory(tmp_path / "model")


def a_directory(path):
    path.mkdir(parents=True)
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


def digest(directory, tmp_path, home="home"):
    return model_ref(str(directory), field="model.policy", home=tmp_path / home).digest


@pytest.mark.parametrize("name", FILES)
def test_the_digest_changes_with_any_byte_of_what_is_read(directory, tmp_path, name):
    before = digest(directory, tmp_path)
    text = (directory / name).read_text()
    (directory / name).write_text(text[:-1] + "?")
    assert digest(directory, tmp_path) != before
    (directory / name).write_text(text)
    assert digest(directory, tmp_path) == before


def test_the_digest_changes_when_a_file_gets_another_name_comes_or_goes(directory, tmp_path):
    seen = {digest(directory, tmp_path)}
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    seen.add(digest(directory, tmp_path))
    (directory / "model-00002-of-00002.safetensors").write_text("more")
    seen.add(digest(directory, tmp_path))
    (directory / "merges.txt").unlink()
    seen.add(digest(directory, tmp_path))
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["README.md", "pytorch_model.bin", "loss.png", ".cache/model.safetensors"])
def test_files_that_no_model_is_read_from_change_nothing(directory, tmp_path, name):
    before = digest(directory, tmp_path)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("something")
    assert digest(directory, tmp_path) == before


def test_the_same_model_elsewhere_has_the_same_digest(directory, tmp_path):
    assert digest(directory, tmp_path) == digest(a_directory(tmp_path / "deep" / "copy"), tmp_path)


def test_the_reference_names_the_real_directory(directory, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(directory)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(directory), "model", "./model", "link", "~/model"):
        assert model_ref(name, field="model.policy", home=tmp_path / "home").path == str(directory)


# What is remembered


def counted(monkeypatch):
    """The files that are hashed from now on."""
    hashed = []

    def reading(path, real=digest_file):
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr("tasks.store.outside.models.digest_file", reading)
    return hashed


def test_a_file_is_hashed_once_while_it_stays_as_it_is(directory, tmp_path, monkeypatch):
    hashed = counted(monkeypatch)
    first = digest(directory, tmp_path)
    assert sorted(hashed) == sorted(FILES)
    hashed.clear()
    assert digest(directory, tmp_path) == first
    assert hashed == []
    # One way to a file is as good as another: two snapshots of a hub's model share what did not change.
    (tmp_path / "hub").mkdir()
    directory.rename(tmp_path / "hub" / "blobs")
    snapshots = [tmp_path / "hub" / "snapshots" / name for name in ("a", "b")]
    for snapshot in snapshots:
        snapshot.mkdir(parents=True)
        for name in FILES:
            (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert digest(snapshots[0], tmp_path) == first
    hashed.clear()
    assert digest(snapshots[1], tmp_path) == first
    assert hashed == []
    directory = snapshots[0]
    # Another home has a memory of its own.
    assert digest(directory, tmp_path, home="other") == first
    assert sorted(hashed) == sorted(FILES)


def rewritten(path):
    """Another size, and the time of before."""
    stat = path.stat()
    path.write_text("longer than it was")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def touched(path):
    """The same size, another time."""
    stat = path.stat()
    path.write_text("THE WEIGHTS")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def replaced(path):
    """The same size and time, another file."""
    stat = path.stat()
    new = path.with_name("new")
    new.write_text("THE WEIGHTS")
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.rename(path)


@pytest.mark.parametrize("change", [rewritten, touched, replaced])
def test_a_file_is_hashed_anew_when_its_size_time_or_inode_is_another(directory, tmp_path, monkeypatch, change):
    before = digest(directory, tmp_path)
    change(directory / "model.safetensors")
    hashed = counted(monkeypatch)
    assert digest(directory, tmp_path) != before
    assert hashed == ["model.safetensors"]


def test_a_link_to_another_file_is_another_file(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("one")
    second.write_text("two")
    link = tmp_path / "model.safetensors"
    link.symlink_to(first)
    before = remembered_digests([link], tmp_path, tmp_path / "digests.json")
    link.unlink()
    link.symlink_to(second)
    assert remembered_digests([link], tmp_path, tmp_path / "digests.json") != before


def test_a_memory_that_is_damaged_is_told_and_not_trusted(directory, tmp_path):
    digest(directory, tmp_path)
    memory = tmp_path / "home" / "digests.json"
    memory.write_text(memory.read_text()[:-10])
    with pytest.raises(RunError, match=r"digests\.json cannot be read .*; restore it, or remove it and run again"):
        digest(directory, tmp_path)
    memory.unlink()
    digest(directory, tmp_path)


# What is refused


def refusal(name, tmp_path):
    with pytest.raises(ModelError) as caught:
        model_ref(str(name), field="rewards.other.model", home=tmp_path / "home")
    message = str(caught.value)
    assert message.startswith(f"rewards.other.model: {name} ")
    assert "\n" not in message
    return message


def test_a_directory_without_a_configuration_is_refused(directory, tmp_path):
    (directory / "config.json").unlink()
    assert "has no config.json; name a directory that from_pretrained can load" in refusal(directory, tmp_path)


def test_a_directory_without_safetensors_is_refused(directory, tmp_path):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "has no *.safetensors file; save it with safetensors" in refusal(directory, tmp_path)


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "~/nowhere", "a/b/c", "../up"])
def test_a_path_where_nothing_is_is_never_asked_of_the_hub(tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    assert "is no directory; correct the path" in refusal(name, tmp_path)


def test_a_file_is_no_model(directory, tmp_path):
    assert "is no directory; correct the path" in refusal(directory / "config.json", tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing-of-that-name", "nothing-of-that-name", "not a name!"])
def test_a_hubs_name_without_a_network_says_how_to_go_on(tmp_path, name):
    message = refusal(name, tmp_path)
    assert "is no directory here and could not be fetched from the hub" in message
    assert "fetch the model where there is a network and name its directory" in message


def test_of_a_hubs_model_only_what_is_read_is_fetched_at_its_revision(directory, tmp_path, monkeypatch):
    import fnmatch

    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        for file in FILES:
            assert any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns), file
        assert not any(fnmatch.fnmatch("pytorch_model.bin", pattern) for pattern in allow_patterns)
        return str(directory)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    ref = model_ref("org/name", field="model.policy", home=tmp_path / "home", revision="v1")
    assert asked == [("org/name", "v1")]
    assert ref.digest == digest(directory, tmp_path)


# Adapters

# PEFT asks the library by a name that the library has given up.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers:UserWarning"),
]


def a_language_model(directory):
    from small_world import a_model

    a_model(directory)
    return directory


def an_adapter(directory, base, *, named=None, classifier=False, **settings):
    """A LoRA adapter over ``base`` as PEFT saves it, with a product that is not 0; and the model with it switched on."""
    auto_class = hf.AutoModelForSequenceClassification if classifier else hf.AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto_class.from_pretrained(base, **({"num_labels": 1} if classifier else {}))
    task_type = "SEQ_CLS" if classifier else "CAUSAL_LM"
    shape = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
    config = peft.LoraConfig(task_type=task_type, **shape)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape), alpha=0.3)
    adapted.save_pretrained(directory)
    content = json.loads((directory / "adapter_config.json").read_text())
    content["base_model_name_or_path"] = str(base) if named is None else named
    (directory / "adapter_config.json").write_text(json.dumps(content))
    return adapted


IDS = torch.tensor([[1, 7, 8, 9, 10]])


@pytest.mark.parametrize("classifier", [False, True])
def test_an_adapter_is_the_whole_model_that_it_makes_of_its_base(tmp_path, classifier, capfd):
    base = a_language_model(tmp_path / "base")
    adapted = an_adapter(tmp_path / "adapter", base, classifier=classifier)
    ref = model_ref(str(tmp_path / "adapter"), field="model.policy", home=tmp_path / "home")
    assert ref.directory.is_relative_to(tmp_path / "home" / "merged")
    assert "is an adapter; merging it with" in capfd.readouterr().err
    if classifier:
        whole = load_scalar_model(ref.directory, seed=3).model
        with torch.no_grad():
            body = adapted.base_model.model
            expected = body.score(body.model(input_ids=IDS).last_hidden_state)
            found = whole.score(whole.model(input_ids=IDS).last_hidden_state)
    else:
        with torch.no_grad():
            expected = adapted(input_ids=IDS).logits
            found = load_policy(ref.directory)(input_ids=IDS).logits
            bare = load_policy(base)(input_ids=IDS).logits
        assert (found - bare).abs().max() > 0.01
    assert torch.allclose(found, expected, atol=1e-5)
    # Its tokenizer is its base's, as it has none.
    assert (ref.directory / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    # Once merged, it is found; nothing heavy is started for it.
    again = model_ref(str(tmp_path / "adapter"), field="model.policy", home=tmp_path / "home")
    assert again == ref
    assert capfd.readouterr().err == ""
    assert [path.name for path in (tmp_path / "home" / "merged").iterdir()] == [ref.directory.name]


def test_another_adapter_or_base_is_another_model_and_the_same_again_has_the_same_digest(tmp_path):
    base = a_language_model(tmp_path / "base")
    an_adapter(tmp_path / "adapter", base)
    first = digest_of(tmp_path / "adapter", tmp_path / "home")
    assert digest_of(tmp_path / "adapter", tmp_path / "another home") == first
    content = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content | {"lora_alpha": 4}))
    assert digest_of(tmp_path / "adapter", tmp_path / "home") != first


def digest_of(directory, home):
    return model_ref(str(directory), field="model.policy", home=home).digest


@pytest.mark.slow
def test_an_adapters_base_counts_from_here_or_from_the_adapter_and_may_be_an_adapter(tmp_path, monkeypatch):
    base = a_language_model(tmp_path / "base")
    an_adapter(tmp_path / "first", base, named="../base")
    monkeypatch.chdir(tmp_path)
    merged = model_ref("first", field="model.policy", home=tmp_path / "home")
    over_first = an_adapter(tmp_path / "second", merged.path, named="first")
    ref = model_ref("second", field="model.policy", home=tmp_path / "home")
    with torch.no_grad():
        expected = over_first(input_ids=IDS).logits
        assert torch.allclose(load_policy(ref.directory)(input_ids=IDS).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        pytest.param({"target_modules": ["embed_tokens"]}, marks=pytest.mark.slow),
        pytest.param({"modules_to_save": ["lm_head"]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_adapter_that_parts_a_tied_head_from_its_embedding_keeps_both(tmp_path, settings):
    base = a_language_model(tmp_path / "base")
    assert hf.AutoConfig.from_pretrained(base).tie_word_embeddings
    adapted = an_adapter(tmp_path / "adapter", base, **settings)
    ref = model_ref(str(tmp_path / "adapter"), field="model.policy", home=tmp_path / "home")
    with torch.no_grad():
        expected = adapted(input_ids=IDS).logits
        assert torch.allclose(load_policy(ref.directory)(input_ids=IDS).logits, expected, atol=1e-5)
        assert not torch.allclose(load_policy(base)(input_ids=IDS).logits, expected, atol=1e-2)


@pytest.mark.slow
def test_tokens_that_came_with_an_adapter_are_the_models(tmp_path):
    base = a_language_model(tmp_path / "base")
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<{i}>" for i in range(310 - len(tokenizer))])
    longer = hf.AutoModelForCausalLM.from_pretrained(base)
    longer.resize_token_embeddings(310)
    longer.save_pretrained(tmp_path / "longer")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    an_adapter(tmp_path / "adapter", tmp_path / "longer", named=str(base), **settings)
    tokenizer.save_pretrained(tmp_path / "adapter")
    ref = model_ref(str(tmp_path / "adapter"), field="model.policy", home=tmp_path / "home")
    assert load_policy(ref.directory).get_input_embeddings().weight.shape[0] == 310
    assert len(hf.AutoTokenizer.from_pretrained(ref.directory)) == 310


def adapter_refusal(tmp_path, **changes):
    directory = tmp_path / "adapter"
    content = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(content | changes))
    message = refusal(directory, tmp_path)
    assert list((tmp_path / "home").glob("merged/*")) == []
    assert list((tmp_path / "home").glob("merged/.*")) == []
    return message


def test_an_adapter_that_cannot_be_merged_says_why(tmp_path):
    base = a_language_model(tmp_path / "base")
    an_adapter(tmp_path / "adapter", base)
    assert "does not say over which model; name that in base_model_name_or_path" in adapter_refusal(
        tmp_path, base_model_name_or_path=None
    )
    message = adapter_refusal(tmp_path, base_model_name_or_path="/nowhere/base")
    assert "is an adapter over /nowhere/base, which is not usable here (/nowhere/base is no directory" in message
    assert "is an adapter over itself" in adapter_refusal(tmp_path, base_model_name_or_path=str(tmp_path / "adapter"))
    # Of other shapes than its base.
    assert "cannot be merged with" in adapter_refusal(tmp_path, base_model_name_or_path=str(base), r=3)
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    assert "has an adapter_config.json that cannot be read" in refusal(tmp_path / "adapter", tmp_path)


def test_what_could_be_an_adapter_or_a_whole_model_is_refused(tmp_path):
    base = a_language_model(tmp_path / "base")
    an_adapter(tmp_path / "adapter", base)
    for path in base.iterdir():
        (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
    assert "holds the weights of a whole model and an adapter_config.json" in refusal(tmp_path / "adapter", tmp_path)


def test_a_hub_is_needed_for_what_is_no_directory_or_an_adapter_over_such(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    assert needs_hub("org/name")
    assert not needs_hub(str(tmp_path / "base"))
    config = tmp_path / "adapter" / "adapter_config.json"
    for base, expected in (("org/name", True), (str(tmp_path / "base"), False), ("../base", False), (None, False)):
        config.write_text(json.dumps({"base_model_name_or_path": base}))
        assert needs_hub(str(tmp_path / "adapter")) == expected


# A closed set of files.


def test_templates_in_a_directory_of_their_own_count(directory, tmp_path):
    seen = {digest(directory, tmp_path)}
    (directory / "additional_chat_templates").mkdir()
    for text in ("{{ a }}", "{{ b }}"):
        (directory / "additional_chat_templates" / "rag.jinja").write_text(text)
        seen.add(digest(directory, tmp_path))
    assert len(seen) == 3


@pytest.mark.parametrize(
    "named", ["pytorch_model.bin", "../elsewhere/model.safetensors", "/etc/passwd", "deep/model.safetensors", ""]
)
def test_an_index_may_name_no_file_of_another_format_or_place(directory, tmp_path, named):
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": named}}))
    with pytest.raises(ModelError, match=r"index\.json of .* names .*; weights are read from \*\.safetensors in the"):
        digest(directory, tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert digest(directory, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_cannot_be_read_is_told(directory, tmp_path, text):
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json of .*; save the model again"):
        digest(directory, tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer_x.json", "additional_chat_templates/a.jinja"]
)
def test_a_link_that_leads_out_of_the_model_is_refused(directory, tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=rf"{name} of .* is a link to .*secret; put the file itself there"):
        digest(directory, tmp_path)


def test_a_snapshot_in_the_hubs_cache_is_links_to_its_own_blobs(tmp_path):
    repo = tmp_path / "hub" / "models--someone--model"
    directory = a_directory(repo / "snapshots" / ("a" * 40))
    (repo / "blobs").mkdir()
    for path in list(directory.iterdir()):
        path.rename(repo / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    assert digest(directory, tmp_path) == digest(a_directory(tmp_path / "copy"), tmp_path)
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("../../../other/blobs/tokenizer.json")
    (repo.parent / "other" / "blobs").mkdir(parents=True)
    (repo.parent / "other" / "blobs" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is a link to"):
        digest(directory, tmp_path)


def test_with_a_tokenizer_goes_nothing_that_is_in_no_digest(directory, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (directory / "tokenizer_x").symlink_to(tmp_path / "secret")
    (directory / "tokenizer_y.json").symlink_to(tmp_path / "secret")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("{{ a }}")
    (directory / "additional_chat_templates" / "x").symlink_to(tmp_path / "secret")
    copy_tokenizer(directory, tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == {
        "additional_chat_templates/rag.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.bpe",
        "words.tiktoken",
    }
