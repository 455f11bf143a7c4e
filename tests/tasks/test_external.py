"""References to models from outside the run: the digest is of what counts, and remembered only as long as it is sure."""

import os

import pytest

from tasks.errors import ModelError, RunError
from tasks.external import model_ref, remembered_digests
from tasks.store import digest_file

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
    # As does one whose weights are links, the way the hub's cache keeps them.
    linked = a_directory(tmp_path / "linked")
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(directory / "model.safetensors")
    assert digest(linked, tmp_path) == digest(directory, tmp_path)


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

    monkeypatch.setattr("tasks.external.digest_file", reading)
    return hashed


def test_a_file_is_hashed_once_while_it_stays_as_it_is(directory, tmp_path, monkeypatch):
    hashed = counted(monkeypatch)
    first = digest(directory, tmp_path)
    assert sorted(hashed) == sorted(FILES)
    hashed.clear()
    assert digest(directory, tmp_path) == first
    assert hashed == []
    # One way to a file is as good as another.
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in FILES:
        (linked / name).symlink_to(directory / name)
    assert digest(linked, tmp_path) == first
    assert hashed == []
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
    before = remembered_digests([link], tmp_path / "digests.json")
    link.unlink()
    link.symlink_to(second)
    assert remembered_digests([link], tmp_path / "digests.json") != before


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
