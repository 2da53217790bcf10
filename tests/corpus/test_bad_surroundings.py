"""Bad tokenizers, folders, disks and neighbours: a named outcome each, and no half dataset."""

import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from megatron_gptx.commands import preprocess as command_line
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import manifest_path, read_manifest
from megatron_gptx.tokenizer.train import train_byte_level_bpe

ROOT = Path(command_line.__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "preprocess_data.py"


pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Go to a folder with two inputs."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}))
    (tmp_path / "b.txt").write_text("two")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def preprocess(folder, capsys):
    """Run the tool in this process; return its status and what it printed."""

    def preprocess(*arguments, prefix="out/x", tokenizer="bytes"):
        options = ["--tokenizer", str(tokenizer), "--output-prefix", str(prefix)]
        status = command_line.main([*map(str, arguments), *options])
        printed = "".join(capsys.readouterr())
        assert "Traceback" not in printed
        return status, printed

    return preprocess


def documents(prefix="out/x"):
    dataset = IndexedDataset(prefix)
    return [bytes(dataset.document(i).tolist()).decode() for i in range(dataset.num_documents)]


def command(*arguments):
    options = ["--tokenizer", "bytes", "--output-prefix", "out/x"]
    return [sys.executable, str(TOOL), *map(str, arguments), *options]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_tokenizer_without_an_end_of_document_is_refused(preprocess, folder):
    content = train_byte_level_bpe(["a b"], vocab_size=257)
    (folder / "t.json").write_text(content.replace("<|endoftext|>", "<none>"))
    status, printed = preprocess("a.jsonl", "--append-eod", tokenizer="t.json")
    assert status == 2
    assert "t.json: no token that ends a document; known names are" in printed
    assert not (folder / "out").exists()


def test_a_tokenizer_with_ids_beyond_its_number_of_tokens_needs_wider_ids(preprocess, folder):
    content = json.loads(train_byte_level_bpe(["a b"], vocab_size=257))
    content["model"]["vocab"]["o"] = 70_000
    (folder / "t.json").write_text(json.dumps(content))
    assert preprocess("a.jsonl", tokenizer="t.json")[0] == 0
    dataset = IndexedDataset("out/x")
    assert dataset.dtype == np.int32
    assert dataset.document(0)[0] == 70_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", None, "t.json: no such tokenizer file"),
        ("t.json", "", "t.json: not a tokenizer.json"),
        ("t.json", '{"model": 3}', "t.json: not a tokenizer.json"),
        ("odd.tiktoken", "", "the file's name must tell the encoding"),
    ],
)
def test_a_tokenizer_that_is_none_is_refused(preprocess, folder, name, content, message):
    if content is not None:
        (folder / name).write_text(content)
    status, printed = preprocess("a.jsonl", tokenizer=name)
    assert (status, message in printed) == (2, True), printed


def test_a_missing_output_folder_is_made(preprocess):
    assert preprocess("a.jsonl", prefix="new/deep/x")[0] == 0
    assert documents("new/deep/x") == ["one"]


def test_a_read_only_output_folder_is_named(preprocess, folder):
    read_only = folder / "locked"
    read_only.mkdir()
    read_only.chmod(0o555)
    if os.access(read_only, os.W_OK):  # as root
        read_only = Path("/sys")
    status, printed = preprocess("a.jsonl", prefix=read_only / "x")
    assert status == 2
    assert f"{read_only}/x.d" in printed
    assert any(
        why in printed for why in ("Permission denied", "Operation not permitted", "Read-only")
    )


def test_an_existing_output_is_kept_as_it_is(preprocess, folder):
    assert preprocess("a.jsonl")[0] == 0
    before = {path: path.read_bytes() for path in (folder / "out").glob("x.*") if path.is_file()}
    status, printed = preprocess("b.txt")
    assert (status, "made from other inputs is there" in printed) == (2, True)
    assert preprocess("a.jsonl") == (0, "out/x: up to date\n")
    assert {path: path.read_bytes() for path in before} == before
    assert preprocess("b.txt", "--overwrite")[0] == 0
    assert documents() == ["two"]


@contextlib.contextmanager
def tiny_disk(where, size):
    """Mount a small file system, or skip."""
    where.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(path, megabytes):
    line = json.dumps({"text": "some words " * 90})
    path.write_text(f"{line}\n" * (megabytes * 1000))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_no_dataset_and_is_resumed_with_more_room(preprocess, folder, workers):
    fill(folder / "big.jsonl", 12)
    with tiny_disk(folder / "out", "20m"):
        status, printed = preprocess("big.jsonl", "--workers", workers)
        assert status == 2, printed
        assert "No space left on device" in printed
        assert not list((folder / "out").glob("x.[bi]*"))
        subprocess.run(["mount", "-o", "remount,size=60m", folder / "out"], check=True)
        status, printed = preprocess("big.jsonl", "--workers", workers)
        assert status == 0, printed
        assert documents() == ["some words " * 90] * 12_000
        assert [path.name for path in Path("out/x.d").iterdir()] == ["manifest.json"]


def test_a_limit_on_the_size_of_files_is_reported_like_a_full_disk(folder):
    fill(folder / "big.jsonl", 12)
    limit = 6 << 20

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = {"capture_output": True, "text": True, "check": False, "env": environment()}
    done = subprocess.run(command("big.jsonl"), preexec_fn=limited, timeout=60, **run)
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((folder / "out").glob("x.[bi]*"))
    assert subprocess.run(command("big.jsonl"), timeout=60, **run).returncode == 0
    assert documents() == ["some words " * 90] * 12_000


