"""Whole datasets or none, the same bytes for any number of workers."""

import errno
import fcntl
import json
import os

import numpy as np
import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus import preprocess as preprocess_module
from megatron_gptx.corpus.encode import Options, Vocabulary
from megatron_gptx.corpus.preprocess import preprocess
from megatron_gptx.corpus.sources import find_files
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import manifest_path, read_manifest
from megatron_gptx.dataset.mmididx import bin_path, idx_path
from megatron_gptx.tokenizer.build import load_tokenizer


@pytest.fixture
def corpus(tmp_path):
    """Three inputs with 60 documents, two bad lines and an empty text."""
    first = tmp_path / "first.jsonl"
    lines = [json.dumps({"text": f"the cat number {i} " + "sat " * (i % 7)}) for i in range(50)]
    lines.insert(20, "{broken")
    lines.insert(40, '{"text": 3}')
    first.write_text("\n".join(lines))
    (tmp_path / "alone.txt").write_text("on the mat <|endoftext|> é", encoding="utf-8")
    second = tmp_path / "second.jsonl"
    second.write_text(
        "".join(json.dumps({"text": f"mat {i}"}) + "\n" for i in range(9)) + '{"text": ""}'
    )
    return [str(first), str(tmp_path / "alone.txt"), str(second)]


@pytest.fixture
def small_units(monkeypatch):
    divide = preprocess_module.divide
    monkeypatch.setattr(preprocess_module, "divide", lambda files: divide(files, unit_bytes=300))


@pytest.fixture
def run(tmp_path, tokenizer_file, corpus):
    """Preprocess to a prefix in a folder of its own."""

    def run(name="x", *, files=corpus, options=Options(append_eod=True), **kwargs):  # noqa: B008
        prefix = tmp_path / "out" / name
        vocabulary = Vocabulary(str(tokenizer_file))
        return preprocess(find_files(files), prefix, vocabulary, options, **kwargs)

    return run


@pytest.fixture
def prefix(tmp_path):
    return tmp_path / "out" / "x"


def listing(prefix):
    return sorted(path.name for path in prefix.parent.iterdir())


def test_documents_are_encoded_in_order_with_their_ends(run, prefix, tokenizer_file):
    summary = run().summary
    tokenizer = load_tokenizer(tokenizer_file)
    dataset = IndexedDataset(prefix)
    texts = [tokenizer.decode(dataset.document(i)[:-1].tolist()) for i in range(60)]
    assert texts[:2] == ["the cat number 0 ", "the cat number 1 sat "]
    assert texts[50:52] == ["on the mat <|endoftext|> é", "mat 0"]
    ends = [int(dataset.document(i)[-1]) for i in range(60)]
    assert ends == [tokenizer.end_of_document] * 60
    assert dataset.dtype == np.uint16
    everything = dataset.read(0, dataset.num_tokens)
    assert (everything == tokenizer.end_of_document).sum() == 60
    assert (summary.num_documents, summary.num_tokens) == (60, dataset.num_tokens)
    assert summary.max_id == everything.max()
    assert summary.text_bytes == sum(len(text.encode()) for text in texts)


def test_any_number_of_workers_gives_the_same_bytes_and_report(run, prefix, small_units):
    one = run("x")
    two = run("y", workers=2)
    assert one == two
    for path in (bin_path, idx_path):
        assert path(prefix).read_bytes() == path(prefix.with_name("y")).read_bytes()
    assert manifest_path(prefix).read_bytes() == (manifest_path(prefix.with_name("y")).read_bytes())
    assert listing(prefix) == ["x.bin", "x.d", "x.idx", "y.bin", "y.d", "y.idx"]
    assert [path.name for path in (prefix.parent / "x.d").iterdir()] == ["manifest.json"]


def test_units_do_not_show_in_the_bytes(run, prefix, request):
    run("x")
    request.getfixturevalue("small_units")
    run("y")
    assert bin_path(prefix).read_bytes() == bin_path(prefix.with_name("y")).read_bytes()
    assert idx_path(prefix).read_bytes() == idx_path(prefix.with_name("y")).read_bytes()


def test_rejected_lines_are_named_with_their_place_in_the_file(run, small_units, corpus, prefix):
    summary = run().summary
    assert summary.rejected_examples == [
        f"{corpus[0]}:21: not JSON: Expecting property name enclosed in double quotes",
        f"{corpus[0]}:41: 'text' is a number, not a string",
    ]
    assert sum(summary.rejected.values()) == 2
    assert summary.empty == 1
    assert read_manifest(manifest_path(prefix))["rejected"] == summary.rejected


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_on_an_error_leaves_no_dataset(run, prefix, corpus, small_units, workers):
    with pytest.raises(UserError, match=r"first\.jsonl:21: not JSON"):
        run(files=corpus[:1], options=Options(stop_on_error=True), workers=workers)
    assert listing(prefix) == ["x.d"]
    assert run(files=corpus[:1], options=Options(), workers=workers).resumed_parts == 0
    assert listing(prefix) == ["x.bin", "x.d", "x.idx"]


