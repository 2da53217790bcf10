"""Checkpoints made to do harm: a message each, without a crash, a wait or memory for nothing."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_gptx.checkpoint.changes import changed_options, check_model
from megatron_gptx.checkpoint.latest import lock
from megatron_gptx.checkpoint.manifest import LARGEST_MANIFEST, Checkpoint, CheckpointError, read
from megatron_gptx.files.write import write_synced
from tests.checkpoints import (
    OPTIMIZER_FILE,
    WEIGHTS_FILE,
    link_newest,
    peak_bytes,
    refusal,
    write_manifest,
)

SPARE_BYTES = 256 * 2**20


@pytest.fixture
def checkpoint(forgeable, tmp_path) -> Checkpoint:
    return link_newest(forgeable, tmp_path / "run")


NAMES = {
    "the folder above": "../secret",
    "a folder above in the middle": "weights/../../secret",
    "an absolute path": "/etc/passwd",
    "a file beside the manifest": "latest",
    "the manifest itself": "manifest.json",
    "a hidden file": "weights/.hidden",
    "no name": "weights/",
    "an empty name": "",
    "deeper": "weights/a/b",
    "a terminal's control characters": "weights/\x1b]0;harm\x07",
    "a line end": "weights/a\nerror on rank 0: all is well",
    "text from right to left": "weights/\u202egnp.exe",
    "half a character": "weights/\ud800",
    "a zero byte": "weights/a\0b",
    "five thousand letters": "weights/" + "x" * 5000,
    "another alphabet": "weights/l\u0430yer",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_that_lists_a_file_of_another_name_is_damaged(checkpoint, tmp_path, name):
    (checkpoint.path.parent / "secret").touch()
    files = {**checkpoint.manifest["files"], NAMES[name]: {"bytes": 0, "sha256": ""}}
    write_manifest(checkpoint.path, {**checkpoint.manifest, "files": files})
    said = refusal(tmp_path / "run")
    assert said is not None
    assert "manifest.json is damaged" in said
    assert said.isprintable()


COUNTS = [-1, 1.5, "1", None, 2**63, 10**400, math.nan, math.inf, [1], {}]


@pytest.mark.parametrize("count", COUNTS, ids=lambda count: str(count)[:9])
@pytest.mark.parametrize("place", ["step", "samples", "steps", "bytes", "rewinds"])
def test_a_count_in_a_manifest_that_is_none_is_damage(checkpoint, tmp_path, place, count):
    manifest = json.loads(json.dumps(checkpoint.manifest))
    owner = {
        "steps": manifest["optimizer"],
        "rewinds": manifest["guard"],
        "bytes": manifest["files"][WEIGHTS_FILE],
    }.get(place, manifest["state"])
    owner[place] = count
    write_manifest(checkpoint.path, manifest)
    said = refusal(tmp_path / "run")
    assert said is not None
    assert "manifest.json is damaged" in said


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an unknown counter": lambda m: {**m, "state": {**m["state"], "harm": 1}},
    "a loss scale that is a list": lambda m: {**m, "optimizer": {"steps": 1, "loss_scale": [1]}},
    "a loss scale of text": lambda m: {**m, "optimizer": {"steps": 1, "loss_scale": {"a": "b"}}},
    "an endless loss scale": lambda m: {**m, "optimizer": {"steps": 1, "loss_scale": {"a": 1e999}}},
    "a deep configuration": lambda m: {**m, "config": {**m["config"], "harm": deep(900)}},
    "a deep something": lambda m: {**m, "harm": deep(100)},
    "a deep format": lambda m: {**m, "format": deep(900)},
    "a long format": lambda m: {**m, "format": "x" * 10**6},
    "a return to a step that is text": lambda m: {**m, "guard": {"return_to": "../1"}},
    "a save that is due by a number": lambda m: {**m, "guard": {"save_is_due": 1}},
    "a best checkpoint without a loss": lambda m: {**m, "best": {"step": 1}},
    "a best loss that is none": lambda m: {**m, "best": {"step": 1, "valid_loss": math.nan}},
    "a best step that is text": lambda m: {**m, "best": {"step": "../1", "valid_loss": 1.0}},
    "fingerprints that are a list": lambda m: {**m, "data": [1]},
    "another step": lambda m: {**m, "state": {**m["state"], "step": 7}},
}


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_forged_manifest_is_named_in_a_short_message(checkpoint, tmp_path, change):
    write_manifest(checkpoint.path, MANIFESTS[change](checkpoint.manifest))
    said = refusal(tmp_path / "run")
    assert said is not None
    assert "step-00000001" in said
    assert len(said) < 1000


def test_a_manifest_of_a_hundred_thousand_files_is_read_at_once(checkpoint, tmp_path):
    entry = {"bytes": 10**15, "sha256": "0" * 64}
    files = {f"weights/layer-{number}.safetensors": entry for number in range(100_000)}
    write_manifest(checkpoint.path, {**checkpoint.manifest, "files": files})
    assert "is not in the manifest" in str(refusal(tmp_path / "run"))


def test_a_huge_manifest_is_not_read(checkpoint, tmp_path):
    path = checkpoint.path / "manifest.json"
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10**12)
    before = peak_bytes()
    said = refusal(tmp_path / "run")
    assert f"it is larger than {LARGEST_MANIFEST:,} bytes" in str(said)
    assert peak_bytes() - before < SPARE_BYTES


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = {
    "a pipe": os.mkfifo,
    "a loop": loop,
    "a device": endless,
    "a folder": Path.mkdir,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a folder": lambda path: path.symlink_to(path.parent),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", WEIGHTS_FILE, OPTIMIZER_FILE])
def test_what_is_no_file_is_neither_opened_nor_waited_for(checkpoint, tmp_path, name, kind):
    (checkpoint.path / name).unlink()
    SPECIAL[kind](checkpoint.path / name)
    assert name in str(refusal(tmp_path / "run"))


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_latest_that_is_no_file_is_neither_opened_nor_waited_for(checkpoint, tmp_path, kind):
    pointer = checkpoint.path.parent / "latest"
    pointer.unlink()
    SPECIAL[kind](pointer)
    assert refusal(tmp_path / "run") == f"{pointer} cannot be read: it is not a file"


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_found_where_nothing_is_expected(checkpoint, tmp_path, kind):
    if kind == "a folder":
        return  # an empty one holds nothing that could be read
    SPECIAL[kind](checkpoint.path / "optimizer" / "extra")
    assert str(refusal(tmp_path / "run")).endswith("/optimizer/extra is not in the manifest")


def test_a_folder_of_files_elsewhere_is_refused(checkpoint, tmp_path):
    (checkpoint.path / "weights").rename(tmp_path / "elsewhere")
    (checkpoint.path / "weights").symlink_to(tmp_path / "elsewhere")
    assert "weights" in str(refusal(tmp_path / "run"))


def test_the_name_of_a_stray_file_cannot_act_on_the_terminal(checkpoint, tmp_path):
    (checkpoint.path / "\x1b]0;harm\x07\udcff").touch()
    said = str(refusal(tmp_path / "run"))
    assert said.endswith("\\x1b]0;harm\\x07\\udcff is not in the manifest")
    said.encode()


def test_a_saved_configuration_cannot_act_on_the_terminal(checkpoint, forgeable):
    config = json.loads(json.dumps(checkpoint.manifest["config"]))
    config["model"]["activation"] = "\x1b[2Jgelu"
    write_manifest(checkpoint.path, {**checkpoint.manifest, "config": config})
    with pytest.raises(CheckpointError) as caught:
        check_model(read(checkpoint.path), forgeable.model)
    assert "\x1b" not in str(caught.value)
    assert changed_options(read(checkpoint.path), forgeable) != []


def test_the_lock_is_not_taken_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("a thesis")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match="cannot be used"):
        lock(tmp_path / "checkpoints")
    assert (tmp_path / "precious").read_text() == "a thesis"


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    os.mkfifo(tmp_path / "checkpoints" / ".lock")
    lock(tmp_path / "checkpoints").close()


def test_what_a_link_leads_to_is_not_overwritten(tmp_path):
    (tmp_path / "precious").write_text("a thesis")
    (tmp_path / "latest.partial").symlink_to(tmp_path / "precious")
    write_synced(tmp_path / "latest", b"step-00000001\n")
    assert (tmp_path / "precious").read_text() == "a thesis"
    assert (tmp_path / "latest").read_text() == "step-00000001\n"
