"""Copies elsewhere are whole or invisible, and whatever happens to them, the run goes on."""

import os
import shutil
import sys
from pathlib import Path

import fsspec
import pytest

from megatron_gptx.checkpoint.integrity import all_names, damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import CheckpointError
from megatron_gptx.checkpoint.run_tokenizer import keep_tokenizer, open_run_tokenizer
from megatron_gptx.checkpoint.upload import Upload
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import load
from megatron_gptx.config.yaml_writer import dump
from tests.runs import losses, start, tiny_config, train
from tests.vocabularies import write_vocabulary

WEIGHTS_FILE = "weights/layer-002.safetensors"


@pytest.fixture(scope="module")
def trained(finished) -> Path:
    """Train two steps on one rank; return the folder of both checkpoints."""
    return finished(training__steps=2, checkpoint__interval=1).folder / "checkpoints"


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "checkpoints"))


def wait(upload: Upload) -> None:
    upload.finish(timeout_seconds=60)
    assert upload.thread is not None
    assert not upload.thread.is_alive()


def intact(run_dir: Path) -> int:
    """Return the step of a run's newest checkpoint, all of whose files are intact."""
    found = newest(run_dir)
    assert found is not None
    assert damage(found, all_names(found)) is None
    return found.step


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_goes_on_from_what_was_uploaded(finished, corpus, tmp_path, asynchronous):
    options = {"checkpoint__interval": 2, "parallel__pipeline_stages": 2}
    options |= {"checkpoint__asynchronous": asynchronous, "schedule__name": "constant"}
    options["checkpoint__upload"] = f"file://{tmp_path}/elsewhere/checkpoints"
    options["data__tokenizer"] = "bytes"
    config, screen = (
        tiny_config(corpus, tmp_path / "run", training__steps=5, **options),
        tmp_path / "s",
    )
    assert start(config, screen=screen) == [0, 0]
    # The last one too: it was waited for.
    assert screen.read_text().count("uploaded step-0000000") == 3
    assert intact(tmp_path / "elsewhere") == 5
    names = {path.name for path in (tmp_path / "elsewhere" / "checkpoints").iterdir()}
    assert names == {"latest", "tokenizer", *(f"step-0000000{step}" for step in (2, 4, 5))}
    resumed = train(tiny_config(corpus, tmp_path / "elsewhere", training__steps=7, **options))
    del options["checkpoint__upload"], options["checkpoint__asynchronous"]
    assert losses(resumed) == finished(training__steps=7, **options).losses[5:]


def test_an_upload_that_fails_ends_no_run(corpus, tmp_path):
    (tmp_path / "file").touch()
    options = {"checkpoint__interval": 1, "checkpoint__upload": f"file://{tmp_path}/file/folder"}
    config, screen = (
        tiny_config(corpus, tmp_path / "run", training__steps=2, **options),
        tmp_path / "s",
    )
    assert start(config, screen=screen) == [0]
    said = screen.read_text()
    assert "step-00000001 not uploaded to file://" in said
    assert "step-00000002 not uploaded to file://" in said
    assert "Traceback" not in said
    assert intact(tmp_path / "run") == 2


def test_half_an_upload_is_invisible_and_is_tried_again(folder, tmp_path):
    said: list[str] = []
    upload = Upload(f"file://{tmp_path}/elsewhere/checkpoints", say=said.append)
    (folder / "step-00000001" / WEIGHTS_FILE).rename(tmp_path / "kept")
    upload.add(folder / "step-00000001")
    wait(upload)
    assert len(said) == 1
    assert "step-00000001 not uploaded to " in said[0]
    assert said[0].endswith("; it is tried again with the next one")
    there = tmp_path / "elsewhere" / "checkpoints"
    assert list(there.rglob("*.safetensors")), "nothing was copied before the failure"
    assert list(there.rglob("manifest*")) == []
    assert not (there / "latest").exists()
    (tmp_path / "kept").rename(folder / "step-00000001" / WEIGHTS_FILE)
    upload.add(folder / "step-00000002")
    wait(upload)
    # The newer one first, and an older one that comes later is not the latest.
    assert [text.split()[1] for text in said[1:]] == ["step-00000002", "step-00000001"]
    assert intact(tmp_path / "elsewhere") == 2


