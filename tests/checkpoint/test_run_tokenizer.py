"""A run takes its tokenizer along: every file of it, and what ends a document."""

import json
import shutil

import pytest

from megatron_gptx.checkpoint.run_tokenizer import keep_tokenizer, open_run_tokenizer
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.encode import Options, Vocabulary
from megatron_gptx.corpus.preprocess import preprocess
from megatron_gptx.corpus.sources import find_files
from megatron_gptx.tokenizer.build import load_tokenizer
from tests.vocabularies import KINDS, write_vocabulary

TEXT = "the model learns a list"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_a_tokenizer_of_every_kind_goes_along_whole(tmp_path, run, kind):
    path = write_vocabulary(kind, tmp_path / "vocabulary")
    before = load_tokenizer(path)
    ids, fingerprint = before.encode(TEXT), before.fingerprint
    assert keep_tokenizer(DataConfig(tokenizer=path), run) is None
    shutil.rmtree(tmp_path / "vocabulary", ignore_errors=True)
    kept = open_run_tokenizer(run)
    assert kept.tokenizer.fingerprint == fingerprint
    assert kept.tokenizer.encode(TEXT) == ids
    assert kept.ends == []


def test_a_run_without_a_tokenizer_takes_none_along(run):
    assert keep_tokenizer(DataConfig(), run) is None
    assert open_run_tokenizer(run) is None
    assert list(run.iterdir()) == []


def test_another_start_leaves_the_same_tokenizer_as_it_is(tmp_path, run):
    data = DataConfig(tokenizer=write_vocabulary("gpt2", tmp_path / "vocabulary"))
    keep_tokenizer(data, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert keep_tokenizer(data, run) is None
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_merges_may_have_any_name(tmp_path, run):
    path = write_vocabulary("gpt2", tmp_path / "vocabulary")
    ids = load_tokenizer(path).encode(TEXT)
    keep_tokenizer(DataConfig(tokenizer=path), run)
    kept = run / "tokenizer"
    (kept / "files" / "merges.txt").rename(kept / "files" / "mine.bpe")
    manifest = (kept / "manifest.json").read_text()
    (kept / "manifest.json").write_text(manifest.replace("merges.txt", "mine.bpe"))
    assert open_run_tokenizer(run).tokenizer.encode(TEXT) == ids


def test_another_tokenizer_replaces_the_first_one_and_is_named(tmp_path, run):
    keep_tokenizer(DataConfig(tokenizer="bytes"), run)
    path = write_vocabulary("byte-level", tmp_path / "vocabulary")
    note = keep_tokenizer(DataConfig(tokenizer=path), run)
    assert note.startswith(f"tokenizer: {path} is another one than this run had")
    assert open_run_tokenizer(run).tokenizer.fingerprint == load_tokenizer(path).fingerprint


def test_a_file_that_has_changed_since_is_named_and_a_new_start_mends_it(tmp_path, run):
    data = DataConfig(tokenizer=write_vocabulary("gpt2", tmp_path / "vocabulary"))
    keep_tokenizer(data, run)
    kept = run / "tokenizer" / "files" / "merges.txt"
    kept.write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"merges\.txt has changed since the run began; remove"):
        open_run_tokenizer(run)
    kept.unlink()
    with pytest.raises(UserError, match=r"merges\.txt cannot be read: No such file"):
        open_run_tokenizer(run)
    assert keep_tokenizer(data, run) is None
    assert open_run_tokenizer(run) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"files": {"../vocab.json": "0"}, "opens": "../vocab.json"},
        {"files": {"..": "0"}, "opens": ".."},
        {"opens": "elsewhere"},
        {"ends": ["x"]},
        {"end_name": 3},
    ],
)
def test_a_manifest_that_is_none_of_ours_is_refused(run, change):
    keep_tokenizer(DataConfig(tokenizer="bytes"), run)
    path = run / "tokenizer" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=r"manifest\.json: damaged, or of another version"):
        open_run_tokenizer(run)
    keep_tokenizer(DataConfig(tokenizer="bytes"), run)
    assert open_run_tokenizer(run) is not None


def test_what_cannot_be_copied_is_a_message(tmp_path, run):
    (run / "tokenizer.partial").write_text("in the way")
    with pytest.raises(UserError, match="the tokenizer cannot be copied there: Not a directory"):
        keep_tokenizer(DataConfig(tokenizer="bytes"), run)


def dataset(folder, tokenizer: str, **options) -> str:
    """Preprocess a text and return the prefix."""
    folder.mkdir()
    (folder / "in.txt").write_text(TEXT)
    wanted = Options(append_eod=True, **options)
    preprocess(find_files([str(folder / "in.txt")]), folder / "data", Vocabulary(tokenizer), wanted)
    return str(folder / "data")


def test_what_ends_a_document_is_what_the_dataset_says(tmp_path, run):
    path = write_vocabulary("byte-level", tmp_path / "vocabulary")
    content = json.loads((tmp_path / "vocabulary" / "tokenizer.json").read_text())
    named = tmp_path / "vocabulary" / "named.json"
    # The usual name is in the vocabulary too: whoever guesses takes that one.
    content["added_tokens"].append({**content["added_tokens"][0], "id": 280, "content": "<EOT>"})
    named.write_text(json.dumps(content))
    prefix = dataset(tmp_path / "a", str(named), eod_token="<EOT>")
    keep_tokenizer(DataConfig(train=prefix, tokenizer=str(named)), run)
    kept = open_run_tokenizer(run)
    assert load_tokenizer(named).end_of_document == 0
    assert kept.ends == [280]
    assert kept.tokenizer.end_of_document == 280

    usual = dataset(tmp_path / "b", str(named))
    blend = DataConfig(train={prefix: 1, usual: 1}, tokenizer=str(named))
    keep_tokenizer(blend, run)
    assert open_run_tokenizer(run).ends == [0, 280]
    assert load_tokenizer(path).vocab_size == 280
