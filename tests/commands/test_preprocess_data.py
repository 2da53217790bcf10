"""The command line, its messages, and how it is interrupted."""

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers

from megatron_gptx.commands import preprocess as tool
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.tokenizer.train import train_byte_level_bpe

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "preprocess_data.py"
FIXED = ("--tokenizer", "tokenizer.json", "--output-prefix", "out/data")


@pytest.fixture
def folder(tmp_path):
    """Hold a corpus, a tokenizer and a strange name."""
    folder = tmp_path / "a folder's"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(train_byte_level_bpe(["a b c"], vocab_size=257))
    lines = [{"text": "hello", "code": "x = 1"}, {"text": 7, "code": "y = 2"}]
    (folder / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def command(folder, *arguments):
    return [sys.executable, str(TOOL), *FIXED, *map(str, arguments)]


@pytest.fixture
def preprocess(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda *arguments: run(tool, *FIXED, *arguments)


def test_a_corpus_becomes_a_dataset_with_a_summary(preprocess, folder):
    done = preprocess("in.jsonl", "--append-eod")
    assert done.returncode == 0
    assert done.stderr == "rejected in.jsonl:2: 'text' is a number, not a string\n"
    assert "documents    1 from 1 files" in done.stdout
    assert "tokens       6 (1.200 tokens per byte)" in done.stdout
    assert "rejected     1 (1 'text' is a number, not a string)" in done.stdout
    assert re.search(r"^engine       (gigatoken|tokenizers) [\d.]+", done.stdout, re.MULTILINE)
    assert "MB/s, " in done.stdout
    assert IndexedDataset(folder / "out" / "data").num_tokens == 6
    assert preprocess("in.jsonl", "--append-eod").stdout == "out/data: up to date\n"


def test_every_option_reaches_the_dataset(preprocess, folder):
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "src" / "deep" / "m.py").write_text("schÃ¶n")
    (folder / "list").write_text("in.jsonl\n")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<EOT>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    done = preprocess(
        *("src", "--glob", "*.py", "--list-file", "list", "--json-key", "code"),
        *("--ftfy", "--workers", 2, "--append-eod", "--eod-token", "<EOT>", "--on-error", "stop"),
    )
    assert done.returncode == 0, done.stderr
    dataset = IndexedDataset(folder / "out" / "data")
    # Six bytes in UTF-8, five for `x = 1` and `y = 2`, and an end each.
    assert dataset.document_lengths(0, 3).tolist() == [7, 6, 6]
    end = tokenizer.token_to_id("<EOT>")
    assert {int(dataset.document(i)[-1]) for i in range(3)} == {end}
    assert preprocess("in.jsonl").returncode == 2
    assert preprocess("in.jsonl", "--overwrite").returncode == 0


def test_each_of_several_keys_becomes_a_dataset_of_its_own(preprocess, folder):
    for option in (("--json-keys", "text", "code"), ("--json-key", "text", "--json-key", "code")):
        done = preprocess("--input", "in.jsonl", *option, "--overwrite")
        assert done.returncode == 0, done.stderr
        sizes = {key: IndexedDataset(folder / "out" / f"data_{key}") for key in ("text", "code")}
        assert {key: each.num_documents for key, each in sizes.items()} == {"text": 1, "code": 2}
        assert not (folder / "out" / "data.idx").exists()


def test_a_key_that_fails_names_those_that_are_not_begun(preprocess, folder):
    done = preprocess("in.jsonl", "--json-keys", "code", "none", "text", "other")
    assert done.returncode == 2
    assert "for the key 'none'" in done.stderr
    assert done.stderr.splitlines()[-2:] == [
        "not begun: out/data_text, of the key 'text'",
        "not begun: out/data_other, of the key 'other'",
    ]
    assert IndexedDataset(folder / "out" / "data_code").num_documents == 2


def test_the_options_of_other_tools_are_understood(folder):
    (folder / "b.jsonl").write_text(json.dumps({"content": "schÃ¶n"}))
    done = subprocess.run(
        [
            *(sys.executable, str(TOOL), "--input", "b.jsonl,b.jsonl", "--json-keys", "content"),
            *("--vocab-file", "tokenizer.json", "--tokenizer-type", "HFTokenizer"),
            *("--dataset-impl", "mmap", "--append-eod", "--ftfy", "--log-interval", "100"),
            *("--workers", "1", "--output-prefix", "out/data"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "--tokenizer-type has no effect here",
        "--dataset-impl has no effect here",
        "--log-interval has no effect here",
    ]
    # "schön" is six bytes in UTF-8.
    assert IndexedDataset(folder / "out" / "data").document_lengths(0, 2).tolist() == [7, 7]


def test_lines_can_be_piped_in(folder):
    line = json.dumps({"text": "piped", "code": "x"})
    run = {"capture_output": True, "text": True, "check": False, "cwd": folder}
    run["env"] = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = command(folder, "-", "--json-keys", "text", "code")
    done = subprocess.run(arguments, input=f"{line}\n{line}\n", **run)
    assert done.returncode == 0, done.stderr
    assert IndexedDataset(folder / "out" / "data_text").num_documents == 2
    done = subprocess.run(arguments, input=f"{line}\n{line}\n", **run)
    assert done.stdout == "out/data_text: up to date\nout/data_code: up to date\n"
    assert sorted(path.name for path in (folder / "out").iterdir() if path.is_dir()) == [
        *("data_code.d", "data_text.d")
    ]


def test_special_tokens_in_text_become_text_an_id_or_an_error(preprocess, folder):
    (folder / "b.jsonl").write_text(json.dumps({"text": "a<|endoftext|>"}))
    lengths = {}
    for choice in ("text", "keep", "error"):
        done = preprocess("b.jsonl", "--special-tokens-in-text", choice, "--overwrite")
        lengths[choice] = done.returncode or IndexedDataset(folder / "out" / "data").num_tokens
    assert lengths == {"text": 14, "keep": 2, "error": 2}
    assert "b.jsonl:1: spells out the special token '<|endoftext|>'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no input files"),
        (["absent.jsonl"], "absent.jsonl: cannot be read: No such file or directory"),
        (["in.jsonl", "--on-error", "stop"], "in.jsonl:2: 'text' is a number"),
        (
            ["in.jsonl", "--json-key", "none"],
            "1 part(s) of the input for the key 'none': 0 empty, 2",
        ),
        (
            ["in.jsonl", "--json-keys", "text", "a/b"],
            "--json-key a/b: would be part of a file's name",
        ),
        (["--input", "in.jsonl,"], "an input has no name"),
        (["in.jsonl", "--tokenizer", "no.json"], "no.json: no such tokenizer file"),
        (["in.jsonl", "--tokenizer", "in.jsonl"], "in.jsonl: not a tokenizer.json"),
        (["in.jsonl", "--output-prefix", "in.jsonl/x"], "\nin.jsonl/x.d: Not a directory\n"),
        (["in.jsonl", "--workers", "0"], "must be 1 or more, got 0"),
    ],
)
def test_mistakes_give_one_message_and_status_2(preprocess, folder, arguments, message):
    done = preprocess(*arguments)
    assert done.returncode == 2
    assert message in f"\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert not list((folder / "out").glob("*")) if (folder / "out").exists() else True