def test_a_step_that_is_saved_again_replaces_its_copy_and_is_never_half_of_each(folder, tmp_path):
    said: list[str] = []
    upload = Upload(f"file://{tmp_path}/elsewhere/checkpoints", say=said.append)
    upload.add(folder / "step-00000001")
    wait(upload)
    (folder / "step-00000001" / WEIGHTS_FILE).unlink()
    upload.add(folder / "step-00000001")
    wait(upload)
    assert len(said) == 2
    assert list((tmp_path / "elsewhere").rglob("manifest.json")) == []


def test_a_checkpoint_that_is_deleted_before_its_turn_is_left_out(folder, tmp_path):
    said: list[str] = []
    upload = Upload(f"file://{tmp_path}/elsewhere", say=said.append)
    shutil.rmtree(folder / "step-00000001")
    upload.add(folder / "step-00000001")
    wait(upload)
    assert said[0].endswith("; it is deleted")
    upload.add(folder / "step-00000002")
    wait(upload)
    assert len(said) == 2


def test_any_file_system_of_fsspec_will_do(folder):
    said: list[str] = []
    upload = Upload("memory://a/b", say=said.append)
    upload.add(folder / "step-00000002")
    wait(upload)
    assert said == ["uploaded step-00000002 to memory://a/b"]
    system = fsspec.filesystem("memory")
    assert system.cat_file("/a/b/latest") == b"step-00000002\n"
    copied = system.cat_file(f"/a/b/step-00000002/{WEIGHTS_FILE}")
    assert copied == (folder / "step-00000002" / WEIGHTS_FILE).read_bytes()


def test_a_place_that_does_not_answer_is_not_waited_for_longer_than_allowed(folder, tmp_path):
    said: list[str] = []
    upload = Upload(f"file://{tmp_path}/elsewhere", say=said.append)
    (tmp_path / "elsewhere").mkdir()
    os.mkfifo(tmp_path / "elsewhere" / "latest")  # nobody reads what is written to it
    upload.add(folder / "step-00000002")
    upload.finish(timeout_seconds=1)
    assert said == [f"step-00000002 not uploaded to file://{tmp_path}/elsewhere within 1 s"]
    (tmp_path / "elsewhere" / "latest").read_bytes()
    wait(upload)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(CheckpointError, match=r"needs the package fsspec: pip install"):
        Upload("s3://bucket/folder", say=print)


def test_a_url_that_names_no_place_is_a_mistake_at_the_start(corpus, tmp_path):
    options = {"training__steps": 1, "checkpoint__upload": "nosuch://bucket"}
    screen = tmp_path / "screen"
    assert start(tiny_config(corpus, tmp_path / "run", **options), screen=screen) == [2]
    said = screen.read_text()
    assert "checkpoint.upload: nosuch://bucket cannot be used: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "url", ["s3://me:canary@host/folder", "ftp://:canary@host", "https://host/folder?sig=canary"]
)
def test_a_url_with_a_secret_is_refused_without_showing_it(corpus, tmp_path, url):
    written = dump(tiny_config(corpus, tmp_path / "run")) + "\n"
    written = written.replace("checkpoint:\n", f'checkpoint:\n  upload: "{url}"\n')
    (tmp_path / "config.yml").write_text(written.replace("  upload: null\n", ""))
    with pytest.raises(ConfigError, match="must hold no password and no query") as caught:
        load([tmp_path / "config.yml"])
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/a/b", "abfs://box@account.dfs.core.windows.net/a", "file:///a/b@c", "gs://a"],
)
def test_other_urls_are_taken(corpus, tmp_path, url):
    written = dump(tiny_config(corpus, tmp_path / "run", checkpoint__upload=url))
    (tmp_path / "config.yml").write_text(written)
    assert load([tmp_path / "config.yml"]).checkpoint.upload == url


def test_the_tokenizer_of_a_run_lies_beside_its_copies(folder, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    keep_tokenizer(DataConfig(tokenizer=write_vocabulary("gpt2", tmp_path / "gpt2")), tmp_path)
    said: list[str] = []
    upload = Upload(f"file://{tmp_path}/elsewhere", say=said.append, tokenizer=tokenizer)
    for step in (1, 2):
        upload.add(folder / f"step-0000000{step}")
        wait(upload)
    own, copied = open_run_tokenizer(tmp_path), open_run_tokenizer(tmp_path / "elsewhere")
    assert own is not None
    assert copied is not None
    assert copied.tokenizer.fingerprint == own.tokenizer.fingerprint
    assert [line.split()[0] for line in said] == ["uploaded", "uploaded"]
