"""A run that was stopped is taken up again and gives the bytes of one that was not."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus import encode as encode_module
from megatron_gptx.corpus import preprocess as preprocess_module
from megatron_gptx.corpus.encode import Options, Vocabulary
from megatron_gptx.corpus.preprocess import preprocess
from megatron_gptx.corpus.sources import find_files
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import manifest_path, read_manifest
from megatron_gptx.dataset.mmididx import bin_path, idx_path
from megatron_gptx.tokenizer.base import Batch
from tests.pairs import extended

OPTIONS = Options(append_eod=True)
UNIT_BYTES = 25_000
# The tool, cut into small parts, each of which is saved; its arguments follow.
DRIVER = """\
import sys
from megatron_gptx.commands.preprocess import main
from megatron_gptx.corpus import preprocess
from megatron_gptx.corpus import sources
divide = sources.divide
preprocess.divide = lambda files: divide(files, unit_bytes=25_000)
preprocess._SAVE_SECONDS = 0
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Write lines of all sizes, good and bad, that make some 60 parts."""
    draw = random.Random(3)
    lines = []
    while sum(map(len, lines)) < 1_400_000:
        text = "".join(draw.choice(["the ", "cat ", "sat\n", "é", "漢"]) for _ in range(600))
        lines.append(json.dumps({"text": text[: draw.randint(0, 600)]}) + "\n")
    lines[50] = "{broken\n"
    lines[900] = '{"other": 1}\n'
    path = tmp_path_factory.mktemp("corpus") / "x.jsonl"
    path.write_text("".join(lines) + json.dumps({"text": "the cat " * 7000}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_in_parts(tokenizer_file, corpus):
    """Preprocess in small parts, each of which is saved."""
    divide = preprocess_module.divide

    def run(prefix, **kwargs):
        vocabulary = Vocabulary(str(tokenizer_file))
        return preprocess(find_files([str(corpus)]), prefix, vocabulary, OPTIONS, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            preprocess_module, "divide", lambda files: divide(files, unit_bytes=UNIT_BYTES)
        )
        patch.setattr(preprocess_module, "_SAVE_SECONDS", 0)
        yield run


@pytest.fixture
def run(run_in_parts, tmp_path):
    """Preprocess so into a folder of the test's own."""
    return partial(run_in_parts, tmp_path / "out" / "x")


@pytest.fixture(scope="module")
def whole(run_in_parts, tmp_path_factory):
    """Return where an uninterrupted run has written."""
    prefix = tmp_path_factory.mktemp("whole") / "whole"
    outcome = run_in_parts(prefix)
    assert outcome.resumed_parts == 0
    assert outcome.num_parts > 50
    return prefix


@pytest.fixture(scope="module")
def expected(whole):
    """Return the files of an uninterrupted run."""
    return contents(whole)


def contents(prefix):
    return [path(prefix).read_bytes() for path in (bin_path, idx_path, manifest_path)]


def stop_after(monkeypatch, parts, error=KeyboardInterrupt):
    """Raise an error when a number of parts has been joined."""
    append = preprocess_module.IndexedDatasetWriter.append_file
    calls = []

    def append_or_stop(*args, **kwargs):
        if len(calls) == parts:
            args[0]._bin.write(b"half a part")
            raise error
        calls.append(1)
        return append(*args, **kwargs)

    monkeypatch.setattr(preprocess_module.IndexedDatasetWriter, "append_file", append_or_stop)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_the_number_of_workers_may_change_in_between(
    run, tmp_path, expected, monkeypatch, first, second
):
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run(workers=first)
    assert not idx_path(tmp_path / "out" / "x").exists()
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(workers=second)
    outcome = run(workers=second)
    assert outcome.resumed_parts == 12
    assert contents(tmp_path / "out" / "x") == expected
    assert [path.name for path in (tmp_path / "out" / "x.d").iterdir()] == ["manifest.json"]


