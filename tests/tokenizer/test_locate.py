"""A tokenizer is found under the same names everywhere, and told by what its file holds."""

import base64
import itertools
import json

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.tokenizer.build import load_tokenizer
from megatron_gptx.tokenizer.locate import locate
from megatron_gptx.tokenizer.train import train_byte_level_bpe

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def gpt2(tmp_path):
    """Write GPT-2's two files under the names that GPT-NeoX gives them."""
    content = json.loads(train_byte_level_bpe(["the cat sat on the mat"] * 9, vocab_size=280))
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (tmp_path / "gpt2-vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (tmp_path / "gpt2-merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return tmp_path


def test_a_vocabulary_finds_its_merges_beside_it_or_is_told_them(gpt2, tmp_path):
    vocabulary, merges = gpt2 / "gpt2-vocab.json", gpt2 / "gpt2-merges.txt"
    ids = load_tokenizer(vocabulary, merges=merges).encode("the cat")
    assert load_tokenizer(vocabulary).encode("the cat") == ids
    merges.rename(tmp_path / "m.txt")
    assert load_tokenizer(f"{vocabulary},{tmp_path}/m.txt").encode("the cat") == ids
    with pytest.raises(UserError, match=r"vocabulary without its merges.*gpt2-merges\.txt beside"):
        load_tokenizer(vocabulary)
    with pytest.raises(UserError, match=r"absent: no such tokenizer file"):
        load_tokenizer(f"{vocabulary},absent")


def test_a_folder_stands_for_the_best_of_its_files(gpt2, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer file in this folder: none of tokenizer\.js"):
        load_tokenizer(tmp_path)
    (gpt2 / "gpt2-vocab.json").rename(tmp_path / "vocab.json")
    (gpt2 / "gpt2-merges.txt").rename(tmp_path / "merges.txt")
    assert locate(tmp_path).kind == "gpt2"
    (tmp_path / "tokenizer.json").write_text(train_byte_level_bpe(["a"], vocab_size=257))
    assert locate(tmp_path).kind == "json"


def write_ranks(path, count):
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" c", b"at", b" cat"]
    tokens += [b"12", b"123"]
    pairs = itertools.product(range(128, 256), range(256), range(256))
    tokens += [bytes(pair) for pair in itertools.islice(pairs, count - len(tokens))]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_llama_3_s_tokenizer_model_is_read_as_the_ranks_that_it_holds(tmp_path):
    pytest.importorskip("tiktoken", reason="tiktoken is an extra")
    tokenizer = load_tokenizer(write_ranks(tmp_path / "tokenizer.model", 128_000))
    assert tokenizer.vocab_size == 128_256
    assert tokenizer.id_of("<|begin_of_text|>") == 128_000
    assert tokenizer.end_of_document == tokenizer.id_of("<|end_of_text|>") == 128_001
    assert tokenizer.id_of("<|start_header_id|>") == 128_006
    assert tokenizer.id_of("<|eot_id|>") == 128_009
    assert tokenizer.id_of("<|reserved_special_token_250|>") == 128_255
    assert tokenizer.encode("the cat") == [257, 260]
    assert tokenizer.encode("1234") == [262, ord("4")]
    assert tokenizer.end_of_document not in tokenizer.encode("a<|end_of_text|>")


def test_qwen_s_ranks_are_split_as_qwen_splits(tmp_path):
    pytest.importorskip("tiktoken", reason="tiktoken is an extra")
    tokenizer = load_tokenizer(write_ranks(tmp_path / "qwen.tiktoken", 151_643))
    assert tokenizer.end_of_document == tokenizer.id_of("<|endoftext|>") == 151_643
    assert tokenizer.id_of("<|im_end|>") == 151_645
    assert tokenizer.vocab_size == 151_851
    assert tokenizer.encode("the cat 12") == [257, 260, ord(" "), ord("1"), ord("2")]


def test_other_ranks_are_named_for_what_they_are(tmp_path):
    pytest.importorskip("tiktoken", reason="tiktoken is an extra")
    with pytest.raises(
        UserError, match=r"tokenizer\.model: 300 ranks of tiktoken: the file's name"
    ):
        load_tokenizer(write_ranks(tmp_path / "tokenizer.model", 300))


@pytest.mark.parametrize("named", [True, False])
def test_mistral_s_tekken_puts_special_tokens_first(tmp_path, named):
    pytest.importorskip("tiktoken", reason="tiktoken is an extra")
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" c", b"at", b" cat", b"no"]
    words = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+|.",
        "num_vocab_tokens": len(words),
        "default_vocab_size": len(words) - 1 + 20,
        "default_num_special_tokens": 20,
        "version": "v3",
    }
    content = {"config": config, "vocab": words}
    if named:
        special = ["<unk>", "<s>", "</s>", "[INST]"]
        content["special_tokens"] = [
            {"rank": rank, "token_str": token, "is_control": True}
            for rank, token in enumerate(special)
        ]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.end_of_document == 2
    assert tokenizer.vocab_size == 20 + 261
    assert tokenizer.encode("the cat") == [20 + 257, 20 + 260]
    assert tokenizer.encode("no") == [20 + ord("n"), 20 + ord("o")]  # beyond the size
    assert tokenizer.decode(tokenizer.encode("é</s>")) == "é</s>"
    assert tokenizer.id_of("[INST]") == (3 if named else None)
    assert tokenizer.id_of("<SPECIAL_19>") == 19
    with pytest.raises(NotImplementedError, match="tekken"):
        tokenizer.open_gigatoken()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Lay out the hub's cache as the library does."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub is an extra")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def write(repository, files, revision="main"):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(COMMIT)
        (folder / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / "snapshots" / COMMIT / name).write_text(content)

    return write


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/gpt-neox-20b", "a/b@v1"])
def test_a_name_of_the_hub_is_found_in_its_cache_with_its_revision(cache, name):
    repository, _, revision = name.partition("@")
    content = train_byte_level_bpe(["a"], vocab_size=257)
    cache(repository, {"tokenizer.json": content}, revision or "main")
    found = locate(name)
    assert (found.kind, found.revision) == ("json", COMMIT)
    assert load_tokenizer(name).vocab_size == 257
    assert locate(f"{repository}@{COMMIT}").revision == COMMIT


