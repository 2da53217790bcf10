"""Checkpoints on disk: which one is used, and how damage is found."""

import json
import subprocess

import pytest

from megatron_gptx.checkpoint.integrity import damage
from megatron_gptx.checkpoint.latest import newest, newest_sound
from megatron_gptx.checkpoint.manifest import FORMAT, CheckpointError, read
from megatron_gptx.checkpoint.names import checkpoints, replaced
from megatron_gptx.files.checksums import file_sha256
from tests.checkpoints import write_checkpoint, write_manifest


@pytest.fixture
def checkpoint(tmp_path):
    return read(write_checkpoint(tmp_path, 3))


def test_a_run_without_checkpoints_has_no_newest_one(tmp_path):
    assert newest(tmp_path) is None


def test_a_run_goes_back_to_its_newest_checkpoint(tmp_path):
    for step in (2, 3):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000003\n")
    found = newest_sound(tmp_path)
    assert found is not None
    assert found.step == 3


def test_a_run_goes_back_to_none_that_was_saved_amid_bad_steps(tmp_path):
    write_checkpoint(tmp_path, 2)
    write_checkpoint(tmp_path, 3, guard={"in_a_row": 1, "return_to": 2})
    write_checkpoint(tmp_path, 4, guard={"in_a_row": 1, "return_to": None})
    write_checkpoint(tmp_path, 5, guard={"in_a_row": 1, "return_to": 1})
    latest = tmp_path / "checkpoints" / "latest"
    latest.write_text("step-00000003\n")
    found = newest_sound(tmp_path)
    assert found is not None
    assert found.step == 2
    latest.write_text("step-00000004\n")
    assert newest_sound(tmp_path) is None
    latest.write_text("step-00000005\n")
    with pytest.raises(CheckpointError, match=r"step-00000001 is not there, or no more"):
        newest_sound(tmp_path)


def test_the_newest_checkpoint_is_the_one_that_latest_names(tmp_path):
    for step in (2, 3, 4):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000003\n")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 3


def test_a_checkpoint_that_lost_its_name_to_nobody_is_still_there(tmp_path):
    path = write_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000002\n")
    path.rename(replaced(path))
    found = newest(tmp_path)
    assert found is not None
    assert (found.path, found.step) == (replaced(path), 2)
    assert checkpoints(path.parent) == [replaced(path)]
    write_checkpoint(tmp_path, 2)
    assert checkpoints(path.parent) == [path]


def test_a_checkpoint_that_latest_does_not_name_yet_does_not_count(tmp_path):
    write_checkpoint(tmp_path, 2)
    (tmp_path / "checkpoints" / "latest").write_text("none\n")
    assert newest(tmp_path) is None


def test_a_missing_latest_beside_checkpoints_is_a_question_to_the_user(tmp_path):
    write_checkpoint(tmp_path, 3)
    with pytest.raises(CheckpointError, match="holds step-00000003 but no file 'latest'; write"):
        newest(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../other",
        "/etc",
        "",
        "step-3",
        "step-00000009",
        "step-00000003/..",
        "step-00000003.partial",
    ],
)
def test_latest_can_only_name_a_checkpoint_beside_it(tmp_path, name):
    write_checkpoint(tmp_path, 3)
    write_checkpoint(tmp_path / "checkpoints" / "other", 3)
    (tmp_path / "checkpoints" / "latest").write_text(name)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; there are: step-00000003$"):
        newest(tmp_path)


def test_an_unreadable_latest_is_named(tmp_path):
    write_checkpoint(tmp_path, 3)
    pointer = tmp_path / "checkpoints" / "latest"
    pointer.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"latest cannot be read"):
        newest(tmp_path)
    pointer.unlink()
    pointer.mkdir()
    with pytest.raises(CheckpointError, match=r"latest cannot be read"):
        newest(tmp_path)


def test_checkpoints_are_ordered_by_step_and_nothing_else_counts(tmp_path):
    for step in (100_000_000, 99_999_999, 3):
        write_checkpoint(tmp_path, step)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000030.partial").mkdir()
    (folder / "step-final").mkdir()
    (folder / "step-00000040").touch()
    names = [path.name for path in checkpoints(folder)]
    assert names == ["step-00000003", "step-99999999", "step-100000000"]