@pytest.fixture
def start_long_run(folder):
    """Start a run of two workers that takes a while; return it once parts are being written."""
    line = json.dumps({"text": "some words to encode " * 200})
    (folder / "big-0.jsonl").write_text(f"{line}\n" * 20_000)
    # One file under many names: on a busy machine, a run of one may end before it is killed.
    names = [f"big-{number}.jsonl" for number in range(20)]
    for name in names[1:]:
        (folder / name).hardlink_to(folder / names[0])
    started = []

    def start():
        running = subprocess.Popen(
            command(folder, *names, "--workers", 2),
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        started.append(running)
        joined = folder / "out" / "data.d" / "parts" / "dataset.bin"
        # A part has 8 MB: the first one is done when the second one is appended.
        wait_until(lambda: joined.exists() and joined.stat().st_size > 9_000_000)
        assert running.poll() is None
        return running

    yield start
    for running in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


KEPT = "interrupted\nout/data.d keeps what is done: the same command goes on\n"


def test_control_c_leaves_no_dataset_and_no_process(folder, start_long_run):
    running = start_long_run()
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    assert running.communicate(timeout=30)[1] == KEPT
    assert running.returncode == 130
    assert [path.name for path in (folder / "out").iterdir()] == ["data.d"]
    wait_until(lambda: not alive(running.pid))


def test_workers_of_a_killed_run_end_and_the_next_run_is_whole(preprocess, folder, start_long_run):
    running = start_long_run()
    running.kill()
    running.wait()
    assert not (folder / "out" / "data.idx").exists()
    wait_until(lambda: not alive(running.pid))
    assert preprocess("in.jsonl").returncode == 0
    assert IndexedDataset(folder / "out" / "data").num_documents == 1
    assert [path.name for path in (folder / "out" / "data.d").iterdir()] == ["manifest.json"]


def test_workers_end_with_their_run_in_the_middle_of_a_file(folder):
    line = json.dumps({"text": "some words to encode " * 200})
    with gzip.open(folder / "big.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(80):
            file.write((f"{line}\n" * 1000).encode())  # a minute of work in one unit
    running = subprocess.Popen(
        command(folder, "big.jsonl.gz", "--workers", 2, "--engine", "reference"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    wait_until(lambda: any((folder / "out" / "data.d" / "parts").glob("run-*/00000000.bin")))
    running.kill()
    running.wait()
    wait_until(lambda: not alive(running.pid))


def test_a_killed_worker_ends_the_run_with_a_message(folder, start_long_run):
    running = start_long_run()
    processes = alive(running.pid)
    (worker, *_) = [
        pid for pid, parent in processes.items() if processes.get(parent) == running.pid
    ]
    os.kill(worker, signal.SIGKILL)
    message = running.communicate(timeout=30)[1]
    assert running.returncode == 2
    assert f"worker process {worker} was killed by signal 9 while it worked on big-" in message
    assert [path.name for path in (folder / "out").iterdir()] == ["data.d"]
    wait_until(lambda: not alive(running.pid))


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 seconds"
        time.sleep(0.02)


def alive(group):
    """Return the processes of a group that still run, with their parents, but no zombies."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, parent, process_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                found[int(path.parent.name)] = int(parent)
    return found


def test_the_tool_runs_without_torch_and_ftfy(folder):
    code = (
        "import atexit, os, sys\n"
        "from megatron_gptx.commands.preprocess import main\n"
        "heavy = {'torch', 'transformers', 'ftfy'}\n"
        "atexit.register(lambda: heavy & set(sys.modules) and os._exit(9))\n"
        "sys.exit(main())"
    )
    python, _, *arguments = command(folder, "in.jsonl", "--workers", 1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([python, "-c", code, *arguments], check=False, env=environment, cwd=folder)
    assert run.returncode == 0