def test_gpt2_s_two_files_are_found_in_the_cache_together(cache, gpt2):
    files = {"vocab.json": "gpt2-vocab.json", "merges.txt": "gpt2-merges.txt"}
    cache("gpt2", {name: (gpt2 / file).read_text() for name, file in files.items()})
    ids = load_tokenizer(gpt2 / "gpt2-vocab.json").encode("the cat")
    assert load_tokenizer("gpt2").encode("the cat") == ids
    # What lies here goes before what lies there.
    (gpt2 / "gpt2").mkdir()
    with pytest.raises(UserError, match="gpt2: no tokenizer file in this folder"):
        load_tokenizer("gpt2")


def test_a_name_that_is_not_in_the_cache_is_explained(cache):
    with pytest.raises(UserError) as caught:
        load_tokenizer("no-such/model")
    message = str(caught.value)
    assert message.startswith("no-such/model: no such tokenizer file, and nothing of the Hugging")
    assert "hub: not in its cache" in message
    assert message.endswith("network: hf download no-such/model tokenizer.json")


def test_without_a_network_the_hub_is_given_up_at_once(cache, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="the hub is an extra")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    with pytest.raises(UserError, match=r"it cannot be had from the hub: hub\.invalid: "):
        load_tokenizer("no-such/model")


@pytest.mark.parametrize(
    "name", ["absent.json", "absent.jsn", "here/absent", "./x", "/tmp/none/x", "a/b/c", "x.model"]
)
def test_a_path_that_is_missing_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=r": no such tokenizer file; gptx tokenizer"):
        load_tokenizer(name)