def test_the_same_again_is_up_to_date(run, prefix):
    run()
    before = bin_path(prefix).stat().st_mtime_ns
    assert run() is None
    assert bin_path(prefix).stat().st_mtime_ns == before


def test_a_dataset_of_another_tokenizer_in_the_way_is_named_so(run, prefix, corpus):
    run()
    with pytest.raises(UserError, match="made from another tokenizer and other options is there"):
        preprocess(find_files(corpus), prefix, Vocabulary("bytes"), Options())


def test_another_dataset_in_the_way_is_refused_or_replaced(run, prefix, corpus):
    run()
    before = bin_path(prefix).read_bytes()
    with pytest.raises(UserError, match=r"made from other options is there.*--overwrite"):
        run(options=Options())
    os.utime(corpus[0], ns=(1, 1))
    with pytest.raises(UserError, match="made from other inputs and other options"):
        run(options=Options())
    assert bin_path(prefix).read_bytes() == before
    run(options=Options(), overwrite=True)
    assert len(bin_path(prefix).read_bytes()) == len(before) - 120
    assert run(options=Options()) is None


def test_a_dataset_of_another_tool_is_not_touched(run, prefix):
    run()
    manifest_path(prefix).unlink()
    with pytest.raises(UserError, match="a dataset is there that this tool did not make"):
        run()
    idx_path(prefix).unlink()
    with pytest.raises(UserError, match=r"x\.bin: in the way, without its \.idx"):
        run()


def test_what_a_killed_run_left_is_cleared(run, prefix):
    run()
    expected = bin_path(prefix).read_bytes()
    idx_path(prefix).unlink()
    left = prefix.parent / "x.d" / "parts"
    left.mkdir()
    (left / "run-1").mkdir()
    (left / "run-1" / "00000000.bin").write_bytes(b"junk")
    (left / "dataset.bin").write_bytes(b"junk")
    (left.parent / "progress.json").write_text("{cut o")
    assert run() is not None
    assert bin_path(prefix).read_bytes() == expected
    assert not left.exists()


@pytest.mark.parametrize("moment", ["append_file", "finalize"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_an_interruption_leaves_no_dataset(run, prefix, monkeypatch, moment, error):
    def interrupt(*_, **__):
        raise error

    monkeypatch.setattr(preprocess_module.IndexedDatasetWriter, moment, interrupt)
    with pytest.raises((KeyboardInterrupt, UserError)):
        run()
    monkeypatch.undo()
    assert not bin_path(prefix).exists()
    assert not idx_path(prefix).exists()
    assert run() is not None


def test_two_runs_on_one_prefix_do_not_mix(run, prefix):
    folder = prefix.parent / "x.d"
    folder.mkdir(parents=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"x\.d: another run is writing this dataset"):
        run()
    os.close(handle)
    assert run() is not None


def test_input_without_a_document_is_an_error(run, prefix, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": ""}\n\n{"no": 1}\n')
    message = r"no document in 1 part.*: 2 empty, 1 rejected, such as .*empty\.jsonl:3: no key"
    with pytest.raises(UserError, match=message):
        run(files=[str(path)])
    path.write_text("")
    with pytest.raises(UserError, match="all files of the input are empty"):
        run(files=[str(path)])
    assert listing(prefix) == []


def test_ftfy_repairs_mojibake(run, prefix, tmp_path, tokenizer_file):
    (tmp_path / "m.txt").write_text("schÃ¶n")
    run(files=[str(tmp_path / "m.txt")], options=Options(ftfy="full"))
    ids = IndexedDataset(prefix).document(0).tolist()
    assert load_tokenizer(tokenizer_file).decode(ids) == "schön"


def test_a_tokenizer_without_an_end_of_document_is_refused_where_it_is_needed(
    run, prefix, tmp_path, tokenizer_file
):
    content = json.loads(tokenizer_file.read_text())
    text = json.dumps(content).replace("<|endoftext|>", "<nothing>")
    bare = tmp_path / "bare.json"
    bare.write_text(text)
    files = find_files([str(tmp_path / "alone.txt")])
    bare = Vocabulary(str(bare))
    assert preprocess(files, prefix, bare, Options()) is not None
    with pytest.raises(UserError, match=r"no token that ends a document.*--eod-token"):
        preprocess(files, prefix, bare, Options(append_eod=True), overwrite=True)
    named = Options(append_eod=True, eod_token="<nothing>")
    assert preprocess(files, prefix, bare, named, overwrite=True) is not None
    assert IndexedDataset(prefix).document(0)[-1] == 0
