"""A manifest vouches for itself and for its dataset, and its facts are used, not guessed again."""

import json
from pathlib import Path

import pytest
import tokenizers

from megatron_gptx.commands import preprocess, verify
from megatron_gptx.config.data import DataConfig
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.build import build_datasets
from megatron_gptx.dataset.indexed_dataset import IndexedDataset
from megatron_gptx.dataset.manifest import (
    manifest_path,
    read_manifest,
    write_manifest,
)
from megatron_gptx.dataset.verify import Expected, quick_problems
from megatron_gptx.tokenizer.build import load_tokenizer

TEXTS = ["one <|endoftext|> two", "three <EOT> four", "five"]


@pytest.fixture
def make(tmp_path, monkeypatch, tokenizer_file):
    """Preprocess three texts, some of which spell markers, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    names = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<EOT>"]
    tokenizer.add_tokens(names)
    tokenizer.save("t.json")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))

    def make(*options):
        words = ["in.jsonl", "--tokenizer", "t.json", "--output-prefix", "data", "--append-eod"]
        assert preprocess.main([*words, *options]) == 0
        return IndexedDataset("data")

    return make


def test_every_flipped_bit_of_a_manifest_is_found(make):
    path = manifest_path(make().prefix)
    content = path.read_bytes()
    assert len(content) > 1000
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read as a manifest|damaged"):
            read_manifest(path)
    path.write_bytes(content)
    assert read_manifest(path)["num_documents"] == 3


def test_verify_and_training_find_a_damaged_manifest(make, capsys):
    dataset = make()
    path = manifest_path("data")
    path.write_bytes(path.read_bytes().replace(b'"max_id": ', b'"max_id":  '))
    capsys.readouterr()
    assert verify.main(["data"]) == 2
    assert "manifest.json: damaged: it is not what its own checksum" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        quick_problems(dataset, Expected())


def test_a_manifest_of_ours_that_is_gone_is_an_error(make, capsys):
    dataset = make()
    manifest_path("data").unlink()
    capsys.readouterr()
    assert verify.main(["data"]) == 2
    assert "manifest.json: gone, though data.d is there" in capsys.readouterr().err
    (problem,) = quick_problems(dataset, Expected())
    assert "manifest.json: gone" in problem


def test_a_dataset_of_others_is_verified_with_a_warning(make, capsys):
    make()
    manifest_path("data").unlink()
    manifest_path("data").parent.rmdir()
    capsys.readouterr()
    assert verify.main(["data"]) == 0
    printed = capsys.readouterr()
    assert "checked: sizes and pointers, ids not negative\n" in printed.out
    assert printed.err.startswith("data: no manifest beside it, as datasets of others have none")
    assert quick_problems(IndexedDataset("data"), Expected()) == []


def as_format_2():
    """Rewrite the manifest as versions before this one left it."""
    content = read_manifest(manifest_path("data"))
    content["format"] = 2
    del content["markers"]
    content["tokenizer"] = {name: content["tokenizer"][name] for name in ("sha256", "vocab_size")}
    manifest_path("data").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def test_an_older_manifest_is_read_and_its_dataset_is_up_to_date(make, capsys):
    make()
    as_format_2()
    capsys.readouterr()
    words = ["in.jsonl", "--tokenizer", "t.json", "--output-prefix", "data", "--append-eod"]
    assert preprocess.main(words) == 0
    assert capsys.readouterr().out == "data: up to date\n"
    assert verify.main(["data", "--tokenizer", "t.json"]) == 0
    assert "document ends, markers, checksums, tokenizer" in capsys.readouterr().out


def test_no_document_ends_itself(make):
    dataset = make()
    tokenizer = load_tokenizer("t.json")
    end = tokenizer.end_of_document
    for number, text in enumerate(TEXTS):
        *ids, last = dataset.document(number).tolist()
        assert last == end
        assert end not in ids
        assert tokenizer.decode(ids) == text
    manifest = read_manifest(manifest_path("data"))
    assert end in manifest["markers"]
    assert tokenizer.id_of("<EOT>") in manifest["markers"]
    assert manifest["tokenizer"]["name"] == "t.json"


def test_verify_finds_markers_inside_documents(make, capsys):
    """As versions made them that took such a text for the marker."""
    make("--special-tokens-in-text", "keep")
    assert verify.main(["data"]) == 0
    content = read_manifest(manifest_path("data"))
    assert content["markers"] is None
    content["options"]["special_tokens"] = "text"
    end, turn = content["end_of_document"], load_tokenizer("t.json").id_of("<EOT>")
    for markers, count, where in (([end, turn], 2, f"id {end} in number 0"), ([turn], 1, "")):
        write_manifest(manifest_path("data"), {**content, "markers": markers})
        capsys.readouterr()
        assert verify.main(["data"]) == 2
        message = capsys.readouterr().err
        assert f"data: {count} marker(s) stand inside documents, such as {where}" in message
    write_manifest(manifest_path("data"), content)
    as_format_2()
    assert verify.main(["data"]) == 2
    assert f"1 marker(s) stand inside documents, such as id {end} in" in capsys.readouterr().err


def test_error_rejects_what_looks_like_a_marker_also_after_repair(make, tmp_path, capsys):
    texts = [*TEXTS, "six &lt;|endoftext|&gt; seven"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert make("--special-tokens-in-text", "error", "--ftfy").num_documents == 1
    message = capsys.readouterr().err
    assert "in.jsonl:1: spells out the special token '<|endoftext|>'" in message
    assert "in.jsonl:2: spells out the special token '<EOT>'" in message
    assert "in.jsonl:4: spells out the special token '<|endoftext|>'" in message


def test_filling_in_the_middle_keeps_the_end_that_the_dataset_was_made_with(make):
    dataset = make("--eod-token", "<EOT>")
    end = load_tokenizer("t.json").id_of("<EOT>")
    assert end != load_tokenizer("t.json").end_of_document
    data = DataConfig(
        train="data", tokenizer="t.json", packing="document", fill_in_the_middle={"rate": 1.0}
    )
    train, _ = build_datasets(data, seq_length=64, seed=1)
    inputs, labels, _ = train.read_samples(range(3))
    changed = 0
    for row, learned in zip(inputs, labels, strict=True):
        length = int((learned >= 0).sum())
        assert learned[length - 1] == end
        changed += load_tokenizer("t.json").id_of("<|fim_prefix|>") in row
    assert changed >= 2
    assert dataset.num_documents == 3


def test_datasets_with_different_ends_are_each_filled_in_by_their_own(make, make_dataset):
    make("--eod-token", "<EOT>")
    other = make_dataset([[*range(20), 0]] * 9, name="other").prefix  # no manifest: names tell
    data = DataConfig(
        train={"data": 0.5, str(other): 0.5},
        tokenizer="t.json",
        packing="document",
        fill_in_the_middle={"rate": 1.0},
    )
    train, _ = build_datasets(data, seq_length=64, seed=1)
    _, labels, _ = train.read_samples(range(6))
    last = {int(row[int((row >= 0).sum()) - 1]) for row in labels}
    assert last == {0, load_tokenizer("t.json").id_of("<EOT>")}


def test_a_token_that_text_becomes_cannot_be_a_sentinel(make):
    make()
    names = {"prefix": "the", "rate": 1.0}
    data = DataConfig(train="data", tokenizer="t.json", fill_in_the_middle=names)
    with pytest.raises(UserError, match=r"no token 'the' that no text becomes"):
        build_datasets(data, seq_length=8, seed=1)


def test_the_revision_of_a_tokenizer_of_the_hub_is_recorded(make, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub is an extra")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    make()
    folder, commit = tmp_path / "hub" / "models--some--model", "c0ffee" * 6 + "beef"
    for name, content in (
        ("refs/main", commit),
        (f"snapshots/{commit}/tokenizer.json", Path("t.json").read_text()),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
    words = ["in.jsonl", "--append-eod", "--output-prefix"]
    assert preprocess.main([*words, "hub-data", "--tokenizer", "some/model"]) == 0
    made_with = read_manifest(manifest_path("hub-data"))["tokenizer"]
    assert (made_with["name"], made_with["revision"]) == ("some/model", commit)
    assert verify.main(["data", "hub-data", "--tokenizer", "some/model"]) == 0
    # The same vocabulary under another name is the same.
    assert preprocess.main([*words, "data", "--tokenizer", "some/model"]) == 0
    assert read_manifest(manifest_path("data"))["tokenizer"]["name"] == "t.json"
