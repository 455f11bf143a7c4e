"""Files that are written while a stage goes on computing."""

import threading

import pytest

from tasks.store import background, digests, store
from tasks.store.background import BackgroundWriter


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(("writer", "flusher"))]


def test_the_caller_goes_on_while_a_file_is_written_and_leaving_waits_for_it(tmp_path):
    may_write, order = threading.Event(), []

    def write(path):
        assert may_write.wait(10)
        path.write_text("weights")
        order.append("written")

    with BackgroundWriter() as writer:
        writer.write(tmp_path / "file", write)
        order.append("computed")
        may_write.set()
    assert order == ["computed", "written"]
    assert (tmp_path / "file").read_text() == "weights"


def test_what_was_written_need_not_be_read_again_for_its_digest(tmp_path, monkeypatch):
    def write(directory):
        (directory / "deep").mkdir(parents=True)
        (directory / "deep/a").write_text("a")
        (directory / "b").write_text("b")

    with BackgroundWriter() as writer:
        writer.write(tmp_path / "model", write)
        writer.write(tmp_path / "alone", lambda path: path.write_text("c"))
    # The digests of a, b and c, from elsewhere.
    expected = {
        "alone": "2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6",
        "model/b": "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
        "model/deep/a": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    }
    monkeypatch.setattr(digests, "digest_file", lambda path: pytest.fail(f"{path} is read again"))
    assert store.digests_below(tmp_path) == expected


@pytest.mark.parametrize("flushes", [True, False])
def test_what_is_to_stay_is_on_the_disk_on_leaving(tmp_path, monkeypatch, flushes):
    flushed = []
    monkeypatch.setattr(background, "flush", flushed.append)
    with BackgroundWriter(flushes=flushes) as writer:
        writer.write(tmp_path / "file", lambda path: path.write_text("weights"))
    assert flushed == ([tmp_path / "file"] if flushes else [])
    assert not threads()


def test_a_flush_that_fails_is_told_on_leaving(tmp_path, monkeypatch):
    def flush(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(background, "flush", flush)
    with pytest.raises(OSError, match="Input/output"), BackgroundWriter() as writer:
        writer.write(tmp_path / "file", lambda path: path.write_text("weights"))


def test_a_file_that_was_changed_later_is_read_again(tmp_path):
    with BackgroundWriter() as writer:
        writer.write(tmp_path / "file", lambda path: path.write_text("before"))
    before = store.digests_below(tmp_path)
    (tmp_path / "file").write_text("now more")
    assert store.digests_below(tmp_path) != before


def test_a_write_that_fails_is_told_on_leaving(tmp_path):
    def write(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), BackgroundWriter() as writer:
        writer.write(tmp_path / "file", write)


def test_an_error_of_the_stage_waits_for_the_writers_and_is_what_is_told(tmp_path):
    def write(path):
        path.write_text("half")
        raise OSError("disk")

    def stage():
        with BackgroundWriter() as writer:
            writer.write(tmp_path / "file", write)
            raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        stage()
    assert (tmp_path / "file").exists()
    assert not threads()