def test_parts_of_another_input_are_not_used(run, tmp_path, corpus, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run()
    written_at = corpus.stat().st_mtime_ns
    os.utime(corpus, ns=(5, 5))
    try:
        assert run().resumed_parts == 0
    finally:
        os.utime(corpus, ns=(written_at, written_at))


@pytest.mark.parametrize("name", ["dataset.bin", "dataset.lengths", "dataset.sequences"])
def test_parts_that_were_cut_are_made_again(run, tmp_path, expected, monkeypatch, name):
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            run()
    os.truncate(tmp_path / "out" / "x.d" / "parts" / name, 3)
    assert run().resumed_parts == 0
    assert contents(tmp_path / "out" / "x") == expected


def test_a_mismatch_during_the_run_starts_again_with_the_reference(
    run, tmp_path, expected, monkeypatch
):
    pytest.importorskip("gigatoken", reason="gigatoken is an extra")
    make, made = encode_module.gigatoken_encoder, []

    def make_one_that_fails_later(tokenizer):
        encode = make(tokenizer)

        def encode_wrongly_at_last(texts):
            batch = encode(texts)
            made.append(len(texts))
            return Batch(batch.ids + 1, batch.lengths) if len(made) > 30 else batch

        return encode_wrongly_at_last

    monkeypatch.setattr(encode_module, "gigatoken_encoder", make_one_that_fails_later)
    outcome = run()
    assert len(made) > 30
    assert outcome.engine.startswith("tokenizers")
    assert "gigatoken gives" in outcome.reason
    bin_bytes, idx_bytes, manifest = contents(tmp_path / "out" / "x")
    assert [bin_bytes, idx_bytes] == expected[:2]
    assert json.loads(manifest)["engine"] == outcome.engine
    assert json.loads(manifest)["engine_reason"] == outcome.reason


def test_ids_beyond_the_vocabulary_are_an_error(run, tmp_path, monkeypatch):
    make = encode_module.Encoder.__init__

    def make_small(self, job):
        make(self, job)
        self._vocab_size = 100

    monkeypatch.setattr(encode_module.Encoder, "__init__", make_small)
    with pytest.raises(UserError, match=r"gives id \d+, beyond its own vocabulary of 100"):
        run()
    assert not idx_path(tmp_path / "out" / "x").exists()


def test_the_manifest_counts_and_checks_what_was_written(whole):
    manifest = read_manifest(manifest_path(whole))
    dataset = IndexedDataset(whole)
    assert manifest["num_tokens"] == dataset.num_tokens
    assert manifest["num_documents"] == dataset.num_documents
    assert manifest["tokens_per_byte"] == dataset.num_tokens / manifest["text_bytes"]
    assert manifest["max_id"] == int(np.max(dataset.read(0, dataset.num_tokens)))
    assert sum(manifest["rejected"].values()) == 2
    assert [len(manifest["checksums"][name]) for name in ("bin", "idx")] == [1, 1]


@pytest.mark.parametrize("num_kills", [4, extended(20)])
def test_kills_at_random_moments_lose_nothing(
    tmp_path, corpus, tokenizer_file, expected, num_kills
):
    draw = random.Random(11)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    root = preprocess_module.__file__.partition("/megatron_gptx/")[0]
    prefix = tmp_path / "out" / "x"

    def start(workers):
        return subprocess.Popen(
            [
                *(sys.executable, str(driver), str(corpus)),
                *("--tokenizer", str(tokenizer_file), "--append-eod"),
                *("--output-prefix", str(prefix), "--workers", str(workers)),
                *("--engine", "reference"),  # slow enough to be met at work
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )

    def finish(process):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert contents(prefix)[:2] == expected[:2]
        assert [path.name for path in (tmp_path / "out" / "x.d").iterdir()] == ["manifest.json"]
        shutil.rmtree(tmp_path / "out" / "x.d")
        bin_path(prefix).unlink()
        idx_path(prefix).unlink()
        return "resumed" in output

    def wait(process, kills):
        """Wait some part of a run; every other time until something has been saved as well."""
        deadline = time.monotonic() + draw.uniform(0.2, 1) * seconds
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
        saved = tmp_path / "out" / "x.d" / "progress.json"
        while kills % 2 and process.poll() is None and not saved.exists():
            time.sleep(0.005)

    started_at = time.monotonic()
    finish(start(1))
    seconds = time.monotonic() - started_at
    kills = resumed = 0
    while kills < num_kills:
        process = start(1 + kills % 3)
        wait(process, kills)
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)
            kills += 1
            if kills % 4:
                continue
            process = start(1 + kills % 2)
        resumed += finish(process)
    assert resumed
