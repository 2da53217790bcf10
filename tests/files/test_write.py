"""A file changes all at once, and what fails leaves nothing behind."""

import os

import pytest

from megatron_gptx.files import write
from megatron_gptx.files.write import aside_of, write_aside, write_synced

both = pytest.mark.parametrize("replace", [write_synced, write_aside])


@both
def test_a_replaced_file_is_never_half_of_each(tmp_path, replace):
    path = tmp_path / "latest"
    replace(path, b"a long first content\n")
    reader = path.open()
    replace(path, "short, with an \u00e4\n")
    assert reader.read() == "a long first content\n"
    assert path.read_bytes() == "short, with an \u00e4\n".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]
    reader.close()


@both
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, replace, monkeypatch):
    path = tmp_path / "latest"
    replace(path, "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]


@both
def test_what_a_link_in_the_place_leads_to_is_not_written(tmp_path, replace):
    path, secret = tmp_path / "latest", tmp_path / "secret"
    secret.write_text("kept")
    aside_of(path).symlink_to(secret)
    replace(path, "new")
    assert (secret.read_text(), path.read_text()) == ("kept", "new")


def test_the_content_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    path, done = tmp_path / "latest", []
    fsync, rename = os.fsync, write.Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), fsync(handle)))
    monkeypatch.setattr(
        write.Path, "replace", lambda self, other: (done.append("name"), rename(self, other))
    )
    write_synced(path, "new")
    assert done == ["sync", "name", "sync"]