def test_of_two_runs_on_one_prefix_the_second_is_refused(preprocess, folder):
    first = subprocess.Popen(
        command("-", "a.jsonl"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    while not (folder / "out" / "x.d" / "stdin.jsonl").exists():
        assert first.poll() is None
    second = subprocess.run(
        command("-"), input=b"", capture_output=True, check=False, env=environment(), timeout=60
    )
    assert second.returncode == 2
    assert b"another run is writing this dataset" in second.stderr
    _, message = first.communicate(json.dumps({"text": "piped"}).encode(), timeout=60)
    assert (first.returncode, message) == (0, b"")
    assert documents() == ["one", "piped"]


def test_two_runs_started_together_give_one_dataset(folder):
    fill(folder / "big.jsonl", 4)
    runs = [
        subprocess.Popen(command("big.jsonl"), stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(2)
    ]
    messages = [run.communicate(timeout=60)[1] for run in runs]
    assert sorted(run.returncode for run in runs) in ([0, 0], [0, 2])
    for run, message in zip(runs, messages, strict=True):
        assert run.returncode == 0 or "another run is writing this dataset" in message
    assert documents() == ["some words " * 90] * 4000


def test_a_loop_of_links_ends(preprocess, folder):
    (folder / "in").mkdir()
    (folder / "in" / "a.txt").write_text("one")
    (folder / "in" / "loop").symlink_to(folder / "in")
    (folder / "in" / "self.txt").symlink_to("self.txt")
    status, printed = preprocess("in")
    assert (status, documents()) == (0, ["one"])
    assert "rejected in/self.txt: Too many levels of symbolic links" in printed
    status, printed = preprocess("in/self.txt", prefix="y")
    assert status == 2
    assert "in/self.txt: cannot be read: Too many levels of symbolic links" in printed


def unreadable(path):
    """Make a file that cannot be read, not even by root, who could read any file of a disk."""
    path.write_text("secret")
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.unlink()
        path.symlink_to("/proc/self/mem")


def test_an_unreadable_file_is_rejected_or_stops(preprocess, folder):
    (folder / "in").mkdir()
    (folder / "in" / "a.txt").write_text("one")
    unreadable(folder / "in" / "b.txt")
    (folder / "in" / "c.txt").symlink_to("nowhere")
    (folder / "in" / "c.jsonl").symlink_to("nowhere")
    (folder / "in" / "d.txt").write_text("two")
    status, printed = preprocess("in")
    assert (status, documents()) == (0, ["one", "two"])
    assert "rejected in/b.txt: " in printed
    assert "rejected in/c.jsonl: No such file or directory" in printed
    assert "rejected in/c.txt: No such file or directory" in printed
    status, printed = preprocess("in", "--on-error", "stop", prefix="y")
    assert (status, "in/b.txt: " in printed) == (2, True)


def test_a_pipe_in_the_place_of_a_file_is_refused(preprocess, folder):
    (folder / "in").mkdir()
    os.mkfifo(folder / "in" / "a.jsonl")
    (folder / "in" / "b.txt").write_text("two")
    assert stat.S_ISFIFO((folder / "in" / "a.jsonl").stat().st_mode)
    status, printed = preprocess("in")
    assert (status, documents()) == (0, ["two"])
    assert "rejected in/a.jsonl: not a file" in printed
    status, printed = preprocess("in/a.jsonl", prefix="y")
    assert (status, "in/a.jsonl: cannot be read: not a file" in printed) == (2, True)


@pytest.mark.parametrize(
    "name", ["two words", "it's", 'say "x"', "a\nb", "ünïcödé", "-dash", "[x]*?"]
)
def test_a_path_with_strange_characters_is_a_path(preprocess, folder, name):
    (folder / name).mkdir()
    (folder / name / "in.jsonl").write_text(json.dumps({"text": "one"}))
    prefix = folder / name / "out"
    status, printed = preprocess(folder / name / "in.jsonl", prefix=prefix)
    assert status == 0, printed
    assert documents(prefix) == ["one"]


def test_a_path_that_is_no_unicode_is_a_path(folder):
    (folder / "latin\udce9.jsonl").write_text('{"text": "one"}\n{"text": 2}\n')
    done = subprocess.run(
        command("latin\udce9.jsonl"), check=False, env=environment(), capture_output=True
    )
    assert (done.returncode, done.stderr.split(b":")[0]) == (0, b"rejected latin\\udce9.jsonl")
    assert documents() == ["one"]
    (example,) = read_manifest(manifest_path("out/x"))["rejected_examples"]
    assert example.startswith("latin\udce9.jsonl:2: ")


@pytest.mark.parametrize("closed", ["0", "1", "2"])
def test_a_closed_stream_is_no_obstacle_but_where_it_is_read(folder, closed):
    shell = ["sh", "-c", f'"$@" {closed}>&-', "sh"]
    run = {"check": False, "env": environment(), "capture_output": True, "text": True}
    assert subprocess.run([*shell, *command("a.jsonl", "--workers", 2)], **run).returncode == 0
    if closed == "0":
        done = subprocess.run([*shell, *command("-", "--overwrite")], **run)
        assert (done.returncode, done.stderr) == (
            2,
            "standard input is closed: pipe the lines in, or name files\n",
        )


def test_an_interruption_while_reading_standard_input_leaves_nothing(folder):
    running = subprocess.Popen(
        command("-"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    while not (folder / "out" / "x.d" / "stdin.jsonl").exists():
        assert running.poll() is None
    threading.Event().wait(0.1)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=30)[1] == "interrupted\n"
    assert running.returncode == 130
    assert not list((folder / "out").rglob("*.jsonl"))