MANIFESTS = {
    "nothing": b"",
    "half of it": f'{{"format": {FORMAT}, "sta'.encode(),
    "no text": b"\xff\xfe\x00",
    "nested without end": b"[" * 100_000,
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "an empty object": b"{}",
    "only a format": f'{{"format": {FORMAT}}}'.encode(),
}
CHANGES = {
    "a state that is no object": ("state", None),
    "a state without a step": ("state", {}),
    "a step that is no number": ("state", {"step": "3"}),
    "a negative step": ("state", {"step": -3}),
    "a list of files": ("files", ["weights/a.bin"]),
    "a file without a checksum": ("files", {"weights/a.bin": {"bytes": 11}}),
    "a file that is a number": ("files", {"weights/a.bin": 11}),
    "no guard": ("guard", None),
    "a guard that counts backwards": ("guard", {"bad_steps": -1}),
    "a guard of losses that are none": ("guard", {"losses": [float("nan")]}),
    "no model": ("config", {}),
    "a model that is a list": ("config", {"model": []}),
    "a layout that is a list": ("layout", []),
    "an optimizer that is a list": ("optimizer", []),
    "an optimizer without steps": ("optimizer", {}),
}


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_file_that_is_no_manifest_is_named(tmp_path, content):
    folder = write_checkpoint(tmp_path, 3)
    (folder / "manifest.json").write_bytes(MANIFESTS[content])
    with pytest.raises(CheckpointError, match=r"step-00000003/manifest.json "):
        read(folder)


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_holds_other_things_is_damaged(checkpoint, change):
    key, value = CHANGES[change]
    write_manifest(checkpoint.path, {**checkpoint.manifest, key: value})
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        read(checkpoint.path)


def test_a_missing_manifest_is_named(checkpoint):
    (checkpoint.path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read"):
        read(checkpoint.path)


def test_another_format_is_named_with_the_one_that_is_read(checkpoint):
    write_manifest(checkpoint.path, {**checkpoint.manifest, "format": FORMAT + 1})
    with pytest.raises(
        CheckpointError, match=rf"has format {FORMAT + 1}, this version reads {FORMAT}"
    ):
        read(checkpoint.path)


def test_a_manifest_that_its_seal_does_not_match_is_not_trusted(checkpoint):
    changed = {
        **checkpoint.manifest,
        "state": {**checkpoint.manifest["state"], "samples": 1},
    }
    (checkpoint.path / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"manifest.json has changed since it was saved"):
        read(checkpoint.path)


def test_a_missing_seal_is_named(checkpoint):
    (checkpoint.path / "manifest.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"manifest.sha256 cannot be read"):
        read(checkpoint.path)


def test_the_seal_is_what_sha256sum_reads(checkpoint):
    command = ["sha256sum", "--check", "--strict", "manifest.sha256"]
    subprocess.run(command, cwd=checkpoint.path, check=True, capture_output=True)


def test_whole_files_are_intact(checkpoint):
    assert damage(checkpoint, ["weights/a.bin"]) is None


def test_a_missing_file_is_found(checkpoint):
    (checkpoint.path / "weights" / "a.bin").unlink()
    assert damage(checkpoint, ["weights/a.bin"]) == f"{checkpoint.path}/weights/a.bin is missing"


def test_a_file_of_another_size_is_found(checkpoint):
    (checkpoint.path / "weights" / "a.bin").write_bytes(b"the weight")
    problem = damage(checkpoint, ["weights/a.bin"])
    assert problem == f"{checkpoint.path}/weights/a.bin has 10 bytes, the manifest says 11"


def test_one_changed_byte_is_found(checkpoint):
    (checkpoint.path / "weights" / "a.bin").write_bytes(b"the Weights")
    problem = damage(checkpoint, ["weights/a.bin"])
    assert problem is not None
    assert problem.endswith("(its checksum differs)")


def test_a_file_that_the_manifest_does_not_list_is_not_trusted(checkpoint):
    (checkpoint.path / "weights" / "b.bin").touch()
    problem = damage(checkpoint, ["weights/b.bin"])
    assert problem == f"{checkpoint.path}/weights/b.bin is not in the manifest"


@pytest.mark.parametrize("name", ["../../secret", "weights/../../../secret", "link", "{absolute}"])
def test_a_path_in_the_manifest_cannot_leave_the_checkpoint(tmp_path, checkpoint, name):
    secret = tmp_path / "secret"
    secret.write_text("the weights")
    (checkpoint.path / "link").symlink_to(secret)
    name = name.format(absolute=secret)
    checkpoint.manifest["files"] = {name: {"bytes": 11, "sha256": file_sha256(secret)}}
    assert damage(checkpoint, [name]) == f"{name} lies outside {checkpoint.path}"


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000], ids=["a zero byte", "too long"])
def test_an_impossible_path_in_the_manifest_is_damage(checkpoint, name):
    checkpoint.manifest["files"] = {name: {"bytes": 11, "sha256": ""}}
    assert damage(checkpoint, [name]) is not None
